"""Percentiles, intervals and paired ratios on invented numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipworthy.profile.stats import (
    Estimate,
    effective_samples,
    fewest_samples,
    median_interval,
    median_ratio_interval,
    percentile,
)

Floats = npt.NDArray[np.float64]


def autoregressive(phi: float, series: int, length: int, seed: int) -> Floats:
    """Return stationary AR(1) series of unit variance, shape `(series, length)`."""
    noise = np.random.default_rng(seed).standard_normal((length, series))
    made = np.empty_like(noise)
    made[0] = noise[0]
    for i in range(1, length):
        made[i] = phi * made[i - 1] + np.sqrt(1 - phi**2) * noise[i]
    return made.T


def coverage(rows: Floats, truth: float, estimate: Callable[[Floats], Estimate | None]) -> float:
    """Return the share of rows whose interval contains the truth."""
    found = [estimate(row) for row in rows]
    return float(np.mean([f is not None and f.low is not None and f.low <= truth <= (f.high or 0) for f in found]))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_median_is_covered_with_and_without_autocorrelation(phi: float) -> None:
    """The 95 % interval of a skewed series' median contains the truth in about 95 % of cases, dependent or not."""
    rows = np.exp(0.1 * autoregressive(phi, series=400, length=800, seed=1))
    assert 0.91 <= coverage(rows, 1.0, median_interval) <= 0.99


@pytest.mark.parametrize(("phi_both", "phi_each"), [(0.0, 0.0), (0.99, 0.0), (0.99, 0.7)])
def test_the_ratio_is_covered_under_a_disturbance_that_both_share(phi_both: float, phi_each: float) -> None:
    """A drift that slows both alike does not hurt the paired ratio: its interval covers the truth and is narrow."""
    shared = 0.3 * autoregressive(phi_both, series=300, length=400, seed=2)
    a = 3e6 * np.exp(shared + 0.02 * autoregressive(phi_each, series=300, length=400, seed=3))
    b = 1e6 * np.exp(shared + 0.02 * autoregressive(phi_each, series=300, length=400, seed=4))
    found = [median_ratio_interval(one, other) for one, other in zip(a, b, strict=True)]
    assert 0.91 <= np.mean([(f.low or 9) <= 3 <= (f.high or 0) for f in found]) <= 0.99
    assert max(f.relative_half_width for f in found) < 0.02


def test_p90_and_p99_are_covered() -> None:
    """The order-statistic intervals of the tail percentiles contain the truth in about 95 % of cases."""
    rows = np.random.default_rng(5).exponential(1.0, (300, 700))
    assert 0.92 <= coverage(rows, float(np.log(10)), lambda row: percentile(row, 90)) <= 0.99
    assert 0.92 <= coverage(rows, float(np.log(100)), lambda row: percentile(row, 99)) <= 1.0


def test_tail_percentiles_need_enough_samples() -> None:
    """p90 appears from 64 samples on, p99 from 662: MLPerf's early-stopping bounds."""
    assert (fewest_samples(50), fewest_samples(90), fewest_samples(99)) == (1, 64, 662)
    assert percentile(range(1, 64), 90) is None
    assert percentile(range(1, 65), 90) is not None
    assert percentile(range(1, 662), 99) is None
    assert percentile(range(1, 663), 99) is not None


def test_the_binomial_interval_of_independent_samples() -> None:
    """For independent samples the ends lie at the ranks of the textbook (Conover), the 40th and 61st, or inwards."""
    shuffled = np.random.default_rng(0).permutation(np.arange(1, 101))
    assert effective_samples(shuffled <= 50) == 100
    found = median_interval(shuffled)
    assert found.value == 50.5
    assert 40 <= (found.low or 0) <= 41
    assert 60 <= (found.high or 0) <= 61


@pytest.mark.parametrize("tail", [0.025, 0.005])
def test_the_interval_holds_what_its_tail_states(tail: float) -> None:
    """With less error on each side the interval is wider, and misses the truth about as often as it says."""
    rows = np.random.default_rng(8).standard_normal((2000, 101))
    missed = 1 - coverage(rows, 0.0, lambda row: median_interval(row, tail))
    assert tail / 2 <= missed <= 2.6 * tail


def test_few_samples_have_a_value_and_no_interval() -> None:
    """Five samples cannot bound a median at 95 %; six can, by their ends."""
    assert median_interval([3, 1, 2, 5, 4]) == Estimate(3.0)
    assert median_interval([3]).relative_half_width == float("inf")
    found = median_interval([3, 1, 6, 2, 5, 4])
    assert (found.value, found.low, found.high) == pytest.approx((3.5, 1.1, 5.9))


def test_a_constant_series_is_exact() -> None:
    """A series that never changes has an interval of no width."""
    assert median_interval([7] * 50) == Estimate(7.0, 7.0, 7.0)
    assert median_ratio_interval([8] * 50, [4] * 50) == Estimate(2.0, 2.0, 2.0)


def test_a_drifting_series_is_worth_few_samples() -> None:
    """A steady drift leaves little that is independent, so the interval is wide."""
    drift = np.linspace(1.0, 2.0, 1000)
    assert effective_samples(drift <= np.median(drift)) < 10
    assert median_interval(drift).relative_half_width > 0.1


@pytest.mark.parametrize(("a", "b"), [([1, 2, 3], [1, 2]), ([], [])])
def test_unpaired_or_empty_series_are_refused(a: list[int], b: list[int]) -> None:
    """A ratio needs as many samples of one as of the other, and at least one."""
    with pytest.raises(ValueError, match=r"got (3 and 2|no) samples"):
        median_ratio_interval(a, b)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=120))
def test_an_interval_contains_its_value_and_lies_within_the_samples(samples: list[int]) -> None:
    """Whatever the samples: min <= low <= value <= high <= max."""
    for q in (50.0, 90.0):
        found = percentile(samples, q)
        if found is not None and found.low is not None and found.high is not None:
            assert min(samples) <= found.low <= found.value <= found.high <= max(samples)


def test_scale_and_direction() -> None:
    """Swapping a pair inverts its ratio, and a change of unit changes nothing."""
    generator = np.random.default_rng(7)
    a, b = generator.lognormal(0, 0.1, (2, 301))
    there, back = median_ratio_interval(a * 1e6, b * 1e6), median_ratio_interval(b * 1e9, a * 1e9)
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / (back.high or 0))


def test_no_interval_beyond_what_dependent_samples_can_bound() -> None:
    """A p99 of samples that are worth only a few has no interval, rather than a made-up one."""
    found = percentile(np.linspace(1.0, 2.0, 1000), 99)
    assert found is not None
    assert found.value == pytest.approx(1.99, abs=1e-3)
    assert (found.low, found.high) == (None, None)
