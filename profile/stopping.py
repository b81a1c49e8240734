"""When warm-up and sampling may end. Pure rules on samples and elapsed seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .plan import Plan
from .stats import Samples, percentile

Series = Sequence[Sequence[int]]
Rule = Callable[[Series, float, Plan], str | None]

SETTLED, CAP = "settled", "cap"
PRECISION, FLOOR, BUDGET, MAX_ROUNDS = "precision", "noise floor", "budget", "max_rounds"
GROWTH = 1.25
"""Each look at the samples comes after so many times as many rounds as the one before."""

_WINDOW = 16
_DRIFT = 0.02
_FLOOR_ROUNDS = 8
_FLOOR_SHARE = 0.95


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
    """Tell whether the last two windows of a series agree: medians within 2 %, or no change of place beyond chance.

    The change is tested by ranks (Mann and Whitney, "On a test of whether one of two random variables is stochastically
    larger than the other", 1947), at 4 standard deviations, since looks are many and neighbours alike.
    """
    width = max(_WINDOW, len(series_ns) // 4)
    if len(series_ns) < 2 * width:
        return False
    before, after = np.asarray(series_ns[-2 * width : -width]), np.asarray(series_ns[-width:])
    if abs(np.median(after) - np.median(before)) <= _DRIFT * np.median(before):
        return True
    pairs = np.sign(after[:, None] - before[None, :]).sum()
    return abs(float(pairs)) <= 4 * width * math.sqrt((2 * width + 1) / 3)


def sampling_done(series: Series, elapsed_s: float, plan: Plan) -> str | None:
    """Say why sampling may end, or None to go on.

    Args:
        series: nanoseconds, one sequence per runner, all of one length, at least one round.
        elapsed_s: seconds since sampling began.
        plan: its budget, rounds, percentile and precision.
    """
    found = ended(series, elapsed_s, plan)
    if found is not None or elapsed_s < plan.least_s or not is_checkpoint(len(series[0]), plan.min_rounds):
        return found
    wide = imprecise(series, plan)
    if not wide:
        return PRECISION
    return FLOOR if len(series[0]) >= _FLOOR_ROUNDS * plan.min_rounds and all(map(at_floor, wide)) else None


def ended(series: Series, elapsed_s: float, plan: Plan) -> str | None:
    """Say which bound of the plan ends sampling, or None."""
    if len(series[0]) >= plan.max_rounds:
        return MAX_ROUNDS
    return BUDGET if elapsed_s >= plan.budget_s else None


def is_checkpoint(rounds: int, first: int) -> bool:
    """Tell whether to look at the precision after so many rounds: at `first`, then each time a quarter more.

    Few looks keep the cost of looking small and the intervals honest: a rule that looks after every round ends on the
    luckiest one.
    """
    if rounds < first:
        return False
    step = math.floor(math.log(rounds / first) / math.log(GROWTH) + 1e-9)
    return rounds == math.ceil(first * GROWTH**step)


def imprecise(series: Series, plan: Plan) -> list[Figure]:
    """Return what is not known precisely yet: of each runner the plan's percentile, of each but the first the ratio."""
    figures = [Figure(one, plan.quantile) for one in series]
    ratios = (np.asarray(series[0], float) / np.maximum(np.asarray(other, float), 1.0) for other in series[1:])
    figures += [Figure(ratio, 50.0) for ratio in ratios]
    return [figure for figure in figures if figure.relative_width() > plan.precision]


@dataclass(frozen=True)
class Figure:
    """A percentile of a series, which sampling is to make precise."""

    samples: Samples
    q: float

    def relative_width(self, count: int | None = None) -> float:
        """Return the half width of its interval as a share of the median, of the first `count` samples or of all."""
        x = np.asarray(self.samples)[:count]
        found = percentile(x, self.q)
        if found is None or found.low is None or found.high is None:
            return math.inf
        return (found.high - found.low) / 2 / max(float(np.median(x)), 1e-300)


def at_floor(figure: Figure) -> bool:
    """Tell whether more samples no longer help: four looks ago, with 0.41 times as many, it was as good or nearly.

    Independent samples would have narrowed the interval to 0.64 of what it was. Where a machine changes its pace from
    minute to minute, they do not.
    """
    before = figure.relative_width(round(len(figure.samples) / GROWTH**4))
    now = figure.relative_width()
    return math.isfinite(now) and now > _FLOOR_SHARE * before
