"""The rules that end warm-up and sampling, on invented numbers."""

from __future__ import annotations

import numpy as np

from shipworthy.profile.plan import Plan
from shipworthy.profile.stopping import imprecise, is_checkpoint, sampling_done, settled, warmup_done

STEADY = [1000 + i % 3 for i in range(64)]


def test_a_steady_series_has_settled_and_a_falling_one_has_not() -> None:
    """Warm-up goes on while times still fall, and two windows are needed to tell."""
    assert settled(STEADY)
    assert not settled([4000 - 40 * i for i in range(64)])
    assert not settled(STEADY[:20])


def test_noise_alone_does_not_keep_warm_up_going() -> None:
    """Two windows of a noisy series whose medians differ by chance count as settled."""
    noisy = np.random.default_rng(0).lognormal(14, 0.3, (200, 64))
    assert np.mean([settled([int(value) for value in row]) for row in noisy]) > 0.98


def test_warm_up_ends_when_all_have_settled_or_at_its_cap() -> None:
    """One runner that has not settled keeps warm-up going until the cap; the minimum time always holds."""
    plan = Plan(warmup_s=0.5, warmup_cap_s=2.0)
    falling = [4000 - 40 * i for i in range(64)]
    assert warmup_done([STEADY, STEADY], 0.4, plan) is None
    assert warmup_done([STEADY, STEADY], 0.6, plan) == "settled"
    assert warmup_done([STEADY, falling], 0.6, plan) is None
    assert warmup_done([STEADY, falling], 2.0, plan) == "cap"


def test_sampling_ends_by_precision_budget_or_rounds() -> None:
    """Precision counts from `min_rounds` on; the budget and `max_rounds` end sampling whatever the precision."""
    plan = Plan(min_rounds=50, max_rounds=100, least_s=0.5, budget_s=10.0, precision=0.01)
    assert sampling_done([[1000] * 50], 0.4, plan) is None
    assert sampling_done([[1000] * 49], 1.0, plan) is None
    assert sampling_done([[1000] * 50], 1.0, plan) == "precision"
    assert sampling_done([[1000, 2000] * 25], 1.0, plan) is None
    assert sampling_done([[1000, 2000] * 25], 10.0, plan) == "budget"
    assert sampling_done([[1000, 2000] * 50], 1.0, plan) == "max_rounds"


def test_precision_asks_for_every_percentile_and_every_ratio() -> None:
    """One wide interval is enough to go on, be it a runner's or a ratio's."""
    generator = np.random.default_rng(3)
    steady = [int(v) for v in generator.normal(1e6, 1e3, 200)]
    noisy = [int(v) for v in generator.normal(1e6, 3e5, 200)]
    plan = Plan(precision=0.01)
    assert not imprecise([steady, steady], plan)
    assert len(imprecise([steady, noisy], plan)) == 2
    opposed = [[990, 1010] * 100, [1010, 990] * 100]
    assert not any(imprecise([one], Plan(precision=0.011)) for one in opposed)
    assert len(imprecise(opposed, Plan(precision=0.011))) == 1


def test_precision_is_that_of_the_percentile_asked_for() -> None:
    """A p90 that is far less certain than the median keeps sampling going where it is what was asked for."""
    skewed = [int(1e6 + v) for v in np.random.default_rng(4).exponential(1e5, 2000)]
    assert not imprecise([skewed], Plan(precision=0.01))
    assert imprecise([skewed], Plan(precision=0.01, quantile=90.0))


def test_sampling_ends_at_the_floor_of_the_noise() -> None:
    """Where a machine's pace wanders off, more samples do not narrow the interval, and sampling ends."""
    noise = np.random.default_rng(6).normal(0, 0.1, 4000)
    independent = [int(1e6 * np.exp(v)) for v in noise]
    wandering = [
        int(1e6 * np.exp(v)) for v in noise + np.where(np.arange(4000) < 1000, 0.0, 0.3 * np.sin(np.arange(4000) / 400))
    ]
    plan = Plan(min_rounds=200, least_s=0, precision=0.001)
    looks = [rounds for rounds in range(1, 4001) if is_checkpoint(rounds, 200)]
    assert "noise floor" in [sampling_done([wandering[:n]], 1.0, plan) for n in looks]
    assert {sampling_done([independent[:n]], 1.0, plan) for n in looks} == {None}


def test_checkpoints_start_at_the_first_and_thin_out() -> None:
    """The precision is looked at after `first` rounds, then each time after about a quarter more."""
    looks = [rounds for rounds in range(1, 1001) if is_checkpoint(rounds, 100)]
    assert looks[:4] == [100, 125, 157, 196]
    assert len(looks) == 11
    assert [rounds for rounds in range(1, 11) if is_checkpoint(rounds, 1)] == [1, 2, 3, 4, 5, 6, 8, 10]
