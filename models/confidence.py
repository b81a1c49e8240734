"""Whether a classifier is right as often as its probabilities say: expected calibration error, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BadInput
from .metrics import Z95, Estimate, accuracy, pair_of

BINS = 15
RESAMPLES = 1000
_SUM = 0.02
"""How far a row of probabilities may add up beside 1: half precision and integers round."""

Array = NDArray[np.float64]


def are_probabilities(scores: ArrayLike) -> bool:
    """Whether scores `(n, classes)` already are probabilities: none below zero, and every row adds up to 1."""
    found = np.asarray(scores, np.float64)
    return bool((found >= 0).all() and (np.abs(found.sum(1) - 1) <= _SUM).all())


def confidences(scores: ArrayLike, probabilities: bool = False) -> Array:
    """Return the probability of the highest class of each example `(n,)`: of the softmax of scores `(n, classes)`.

    Args:
        scores: before the softmax; minus infinity is a class that is ruled out.
        probabilities: they are those already, see `are_probabilities`.

    Raises:
        BadInput: scores are not a matrix, not a number, or infinite.
    """
    found = np.asarray(scores, np.float64)
    if found.ndim != 2 or found.shape[1] == 0:
        raise BadInput(f"scores of shape {found.shape}; wanted (n, classes)")
    top: Array = found.max(1)
    wrong = int((~np.isfinite(top)).sum())
    if wrong:
        raise BadInput(
            f"the scores of {wrong} of {len(found)} examples are not a number or infinite, so they have no "
            "probabilities; keep the last layers in fp32, or look for what overflows"
        )
    if probabilities:
        top = np.minimum(top, 1.0)
        return top
    softmax: Array = 1 / np.exp(found - top[:, None]).sum(1)
    return softmax


def calibration_error(confidence: ArrayLike, right: ArrayLike) -> Estimate:
    """Return the expected calibration error `(0 to 1)` of the predicted class, in `BINS` bins of equal width.

    Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017. The mean distance of confidence from accuracy by bin is too
    large by what chance adds, all the more the fewer the examples, and resamples add the same again: so the interval
    is the basic bootstrap's (Davison and Hinkley 1997, 5.2.1), which takes that off again. It begins at 0 where chance
    alone may do as much (consistency resampling, Bröcker and Smith 2007), and reaches at least as far up as the whole
    accuracy may lie from the mean confidence, since a bootstrap is empty where nothing was wrong.

    Args:
        confidence: probability of the predicted class `(n,)`, see `confidences`.
        right: whether it is the true one `(n,)`.

    Raises:
        BadInput: nothing to score, unequal lengths, or a confidence outside 0 to 1.
    """
    bins = _binned(confidence, right)
    value = _value(confidence, right)
    draws = np.array([bins.error(at) for at in _resamples(len(bins.gap))])
    low, high = _basic(value, draws)
    low = 0.0 if value <= np.percentile(bins.by_chance(), 97.5) else low
    share = accuracy(np.asarray(right, bool), np.ones(len(bins.gap), bool))
    mean = float(np.asarray(confidence, np.float64).mean())
    return Estimate(value, max(0.0, low), min(1.0, max(high, share.high - mean, mean - share.low)))


def calibration_change(
    before: ArrayLike, before_right: ArrayLike, after: ArrayLike, after_right: ArrayLike
) -> Estimate:
    """Return by how many points the second model's calibration error is higher, on the same examples `(n,)` each.

    Both models are resampled alike. The interval holds the basic bootstrap's, the percentile one's, since what chance
    adds to both cancels out in part, and what two models leave open that agree on every example (see `paired_drop`).
    Where one of them is nearly without error it covers about 90 %.

    Raises:
        BadInput: nothing to score, unequal lengths, or a confidence outside 0 to 1.
    """
    first, second = _binned(before, before_right), _binned(after, after_right)
    pair_of(first.gap, second.gap)
    n = len(first.gap)
    value = _value(after, after_right) - _value(before, before_right)
    draws = np.array([second.error(at) - first.error(at) for at in _resamples(n)])
    least = Z95 * 2**0.5 / (n + 2)
    ends = [*_basic(value, draws), *np.percentile(draws, (2.5, 97.5)).tolist(), value - least, value + least]
    return Estimate(100 * value, 100 * max(-1.0, min(ends)), 100 * min(1.0, max(ends)))


@dataclass(frozen=True, eq=False)
class _Binned:
    """Examples by bin `(n,)`, their confidence `(n,)`, and how far being right is above it `(n,)`."""

    place: NDArray[np.int64]
    sure: Array
    gap: Array

    def error(self, at: NDArray[np.int64]) -> float:
        """Return the calibration error of the examples at these places."""
        return float(np.abs(np.bincount(self.place[at], self.gap[at], BINS + 1)).sum()) / len(at)

    def by_chance(self) -> Array:
        """Return errors `(RESAMPLES,)` of models that are right as often as they say."""
        random, n = np.random.default_rng(1), len(self.sure)
        hits = (random.random(n) < self.sure for _ in range(RESAMPLES))
        sums = [np.abs(np.bincount(self.place, hit - self.sure, BINS + 1)).sum() for hit in hits]
        return np.array(sums, np.float64) / n


def _binned(confidence: ArrayLike, right: ArrayLike) -> _Binned:
    sure, hit = (one.astype(np.float64) for one in pair_of(confidence, right))
    if not ((sure >= 0) & (sure <= 1)).all():
        raise BadInput(f"confidences run from {sure.min():g} to {sure.max():g}; wanted probabilities from 0 to 1")
    # As torchmetrics: a bin holds its lower end, and what is certain has a bin of its own.
    edges = np.linspace(0, 1, BINS + 1)
    return _Binned(np.searchsorted(edges, sure, side="right") - 1, sure, hit - sure)


def _value(confidence: ArrayLike, right: ArrayLike) -> float:
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    sure, hit = np.asarray(confidence, np.float64), np.asarray(right)
    # Of the class that is predicted: whether it is the true one is a yes or no.
    return float(
        binary_calibration_error(
            torch.from_numpy(sure), torch.from_numpy(hit.astype(np.int64)), BINS, "l1", validate_args=False
        )
    )


def _resamples(n: int) -> Iterator[NDArray[np.int64]]:
    random = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield random.integers(0, n, n)


def _basic(value: float, draws: Array) -> tuple[float, float]:
    low, high = np.percentile(draws, (2.5, 97.5))
    return min(value, 2 * value - float(high)), max(value, 2 * value - float(low))
