"""What compression changed on each class: two models on the same examples, so that what both get wrong cancels out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .class_metrics import checked
from .metrics import Estimate, paired_drop

RESAMPLES = 2000
_AT_ONCE = 4_000_000
"""Counts of resamples that are held at once."""

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class PairedChanges:
    """After minus before, in points (100 times a share), negative where the second model is worse.

    Attributes:
        recall: by class; None of a class without examples.
        precision: by class; None of a class that one of the models never predicts.
        f1: by class; None of a class that does not occur and one of the models never predicts.
        macro_recall: of the means over classes, as in `ClassMetrics`.
        macro_precision: of the means over classes.
        macro_f1: of the means over classes.
    """

    recall: tuple[Estimate | None, ...]
    precision: tuple[Estimate | None, ...]
    f1: tuple[Estimate | None, ...]
    macro_recall: Estimate
    macro_precision: Estimate
    macro_f1: Estimate


def paired_changes(
    before: ArrayLike, after: ArrayLike, labels: ArrayLike, classes: int, seed: int = 0
) -> PairedChanges:
    """Return what changed for each class and on their mean, with 95 % intervals over the same examples.

    Recall is a paired proportion (Bonett and Price, see `paired_drop`). For the rest examples are drawn anew, with
    what both models said of each (the paired percentile bootstrap, Efron and Tibshirani 1993), `RESAMPLES` times. As by
    Bonett and Price one example is added that only the first model gets right and one that only the second does: to
    each class for its own figures, spread over all classes for the means. Otherwise models that agree everywhere would
    be equal without doubt. A class is confused with the next one in these.

    Args:
        before: the uncompressed model's classes `(n,)`.
        after: the compressed model's classes `(n,)`.
        labels: the true classes `(n,)`.
        classes: how many there are.
        seed: of the resamples.

    Raises:
        BadInput: nothing to compare, unequal lengths, or a class outside `0..classes - 1`.
    """
    first, truth = checked(before, labels, classes)
    second, _ = checked(after, labels, classes)
    kinds, counts = np.unique((truth * classes + first) * classes + second, return_counts=True)
    whole = _Triples(kinds, counts.astype(np.float64), classes)
    exact = whole.changes(counts[None])
    recall = tuple(_recall_change(first[at], second[at], c) for c in range(classes) for at in (truth == c,))
    each, means = (whole.with_doubt(weight).resampled(seed) for weight in (1.0, 1.0 / len(np.unique(truth))))
    taken = np.bincount(first, minlength=classes) * np.bincount(second, minlength=classes) > 0
    known = (taken, taken | (np.bincount(truth, minlength=classes) > 0))
    precision, f1 = (_intervals(exact.of_classes[k][0], each.of_classes[k], known[k - 1]) for k in (1, 2))
    macros = _intervals(exact.of_means[:, 0], means.of_means.T, np.ones(3, bool))
    return PairedChanges(recall, precision, f1, *(one for one in macros if one))


@dataclass(frozen=True)
class _Changes:
    """Changes in points of recall, precision and F1: by class `(3, resamples, classes)`, of means `(3, resamples)`."""

    of_classes: Shares
    of_means: Shares


@dataclass(frozen=True)
class _Triples:
    """How often each triple of true class, class before and class after occurs; its number is `(t * k + b) * k + a`."""

    kinds: Counts
    counts: Shares
    classes: int

    def with_doubt(self, weight: float) -> _Triples:
        """Add to each class one that only the first model gets right and one that only the second does."""
        k = self.classes
        here = np.unique(self.kinds // (k * k))
        other = (here + 1) % k
        lost, won = ((here * k + b) * k + a for b, a in ((here, other), (other, here)))
        kinds, places = np.unique(np.concatenate([self.kinds, lost, won]), return_inverse=True)
        weights = np.concatenate([self.counts, np.full(2 * len(here), weight)])
        return _Triples(kinds, np.bincount(places, weights).astype(np.float64), k)

    def resampled(self, seed: int) -> _Changes:
        """Return the changes in `RESAMPLES` draws of as many examples."""
        random, total = np.random.default_rng(seed), self.counts.sum()
        step = max(1, _AT_ONCE // max(len(self.kinds), self.classes))
        sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
        parts = [self.changes(random.multinomial(round(total), self.counts / total, size)) for size in sizes]
        return _Changes(
            np.concatenate([part.of_classes for part in parts], 1), np.concatenate([part.of_means for part in parts], 1)
        )

    def changes(self, draws: Counts) -> _Changes:
        """Return the changes of draws `(resamples, kinds)`."""
        rest, after = np.divmod(self.kinds, self.classes)
        truth, before = np.divmod(rest, self.classes)
        there = self._sums(draws, truth)
        first, second = (self._scores(draws, truth, taken, there) for taken in (before, after))
        return _Changes(100 * (second.of_classes - first.of_classes), 100 * (second.of_means - first.of_means))

    def _scores(self, draws: Counts, truth: Counts, taken: Counts, there: Counts) -> _Changes:
        hit = truth == taken
        right, found = self._sums(draws[:, hit], truth[hit]), self._sums(draws, taken)
        shares = np.stack([_divided(right, there), _divided(right, found), _divided(2 * right, there + found)])
        # As in `ClassMetrics`: a class that is not there has no recall; one that is never predicted a precision of 0.
        counted = np.stack([there > 0, there + found > 0, there + found > 0])
        return _Changes(shares, (np.where(counted, shares, 0).sum(2)) / counted.sum(2))

    def _sums(self, draws: Counts, groups: Counts) -> Counts:
        """Add the columns of each class up, `(resamples, classes)`."""
        sums = np.zeros((len(draws), self.classes), np.int64)
        if len(groups):
            order = np.argsort(groups, kind="stable")
            here, starts = np.unique(groups[order], return_index=True)
            sums[:, here] = np.add.reduceat(draws[:, order], starts, axis=1)
        return sums


def _divided(part: Counts, whole: Counts) -> Shares:
    shares: Shares = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
    return shares


def _recall_change(before: Counts, after: Counts, label: int) -> Estimate | None:
    if len(before) == 0:
        return None
    drop = paired_drop(before, after, np.full(len(before), label))
    return Estimate(-drop.value + 0.0, -drop.high, -drop.low)


def _intervals(values: Shares, draws: Shares, known: NDArray[np.bool_]) -> tuple[Estimate | None, ...]:
    """Return each value `(k,)` with the middle 95 % of its draws `(resamples, k)`; None where nothing is known."""
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    ends = zip(values.tolist(), low.tolist(), high.tolist(), known.tolist(), strict=True)
    return tuple(Estimate(value, min(value, a), max(value, b)) if told else None for value, a, b, told in ends)
