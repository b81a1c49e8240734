"""Percentiles and paired ratios with 95 % intervals. Pure functions on arrays of nanoseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = Sequence[int] | Sequence[float] | npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]

TAIL = 0.025
_NORMAL = NormalDist()
_FIRST_LAGS, _BLOCK = 1 << 10, 1 << 15
LEAST_WORTH = 0.4
FEWEST_FOR_INTERVAL = 6  # of 5 samples, all lie on one side of the median in 2 * 0.5**5 = 6 % of cases


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; an end is None where the samples cannot bound it."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width as a share of the value; infinite where an end is unknown."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / 2 / self.value if self.value else math.inf


def in_ms(found: Estimate) -> str:
    """Write an estimate in nanoseconds as milliseconds with its interval."""
    if found.low is None or found.high is None:
        return f"{found.value / 1e6:.4g} ms (too few for an interval)"
    return f"{found.value / 1e6:.4g} ms ({found.low / 1e6:.4g} to {found.high / 1e6:.4g})"


def fewest_samples(q: float) -> int:
    """Return how many samples the `q`-th percentile needs before it is worth printing.

    These are the early-stopping bounds of MLPerf's load generator: 64 for p90, 662 for p99. A median needs one.
    """
    share = max(q, 100 - q) / 100
    return 1 if share == 0.5 else math.ceil(math.log(0.0013) / math.log(share))


def percentile(samples: Samples, q: float, tail: float = TAIL, *, independent: bool = False) -> Estimate | None:
    """Estimate the `q`-th percentile, in the samples' unit.

    The interval is made of order statistics, so it assumes nothing about the distribution; between two of them it is
    interpolated (Beran and Hall, "Interpolated nonparametric prediction intervals and confidence intervals", 1993), so
    that it holds what it states for few samples too. Where samples depend on their predecessors it is as wide as the
    number of independent samples that they are worth demands.

    Args:
        samples: in the order in which they were taken, shape `(samples,)`.
        q: above 0 and below 100.
        tail: error on each side.
        independent: whether samples are known not to depend on each other, such as those of fresh processes.

    Returns:
        The estimate, or None for fewer than `fewest_samples(q)` samples. It has no interval where they, or those around
        the median, are worth fewer than two fifths of that.
    """
    x = np.asarray(samples)  # no copy of what is an array already
    if x.size < fewest_samples(q):
        return None
    ordered = np.sort(x)
    value = _plain(ordered, q)
    worth, freedom = (float(x.size), math.inf) if independent else _worth(x, ordered, q)
    if x.size < FEWEST_FOR_INTERVAL or not worth:
        return Estimate(value)
    low, high = _ranks_of_dependent(x.size, worth, q / 100, student_tail(tail, freedom))
    return Estimate(value, _at_rank(ordered, low), _at_rank(ordered, high))


def _plain(ordered: npt.NDArray[Any], q: float) -> float:
    """Return the `q`-th percentile of ordered samples, interpolated as numpy does by default."""
    return _at_place(ordered, q / 100 * (ordered.size - 1))


def _worth(x: npt.NDArray[Any], ordered: npt.NDArray[Any], q: float) -> tuple[float, float]:
    """Return what samples are worth for a percentile, and with how many degrees of freedom; nothing if too little.

    How the samples on one side of a percentile depend on each other is hardly known where one side is rarely visited.
    So a second view has its say where it shows more dependence: for a tail that of the samples around the median, for
    the median that of the times themselves, in which bursts weigh more. The shares of these views (in logs) and the
    least worth are from simulation, see `benchmarks/profiler.py coverage`; the further out a tail, the less the
    median's dependence is its own (in Gaussian series extremes become independent; Sibuya, "Bivariate extreme
    statistics", 1960).
    """
    worth, freedom = _dependence(x <= _plain(ordered, q))
    if q == 50:
        other, say = _dependence(x)[0], 0.12
    else:
        other, say = _dependence(x <= _plain(ordered, 50))[0], 0.4 * (min(q, 100 - q) / 10) ** 0.3
    worth = min(worth, worth ** (1 - say) * other**say)
    return (worth if min(worth, other) >= LEAST_WORTH * fewest_samples(q) else 0.0), freedom


def _at_rank(ordered: npt.NDArray[Any], rank: float) -> float | None:
    """Return the order statistic at a 1-based rank, interpolated; None beyond the samples."""
    if not 1 <= rank <= ordered.size:
        return None
    return _at_place(ordered, rank - 1)


def _at_place(ordered: npt.NDArray[Any], place: float) -> float:
    """Return what lies at a place between 0 and the last one, interpolated."""
    whole = math.floor(place)
    low, high = float(ordered[whole]), float(ordered[min(whole + 1, ordered.size - 1)])
    return low + (place - whole) * (high - low)


def median_interval(samples: Samples, tail: float = TAIL) -> Estimate:
    """Estimate the median of one series of at least one sample, in the samples' unit."""
    found = percentile(samples, 50, tail)
    if found is None:
        raise ValueError("median_interval: got no samples, wanted at least one")
    return found


def mean_interval(samples: Samples, tail: float = TAIL) -> Estimate:
    """Estimate the mean of one series, in the samples' unit: Student's interval for as many samples as it is worth.

    Raises:
        ValueError: there are no samples.
    """
    x = np.asarray(samples, dtype=np.float64)
    if not x.size:
        raise ValueError("mean_interval: got no samples, wanted at least one")
    value, (worth, freedom) = float(x.mean()), _dependence(x)
    if worth < FEWEST_FOR_INTERVAL:
        return Estimate(value)
    half = -_NORMAL.inv_cdf(student_tail(tail, min(freedom, worth - 1))) * float(x.std(ddof=1)) / math.sqrt(worth)
    return Estimate(value, value - half, value + half)


def median_ratio_interval(a_ns: Samples, b_ns: Samples, tail: float = TAIL) -> Estimate:
    """Estimate the median of the paired ratios `a / b`: above 1 means that b is faster.

    Args:
        a_ns: shape `(rounds,)`; sample i was taken in the same round as sample i of `b_ns`.
        b_ns: shape `(rounds,)`, above zero.
        tail: error on each side.

    Raises:
        ValueError: the series differ in length or are empty.
    """
    a, b = np.asarray(a_ns, dtype=np.float64), np.asarray(b_ns, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"median_ratio_interval: got {a.size} and {b.size} samples, wanted equal numbers")
    return median_interval(a / np.maximum(b, 1.0), tail)


def effective_samples(series: npt.NDArray[Any]) -> float:
    """Return how many independent samples an autocorrelated series is worth, from 1 to its length.

    The series' length over its integrated autocorrelation time, by the initial monotone sequence of Geyer
    ("Practical Markov chain Monte Carlo", 1992). On short, strongly correlated series it covers better than windows
    that grow with the estimate. The time is never taken to be below 1: anticorrelation does not narrow an interval.
    """
    return _dependence(series)[0]


def _dependence(series: npt.NDArray[Any]) -> tuple[float, float]:
    """Return what a series is worth, and with how many degrees of freedom that is known.

    An autocorrelation time summed up to lag m of n samples is too small by a share of about (2 m + 1) / n, since the
    mean is estimated too (Wolff, "Monte Carlo errors with less errors", 2004), and has a relative variance of twice
    that (Sokal, "Monte Carlo methods in statistical mechanics", 1996): a variance's with n / (2 m + 1) degrees.
    """
    initial = _initial_pairs(series)
    time = 2 * float(np.minimum.accumulate(initial).sum()) - 1 if initial.size else 1.0
    last_lag = max(0, 2 * initial.size - 1)
    if time <= 1:
        return float(series.size), math.inf
    share = (2 * last_lag + 1) / series.size
    return max(1.0, series.size / (time * (1 + share))), 1 / share


def student_tail(tail: float, freedom: float) -> float:
    """Return the normal tail beyond the point that Student's t with so many degrees of freedom exceeds with `tail`.

    By the first terms of the expansion in 1 / freedom (Abramowitz and Stegun 26.7.5); below 3 degrees those of 3.
    """
    z, nu = -_NORMAL.inv_cdf(tail), max(freedom, 3.0)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return _NORMAL.cdf(-(z + first / nu + second / nu**2))


def _initial_pairs(series: npt.NDArray[Any]) -> _Floats:
    """Return the sums of the autocorrelation at lags 0 and 1, 2 and 3, ..., up to the first that is not above zero."""
    lags = min(_FIRST_LAGS, series.size)
    while True:
        rho = _autocorrelation(series, lags)
        pairs = rho[0 : lags // 2 * 2 : 2] + rho[1 : lags // 2 * 2 : 2]
        negative = np.flatnonzero(pairs <= 0)
        if negative.size or lags == series.size:
            return pairs[: negative[0]] if negative.size else pairs
        lags = min(4 * lags, series.size)


def _autocorrelation(series: npt.NDArray[Any], lags: int) -> _Floats:
    """Return the autocorrelation at lags 0, 1, ..., `lags - 1`; of a constant series 1, 0, 0, ...

    Block by block, so that a long series needs neither a transform nor a copy of its own length.
    """
    n, mean = series.size, float(series.mean())
    block = min(n, max(_BLOCK, lags))
    size = 1 << (2 * block + lags - 1).bit_length()
    found, power = np.zeros(lags), 0.0
    for start in range(0, n, block):
        ahead = series[start : start + block + lags - 1] - mean
        own = ahead[:block]
        power += float(own @ own)
        spectrum = np.fft.rfft(own, size).conj() * np.fft.rfft(ahead, size)
        found += np.fft.irfft(spectrum, size)[:lags]
    if power <= n * (1e-12 * mean) ** 2:  # equal but for rounding
        return np.concatenate(([1.0], np.zeros(lags - 1)))
    return np.asarray(found / power, dtype=np.float64)


def _ranks_of_dependent(n: int, worth: float, share: float, tail: float) -> tuple[float, float]:
    """Return the 1-based ranks that bound a quantile of `n` samples worth `worth` independent ones."""
    m = min(n, max(FEWEST_FOR_INTERVAL, math.floor(worth)))
    low, high = _ranks(m, share, tail)
    stretch = (n + 1) / (m + 1)
    return (max(1.0, low * stretch) if low >= 1 else 0.0), (min(float(n), high * stretch) if high <= m else n + 1.0)


@lru_cache(maxsize=1024)
def _ranks(n: int, share: float, tail: float) -> tuple[float, float]:
    """Return the ranks, between whole ones, with `tail` of the binomial beyond each; 0 or `n + 1` where none has it."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    log_mass = log_factorial[n] - log_factorial - log_factorial[::-1] + k * math.log(share)
    mass = np.exp(log_mass + (n - k) * math.log1p(-share))
    return _rank(mass, tail), n + 1 - _rank(mass[::-1], tail)


def _rank(mass: _Floats, tail: float) -> float:
    """Return the rank with `tail` of a binomial below it, at the least 1 or else 0."""
    below = np.cumsum(mass)
    whole = int(np.searchsorted(below, tail, side="right"))
    if whole == 0:
        return 0.0
    return whole + float((tail - below[whole - 1]) / mass[whole])
