"""How well a classifier does on each class: the confusion matrix, and what follows from it, with 95 % intervals.

No interval here is drawn at random. Recall and precision are shares of examples (Wilson). So is the Jaccard index
`tp / (tp + fp + fn)`, of which F1 is a rising function, `2 J / (1 + J)`: its limits are those of J, seen through it.
Means over classes join the intervals of the classes by MOVER (Zou and Donner 2008); one confusion counts against the F1
of two classes, and the correlation that comes of it is counted in. A bootstrap would be empty where nothing was wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log, log1p

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BadInput
from .metrics import Estimate, mean_share, pair_of, wilson


@dataclass(frozen=True, eq=False)
class ClassMetrics:
    """Shares `(0 to 1)` by class and their plain means.

    Attributes:
        confusion: how many examples of each class (row) were taken for each class (column), `(classes, classes)`.
        recall: the share of a class's examples that is recognised; None of a class without examples.
        precision: the share of what is taken for a class that is of it; None of a class that is never predicted.
        f1: the harmonic mean of the two; None of a class that neither occurs nor is predicted.
        macro_recall: over the classes with examples.
        macro_precision: over the classes that occur or are predicted; one that is never predicted counts as 0 with an
            interval from 0 to 1.
        macro_f1: over the classes that occur or are predicted.
        lowest_recall: of the class that is recognised worst. The lower limit is the lowest of the classes' limits: to
            hold for all, each must hold (Berger 1982). The upper one, exact, allows for having looked at all of them
            (Bonferroni).
    """

    confusion: NDArray[np.int64]
    recall: tuple[Estimate | None, ...]
    precision: tuple[Estimate | None, ...]
    f1: tuple[Estimate | None, ...]
    macro_recall: Estimate
    macro_precision: Estimate
    macro_f1: Estimate
    lowest_recall: Estimate


def confusion_matrix(predictions: ArrayLike, labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Count for each true class (row) how often it was taken for each class (column), `(classes, classes)`.

    Args:
        predictions: classes `(n,)`.
        labels: the true classes `(n,)`.
        classes: how many there are.

    Raises:
        BadInput: nothing to compare, unequal lengths, or a class outside `0..classes - 1`.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    found, truth = checked(predictions, labels, classes)
    counts = multiclass_confusion_matrix(torch.from_numpy(found), torch.from_numpy(truth), classes, validate_args=False)
    matrix: NDArray[np.int64] = counts.numpy().astype(np.int64)
    return matrix


def class_metrics(predictions: ArrayLike, labels: ArrayLike, classes: int) -> ClassMetrics:
    """Return recall, precision and F1 of every class and their means, each with its 95 % interval.

    Args:
        predictions: classes `(n,)`.
        labels: the true classes `(n,)`.
        classes: how many there are.

    Raises:
        BadInput: nothing to compare, unequal lengths, or a class outside `0..classes - 1`.
    """
    confusion = confusion_matrix(predictions, labels, classes)
    right, there, taken = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    involved = there + taken - right
    recall, precision, jaccard = (_shares(right, whole) for whole in (there, taken, involved))
    f1 = tuple(share and _f1_of(share) for share in jaccard)
    counted = [part or Estimate(0.0, 0.0, 1.0) for part, n in zip(precision, involved, strict=True) if n]
    return ClassMetrics(
        confusion,
        recall,
        precision,
        f1,
        mean_share([part for part in recall if part]),
        mean_share(counted),
        mean_share([part for part in f1 if part], _f1_correlation(confusion)),
        _lowest(right[there > 0], there[there > 0]),
    )


def checked(predictions: ArrayLike, labels: ArrayLike, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return predictions and labels `(n,)` as class numbers.

    Raises:
        BadInput: nothing to compare, unequal lengths, or a class outside `0..classes - 1`.
    """
    found, truth = (one.astype(np.int64) for one in pair_of(predictions, labels))
    for what, one in (("predictions", found), ("labels", truth)):
        if not 0 <= one.min() <= one.max() < classes:
            raise BadInput(f"{what} run from {one.min()} to {one.max()}, but there are {classes} classes")
    return found, truth


def _shares(right: NDArray[np.int64], whole: NDArray[np.int64]) -> tuple[Estimate | None, ...]:
    return tuple(wilson(int(r), int(n)) if n else None for r, n in zip(right, whole, strict=True))


def _f1_of(jaccard: Estimate) -> Estimate:
    return Estimate(*(2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high)))


def _f1_correlation(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how the F1 of the classes that occur or are predicted go together, to first order.

    An example of class a taken for b moves both of their Jaccard indices down, by J / m with m = tp + fp + fn, and one
    taken rightly moves its own up, by (1 - J) / m; no other example touches a class.
    """
    right = confusion.diagonal()
    m = confusion.sum(0) + confusion.sum(1) - right
    errors = (confusion + confusion.T - 2 * np.diag(right))[np.ix_(m > 0, m > 0)]
    right, m = right[m > 0], m[m > 0]
    jaccard: NDArray[np.float64] = right / m
    spread = np.sqrt(jaccard * (1 - jaccard) / m)
    moved = np.divide(jaccard / m, spread, out=np.zeros(len(m)), where=spread > 0)
    correlation: NDArray[np.float64] = errors.astype(np.float64) * np.outer(moved, moved)
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _lowest(right: NDArray[np.int64], there: NDArray[np.int64]) -> Estimate:
    parts = [wilson(int(r), int(n)) for r, n in zip(right, there, strict=True)]
    level = 0.025 / len(there)
    tops = [_exact_high(int(r), int(n), level) for r, n in set(zip(right.tolist(), there.tolist(), strict=True))]
    value = min(part.value for part in parts)
    return Estimate(value, min(part.low for part in parts), max(value, min(tops)))


def _exact_high(right: int, n: int, level: float) -> float:
    """Return the share at which `right` of `n` or fewer have this probability (Clopper and Pearson 1934).

    Wilson's limits are too short so far out in the tail.
    """
    if right == n:
        return 1.0
    k = np.arange(right + 1)
    ways = np.array([lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in range(right + 1)])
    low, high = right / n, 1.0
    for _ in range(40):
        share = (low + high) / 2
        tail = np.exp(ways + k * log(share) + (n - k) * log1p(-share)).sum()
        low, high = (share, high) if tail > level else (low, share)
    return high
