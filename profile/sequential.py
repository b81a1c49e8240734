"""Looking at goals while sampling goes on: intervals that hold at every look, and the rule that stops at a decision.

Who looks after every quarter more rounds and stops at the first interval that excludes a bound is wrong far more often
than one time in twenty. The intervals here are repeated confidence intervals (Jennison and Turnbull, "Interim analyses:
the repeated confidence interval approach", 1989) with Pocock's constant boundary (1977): all looks together miss the
truth with at most the stated error, wherever sampling stops and for whatever reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from .goals import Goal, Outcome, Reading, judge
from .plan import Plan
from .stats import TAIL, Estimate, mean_interval, median_ratio_interval, percentile
from .stopping import GROWTH, Rule, Series, ended, is_checkpoint, sampling_done

DECIDED = "decided"
_NODES = 48
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Question:
    """A goal that samples decide.

    Attributes:
        goal: its bounds are in the unit of `scale`.
        runner: whose samples, by its place.
        quantile: of those samples, None for their mean; ignored for a ratio.
        against: the place of the runner whose time is divided by this runner's, round by round; None for no ratio.
        scale: what a value is multiplied by: 1e-6 makes milliseconds of nanoseconds.
    """

    goal: Goal
    runner: int = 0
    quantile: float | None = 50.0
    against: int | None = None
    scale: float = 1e-6

    def estimate(self, series: Series, tail: float = TAIL) -> Estimate | None:
        """Return the value and its interval in the goal's unit; None for too few samples."""
        mine = series[self.runner]
        if self.against is not None:
            return median_ratio_interval(series[self.against], mine, tail)
        found = mean_interval(mine, tail) if self.quantile is None else percentile(mine, self.quantile, tail)
        if found is None:
            return None
        ends = (None if end is None else end * self.scale for end in (found.low, found.high))
        return Estimate(found.value * self.scale, *ends)

    def outcome(self, series: Series, tail: float) -> Outcome:
        """Judge the goal by the samples so far; without an interval it is unclear."""
        found = self.estimate(series, tail)
        if found is None or (found.low is None and found.high is None):
            return Outcome.UNCLEAR
        return judge(self.goal, Reading(found.value, found.low, found.high)).outcome


def until_decided(questions: Sequence[Question]) -> Rule:
    """Return the rule that ends sampling once every question is answered, or at the plan's bounds.

    Without questions it is `sampling_done`. Precision does not end sampling: a goal may need more.
    """
    if not questions:
        return sampling_done

    looked_at = 0

    def rule(series: Series, elapsed_s: float, plan: Plan) -> str | None:
        nonlocal looked_at
        rounds = len(series[0])
        # Rounds that were set aside lead back below a look that was taken, and paid for, already.
        if rounds > looked_at and elapsed_s >= plan.least_s and is_checkpoint(rounds, plan.min_rounds):
            looked_at = rounds
            tail = looks_tail(looks(plan))
            if all(question.outcome(series, tail) is not Outcome.UNCLEAR for question in questions):
                return DECIDED
        return ended(series, elapsed_s, plan)

    return rule


def looks(plan: Plan) -> int:
    """Return how often a plan looks at most: at every checkpoint, and once more where the budget ends."""
    return 2 + math.floor(math.log(plan.max_rounds / plan.min_rounds) / math.log(GROWTH) + 1e-9)


@lru_cache(maxsize=64)
def looks_tail(count: int, tail: float = TAIL) -> float:
    """Return the error on each side at one look, so that `count` looks together err with `2 * tail`.

    The estimates at successive looks, each after `GROWTH` times as many rounds, are correlated like sums of independent
    samples. Looks that lie closer, as the last one may, err less.
    """
    if count == 1:
        return tail
    low, high = -_NORMAL.inv_cdf(tail), -_NORMAL.inv_cdf(tail / count)
    for _ in range(26):
        middle = (low + high) / 2
        low, high = (middle, high) if _error(middle, count) > 2 * tail else (low, middle)
    return _NORMAL.cdf(-high)


def _error(bound: float, count: int) -> float:
    """Return the probability that one of the standardised estimates leaves `[-bound, bound]`.

    By recursive integration over the looks (Armitage, McPherson and Rowe, "Repeated significance tests on accumulating
    data", 1969).
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    x, weight = bound * nodes, bound * weights
    correlation = GROWTH**-0.5
    spread = math.sqrt(1 - correlation**2)
    step = _density((x[:, None] - correlation * x[None, :]) / spread) / spread
    inside = _density(x)
    for _ in range(count - 1):
        inside = step @ (inside * weight)
    return 1.0 - float(inside @ weight)


def _density(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
