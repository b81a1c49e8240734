"""Metrics of class predictions, each with a 95 % interval; pure functions on arrays of class numbers.

Intervals were chosen for their coverage at proportions near 0 and 1 and for small counts, where the usual Wald
interval fails (Fagerland, Lydersen and Laake 2014, "Recommended tests and confidence intervals for paired binomial
proportions").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BadInput

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, in the value's own unit."""

    value: float
    low: float
    high: float


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> Estimate:
    """Return the share `(0 to 1)` of predictions `(n,)` that equal their labels `(n,)`, with Wilson's interval (1927).

    Raises:
        BadInput: nothing to compare, or unequal lengths.
    """
    found, truth = pair_of(predictions, labels)
    return wilson(int((found == truth).sum()), len(truth))


def agreement(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Return the share `(0 to 1)` of examples for which two models predict the same class, with Wilson's interval.

    Raises:
        BadInput: nothing to compare, or unequal lengths.
    """
    return accuracy(first, second)


def macro_recall(predictions: ArrayLike, labels: ArrayLike, classes: int | None = None) -> Estimate:
    """Return the mean over classes of the share of their examples that is recognised (balanced accuracy).

    Classes without examples do not count. The interval joins Wilson's intervals of the classes, which are
    independent, by MOVER (Zou and Donner 2008): the squared distances to each limit add up.

    Args:
        predictions: classes `(n,)`.
        labels: the true classes `(n,)`.
        classes: how many classes there are; labels are checked against it.

    Raises:
        BadInput: nothing to compare, unequal lengths, or labels outside `0..classes - 1`.
    """
    found, truth = pair_of(predictions, labels)
    if classes is not None and not 0 <= truth.min() <= truth.max() < classes:
        raise BadInput(f"labels run from {truth.min()} to {truth.max()}, but there are {classes} classes")
    _, rows, counts = np.unique(truth, return_inverse=True, return_counts=True)
    right = np.bincount(rows, weights=found == truth)
    return mean_share([wilson(int(r), int(n)) for r, n in zip(right, counts, strict=True)])


def paired_drop(baseline: ArrayLike, artifact: ArrayLike, labels: ArrayLike) -> Estimate:
    """Return by how many points the artifact's accuracy is lower than the baseline's, on the same examples.

    Only examples on which one is right and the other wrong tell the two apart. The interval is Bonett and Price's
    adjusted Wald interval for paired proportions (2012): one example is added to each kind of discordant pair, which
    keeps its coverage with few of them or none.

    Args:
        baseline: the uncompressed model's classes `(n,)`.
        artifact: the compressed model's classes `(n,)`.
        labels: the true classes `(n,)`.

    Returns:
        `100 * (baseline accuracy - artifact accuracy)`, negative where the artifact is better.

    Raises:
        BadInput: nothing to compare, or unequal lengths.
    """
    before, truth = pair_of(baseline, labels)
    after, _ = pair_of(artifact, labels)
    lost = int(((before == truth) & (after != truth)).sum())
    won = int(((before != truth) & (after == truth)).sum())
    n = len(truth)
    p, q = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = Z95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return Estimate(100 * (lost - won) / n, max(-100.0, 100 * (p - q - half)), min(100.0, 100 * (p - q + half)))


def wilson(right: int, n: int) -> Estimate:
    """Return the share `right / n` with Wilson's interval."""
    share = right / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    # At 0 and 1 the limit is exact, rounding would leave it beside.
    return Estimate(share, 0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half)


def mean_share(parts: Sequence[Estimate], correlation: NDArray[np.float64] | None = None) -> Estimate:
    """Return the mean of shares `(0 to 1)` with the interval that MOVER makes of theirs (Zou and Donner 2008).

    Args:
        parts: at least one.
        correlation: of the parts, `(parts, parts)`; independent without it.
    """
    value, low, high = (np.array([getattr(part, name) for part in parts]) for name in ("value", "low", "high"))
    related = np.eye(len(parts)) if correlation is None else correlation
    below, above = (math.sqrt(max(0.0, float(d @ related @ d))) / len(parts) for d in (value - low, high - value))
    mean = float(value.mean())
    return Estimate(mean, max(0.0, mean - below), min(1.0, mean + above))


def pair_of(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two sequences of equal length as arrays `(n,)`.

    Raises:
        BadInput: nothing to compare, or unequal lengths.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 1 or a.shape != b.shape:
        raise BadInput(f"predictions of shape {a.shape} against {b.shape}; wanted two of the same length (n,)")
    if len(a) == 0:
        raise BadInput("no predictions to score; give at least one example")
    return a, b
