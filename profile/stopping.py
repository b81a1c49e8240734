"""When warm-up and sampling may end. Pure rules on samples and elapsed seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .plan import Plan
from .stats import median_interval, median_ratio_interval

Series = Sequence[Sequence[int]]
Rule = Callable[[Series, float, Plan], str | None]

SETTLED, CAP, PRECISION, BUDGET, MAX_ROUNDS = "settled", "cap", "precision", "budget", "max_rounds"

_WINDOW = 16
_DRIFT = 0.02


def warmup_done(series: Series, elapsed_s: float, plan: Plan) -> str | None:
    """Say why warm-up may end, or None to go on.

    Args:
        series: nanoseconds, one sequence per runner, all of one length, at least one round.
        elapsed_s: seconds since warm-up began.
        plan: its warm-up bounds.
    """
    if elapsed_s >= plan.warmup_cap_s:
        return CAP
    rounds = len(series[0])
    if elapsed_s < plan.warmup_s or rounds % (_WINDOW // 2):
        return None
    return SETTLED if all(settled(one) for one in series) else None


def settled(series_ns: Sequence[int]) -> bool:
    """Tell whether the last two windows of a series agree: intervals that overlap, or medians within 2 %."""
    width = max(_WINDOW, len(series_ns) // 4)
    if len(series_ns) < 2 * width:
        return False
    before, after = median_interval(series_ns[-2 * width : -width]), median_interval(series_ns[-width:])
    if abs(after.value - before.value) <= _DRIFT * before.value:
        return True
    bounds = before.low, before.high, after.low, after.high
    low_before, high_before, low_after, high_after = (math.nan if end is None else end for end in bounds)
    return low_before <= high_after and low_after <= high_before


def sampling_done(series: Series, elapsed_s: float, plan: Plan) -> str | None:
    """Say why sampling may end, or None to go on.

    Args:
        series: nanoseconds, one sequence per runner, all of one length, at least one round.
        elapsed_s: seconds since sampling began.
        plan: its budget, rounds and precision.
    """
    rounds = len(series[0])
    if rounds >= plan.max_rounds:
        return MAX_ROUNDS
    if elapsed_s >= plan.budget_s:
        return BUDGET
    return PRECISION if is_checkpoint(rounds, plan.min_rounds) and precise(series, plan.precision) else None


def is_checkpoint(rounds: int, first: int) -> bool:
    """Tell whether to look at the precision after so many rounds: at `first`, then each time a quarter more.

    Few looks keep the cost of looking small and the intervals honest: a rule that looks after every round ends on the
    luckiest one.
    """
    if rounds < first:
        return False
    step = math.floor(math.log(rounds / first) / math.log(1.25) + 1e-9)
    return rounds == math.ceil(first * 1.25**step)


def precise(series: Series, precision: float) -> bool:
    """Tell whether every median, and every ratio of the first runner to another, has a narrow enough interval."""
    medians = (median_interval(one) for one in series)
    ratios = (median_ratio_interval(series[0], other) for other in series[1:])
    widths = (found.relative_half_width for group in (medians, ratios) for found in group)
    return all(width <= precision for width in widths)
