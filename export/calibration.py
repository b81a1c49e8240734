"""Find the ranges of activations from examples, batch by batch: memory does not grow with their number.

A histogram per tensor is all that is kept. Its range doubles when a value lies outside, two bins becoming one, so one
look at each example is enough and no example is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from .artifact import Target
from .quant_grid import Range, grid_of
from .quant_stream import Feeds, refuse_no_numbers, values_of

Array = NDArray[Any]
Method = Literal["minmax", "percentile", "entropy", "mse"]

METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")
BINS = 4096
"""Of a histogram over both signs."""

_CUT = 1e-5
"""Of all values, the share that `percentile` leaves out at each end: 99.999 % stay, as far as is usual."""

_MOST_CUT = 1e-3
"""Of all values, the share that `entropy` may cut off. What a first layer makes of an even background is a spike in the
histogram; spread over its level it counts as a great loss, and as none on a grid as fine as the bins, though that cuts
a tenth of all values off.
"""

_SHARES = np.linspace(1.0, 0.3, 36)


class Histogram:
    """How often values fall where; `reach` is the largest magnitude that it holds.

    It is a power of two, so that bins are the same in whatever order values come.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.reach = 0.0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Array) -> None:
        """Count values, of any shape; an empty array changes nothing."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self.reach:
            found, _ = np.histogram(values, len(self.counts), (-self.reach, self.reach))
            self.counts += found

    def _widen(self, wanted: float) -> None:
        if not self.reach and wanted:
            self.reach = float(2 ** np.ceil(np.log2(wanted)))
        while self.reach < wanted:
            quarter = len(self.counts) // 4
            halved = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(halved, quarter)
            self.reach *= 2

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        count = len(self.counts)
        return np.asarray((np.arange(count) + 0.5) * (2 * self.reach / count) - self.reach, np.float64)


@dataclass(frozen=True)
class Calibrating:
    """How ranges are found.

    Attributes:
        method: `minmax` holds every value; `percentile` leaves out the outermost 0.001 % at each end; `entropy` cuts
            where the distribution of magnitudes loses least by Kullback and Leibler's divergence (Migacz 2017), and
            never more than a thousandth of all values, which he does not limit; `mse` cuts where the squared error of
            the integers is least.
        target: whose integers they are.
    """

    method: Method = "minmax"
    target: Target = "cpu"


def observe(
    proto: ModelProto,
    names: Sequence[str],
    feeds: Iterable[Feeds],
    how: Calibrating,
    told: Callable[[int], object] = lambda done: None,
) -> dict[str, Range]:
    """Return the range of each tensor over all examples.

    Args:
        proto: an fp32 graph.
        names: of tensors in it.
        feeds: inputs by name, batch first, of any number of examples at a time.
        how: the method, and the target.
        told: called with the examples done so far.

    Raises:
        BadInput: a tensor becomes NaN or infinite, or the examples do not fit.
    """
    found = {name: Histogram() for name in names}
    for part in values_of(proto, names, feeds):
        refuse_no_numbers(part)
        for name, seen in found.items():
            seen.add(part.values[name])
        told(part.before + part.examples)
    return {name: range_of(seen, how) for name, seen in found.items()}


def range_of(seen: Histogram, how: Calibrating) -> Range:
    """Return the range that a method takes from a histogram."""
    if how.method == "minmax" or not seen.reach:
        return Range(min(seen.low, 0.0), max(seen.high, 0.0))
    return {"percentile": _percentile, "entropy": _entropy, "mse": _least_error}[how.method](seen, how.target)


def _percentile(seen: Histogram, target: Target) -> Range:
    total = np.cumsum(seen.counts) / seen.counts.sum()
    edge = seen.reach / len(seen.counts)
    low = seen.centres[int(np.searchsorted(total, _CUT))] - edge
    high = seen.centres[min(int(np.searchsorted(total, 1 - _CUT)), len(total) - 1)] + edge
    return Range(max(low, seen.low), min(high, seen.high))


def _entropy(seen: Histogram, target: Target) -> Range:
    half = len(seen.counts) // 2
    sizes = seen.counts[half:] + seen.counts[:half][::-1]
    least = int(np.searchsorted(np.cumsum(sizes), (1 - _MOST_CUT) * sizes.sum())) + 1
    sizes[0] = 0  # zeros are exact in every grid
    width = seen.reach / half
    last = int(np.flatnonzero(sizes)[-1]) + 1 if sizes.any() else 0
    levels = 256 if target == "cpu" and seen.low >= 0 else 128
    first = max(levels, least)
    stops = [*range(first, last, max(1, (last - first) // 64)), last]
    best = min(stops, key=lambda stop: _divergence(sizes, stop, levels)) if last else 0
    limit = best * width
    return Range(max(-limit, seen.low), min(limit, seen.high))


def _divergence(sizes: Array, stop: int, levels: int) -> float:
    """Return how far the first `stop` bins, in so many levels, are from all, the rest counted in the last."""
    right = sizes[:stop].astype(np.float64)
    right[-1] += sizes[stop:].sum()
    level = np.arange(stop) * levels // stop
    filled = sizes[:stop] > 0
    mass = np.bincount(level, sizes[:stop], levels)
    count = np.bincount(level, filled, levels)
    other = np.where(filled, (mass / np.maximum(count, 1))[level], 0.0)
    if not other.sum() or not right.sum():
        return float("inf")
    p, q = right / right.sum(), other / other.sum()
    both = (p > 0) & (q > 0)
    lost = p[(p > 0) & (q == 0)].sum()
    return float((p[both] * np.log(p[both] / q[both])).sum() + lost * 10)


def _least_error(seen: Histogram, target: Target) -> Range:
    """Cut both ends alike first, then each by itself."""
    span = Range(min(seen.low, 0.0), max(seen.high, 0.0))
    filled = np.flatnonzero(seen.counts)
    values, counts = seen.centres[filled], seen.counts[filled]

    def error(one: Range) -> float:
        return float((counts * np.square(grid_of(one, target).rounded(values) - values)).sum())

    best = min((Range(span.low * share, span.high * share) for share in _SHARES), key=error)
    best = min((Range(best.low * share, best.high) for share in _SHARES), key=error)
    return min((Range(best.low, best.high * share) for share in _SHARES), key=error)
