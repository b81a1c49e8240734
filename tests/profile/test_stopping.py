"""The rules that end warm-up and sampling, on invented numbers."""

from __future__ import annotations

import numpy as np

from shipworthy.profile.plan import Plan
from shipworthy.profile.stopping import is_checkpoint, precise, sampling_done, settled, warmup_done

STEADY = [1000 + i % 3 for i in range(64)]


def test_a_steady_series_has_settled_and_a_falling_one_has_not() -> None:
    """Warm-up goes on while times still fall, and two windows are needed to tell."""
    assert settled(STEADY)
    assert not settled([4000 - 40 * i for i in range(64)])
    assert not settled(STEADY[:20])


def test_noise_alone_does_not_keep_warm_up_going() -> None:
    """Two windows of a noisy series whose medians differ by chance count as settled."""
    noisy = np.random.default_rng(0).lognormal(14, 0.3, (200, 64))
    assert np.mean([settled([int(value) for value in row]) for row in noisy]) > 0.9


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
    plan = Plan(min_rounds=50, max_rounds=100, budget_s=10.0, precision=0.01)
    assert sampling_done([[1000] * 49], 1.0, plan) is None
    assert sampling_done([[1000] * 50], 1.0, plan) == "precision"
    assert sampling_done([[1000, 2000] * 25], 1.0, plan) is None
    assert sampling_done([[1000, 2000] * 25], 10.0, plan) == "budget"
    assert sampling_done([[1000, 2000] * 50], 1.0, plan) == "max_rounds"


def test_precision_asks_for_every_median_and_every_ratio() -> None:
    """One wide interval is enough to go on, be it a median's or a ratio's."""
    generator = np.random.default_rng(3)
    steady = [int(v) for v in generator.normal(1e6, 1e3, 200)]
    noisy = [int(v) for v in generator.normal(1e6, 3e5, 200)]
    assert precise([steady, steady], 0.01)
    assert not precise([steady, noisy], 0.01)
    opposed = [[990, 1010] * 100, [1010, 990] * 100]
    assert all(precise([one], 0.011) for one in opposed)
    assert not precise(opposed, 0.011)


def test_checkpoints_start_at_the_first_and_thin_out() -> None:
    """The precision is looked at after `first` rounds, then each time after about a quarter more."""
    looks = [rounds for rounds in range(1, 1001) if is_checkpoint(rounds, 100)]
    assert looks[:4] == [100, 125, 157, 196]
    assert len(looks) == 11
    assert [rounds for rounds in range(1, 11) if is_checkpoint(rounds, 1)] == [1, 2, 3, 4, 5, 6, 8, 10]
