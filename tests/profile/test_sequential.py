"""Decisions while sampling goes on, on invented series."""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from shipworthy.profile.goals import Goal, Outcome
from shipworthy.profile.plan import Plan
from shipworthy.profile.sequential import Question, looks, looks_tail, until_decided
from shipworthy.profile.stats import TAIL
from shipworthy.profile.stopping import is_checkpoint

PLAN = Plan(min_rounds=50, max_rounds=1200, least_s=1.0, budget_s=1e6)
LOOKS = [rounds for rounds in range(1, PLAN.max_rounds + 1) if is_checkpoint(rounds, PLAN.min_rounds)]
AT_MOST_1_MS = Question(Goal("latency_p50_ms", max=1.0))


def decisions(truth: float, phi: float, series: int, seed: int, tail: float) -> list[Outcome]:
    """Judge invented series of a median of `truth` ms at every look, and return each one's first decision."""
    noise = np.random.default_rng(seed).standard_normal((series, PLAN.max_rounds))
    for i in range(1, PLAN.max_rounds):
        noise[:, i] = phi * noise[:, i - 1] + np.sqrt(1 - phi**2) * noise[:, i]
    rows = 1e6 * truth * np.exp(0.1 * noise)
    return [_first(row, tail) for row in rows]


def _first(row: npt.NDArray[np.float64], tail: float) -> Outcome:
    found = (AT_MOST_1_MS.outcome([row[:rounds].tolist()], tail) for rounds in LOOKS)
    return next((one for one in found if one is not Outcome.UNCLEAR), Outcome.UNCLEAR)


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_peeking_does_not_raise_the_error_rate(phi: float) -> None:
    """A median that lies exactly on the bound is declared met or missed at any of all looks in about 5 % of cases."""
    tail = looks_tail(looks(PLAN))
    wrong = np.mean([one is not Outcome.UNCLEAR for one in decisions(1.0, phi, 300, 1, tail)])
    assert wrong <= 0.08


def test_fixed_intervals_would_be_wrong_far_more_often() -> None:
    """The same looks with plain 95 % intervals decide wrongly in far more than 5 % of cases."""
    assert np.mean([one is not Outcome.UNCLEAR for one in decisions(1.0, 0.0, 300, 1, TAIL)]) >= 0.12


def test_what_is_clearly_better_is_decided_at_the_first_looks() -> None:
    """A median 10 % below the bound is met, one 10 % above it missed, in all but rare cases."""
    tail = looks_tail(looks(PLAN))
    assert decisions(0.9, 0.0, 60, 2, tail).count(Outcome.MET) >= 59
    assert decisions(1.1, 0.0, 60, 3, tail).count(Outcome.MISSED) >= 59


def test_the_boundary_is_pococks() -> None:
    """One look has the plain tail, more have less each, and all together err as often as is stated."""
    assert looks_tail(1) == TAIL
    tails = [looks_tail(count) for count in (1, 2, 5, 10, 20)]
    assert all(a > b > TAIL / 20 for a, b in pairwise(tails))
    draws = np.random.default_rng(0).standard_normal((200_000, 5))
    for i in range(1, 5):
        draws[:, i] = 1.25**-0.5 * draws[:, i - 1] + (1 - 1 / 1.25) ** 0.5 * draws[:, i]
    bound = -NormalDist().inv_cdf(looks_tail(5))
    assert np.mean(np.abs(draws).max(1) > bound) == pytest.approx(0.05, abs=0.002)


def test_the_plan_tells_how_often_is_looked() -> None:
    """Every checkpoint, and once more for a budget that ends between two."""
    assert looks(PLAN) == len(LOOKS) + 1
    assert looks(Plan(min_rounds=10, max_rounds=10)) == 2


def test_sampling_goes_on_until_all_goals_are_decided() -> None:
    """One undecided goal keeps sampling going; precision alone does not end it, the plan's bounds do."""
    generator = np.random.default_rng(4)
    slow, fast = (generator.normal(mean, 2e4, 1200).astype(int).tolist() for mean in (2e6, 1e6))
    sure = [Question(Goal("latency_p50_ms", max=1.5), runner=1), Question(Goal("speedup", min=1.5), 1, against=0)]
    rule = until_decided(sure)
    assert rule([slow[:49], fast[:49]], 1.0, PLAN) is None
    assert rule([slow[:50], fast[:50]], 1.0, PLAN) == "decided"
    doubtful = until_decided([*sure, Question(Goal("speedup", min=2.0), 1, against=0)])
    assert doubtful([slow[:50], fast[:50]], 1.0, PLAN) is None
    assert doubtful([slow[:60], fast[:60]], 1e7, PLAN) == "budget"
    assert doubtful([slow, fast], 1.0, PLAN) == "max_rounds"


def test_a_percentile_waits_for_enough_samples() -> None:
    """A goal on p99 is not decided before there are samples enough to print one."""
    question = Question(Goal("latency_p99_ms", max=5.0), quantile=99.0)
    steady = np.random.default_rng(5).normal(1e6, 1e4, 3000).astype(int).tolist()
    assert question.estimate([steady[:600]]) is None
    assert question.outcome([steady[:600]], TAIL) is Outcome.UNCLEAR
    assert question.outcome([steady], TAIL) is Outcome.MET


def test_without_goals_precision_ends_sampling() -> None:
    """The rule for no goals is the usual one."""
    assert until_decided([])([[1000] * 50], 1.0, PLAN) == "precision"


def test_nothing_is_decided_before_the_least_time() -> None:
    """What moves a machine from second to second has to be in the samples before they decide anything."""
    steady = [1000] * 60
    rule = until_decided([AT_MOST_1_MS])
    assert rule([steady], 0.9, PLAN) is None
    assert rule([steady[:50]], 1.0, PLAN) == "decided"
    assert until_decided([])([steady[:50]], 0.9, PLAN) is None


def test_a_look_is_not_taken_twice() -> None:
    """Rounds that were set aside lead back to looks that were taken already: those are not repeated."""
    generator = np.random.default_rng(9)
    doubtful, sure = generator.normal(1e6, 2e5, 60).tolist(), generator.normal(5e5, 1e3, 60).tolist()
    rule = until_decided([AT_MOST_1_MS])
    assert rule([doubtful[:50]], 1.0, PLAN) is None
    assert rule([sure[:50]], 1.0, PLAN) is None
    assert rule([sure[:63]] if len(sure) > 63 else [[*sure, *sure[:3]]], 1.0, PLAN) == "decided"


def test_slow_changes_of_pace_seldom_decide_wrongly_after_the_least_time() -> None:
    """With noise whose memory is a hundred rounds, looks that begin after two thousand are wrong in few cases."""
    plan = Plan(min_rounds=2000, max_rounds=8000, least_s=0, budget_s=1e6)
    noise = np.random.default_rng(10).standard_normal((60, plan.max_rounds))
    for i in range(1, plan.max_rounds):
        noise[:, i] = 0.99 * noise[:, i - 1] + np.sqrt(1 - 0.99**2) * noise[:, i]
    tail = looks_tail(looks(plan))
    at = [rounds for rounds in range(1, plan.max_rounds + 1) if is_checkpoint(rounds, plan.min_rounds)]
    rows = 1e6 * np.exp(0.1 * noise)
    wrong = [any(AT_MOST_1_MS.outcome([row[:n].tolist()], tail) is not Outcome.UNCLEAR for n in at) for row in rows]
    assert np.mean(wrong) <= 0.15


def test_a_missed_percentile_without_an_upper_end_is_missed() -> None:
    """Where the samples bound a percentile from below alone, and that is above the bound, the goal is missed."""
    question = Question(Goal("latency_p99_ms", max=0.5), quantile=99.0)
    generator = np.random.default_rng(11)
    bursts = np.where(generator.random(763) < 0.03, 2e6, 1e5) * generator.uniform(1, 1.01, 763)
    found = question.estimate([bursts.astype(int).tolist()], 1e-4)
    assert found is not None
    assert found.low is not None
    assert question.outcome([bursts.astype(int).tolist()], 1e-4) is Outcome.MISSED
