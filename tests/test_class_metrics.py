"""Metrics by class agree with torchmetrics and with counting by hand, and their intervals cover what they promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from shipworthy.models.class_metrics import class_metrics, confusion_matrix
from shipworthy.models.errors import BadInput
from shipworthy.models.metrics import Estimate, macro_recall
from shipworthy.models.paired_metrics import paired_changes

Cells = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def _examples(confusion: list[list[int]]) -> tuple[Cells, Cells]:
    """Return predictions and labels of so many examples by true class (row) and predicted class (column)."""
    counts = np.array(confusion)
    cells = np.repeat(np.arange(counts.size), counts.ravel())
    return cells % len(counts), cells // len(counts)


def _noisy(classes: int, n: int, right: float, seed: int = 0) -> tuple[Cells, Cells]:
    random = np.random.default_rng(seed)
    labels = random.choice(classes, n, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    return np.where(random.random(n) < right, labels, random.integers(0, classes, n)), labels


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_values_equal_torchmetrics() -> None:
    """The matrix, each class's recall, precision and F1, and their means are those of torchmetrics."""
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

    found, labels = _noisy(5, 700, 0.7)
    seen, pair = class_metrics(found, labels, 5), (torch.from_numpy(found), torch.from_numpy(labels))
    whole = {"recall": multiclass_recall, "precision": multiclass_precision, "f1": multiclass_f1_score}
    for name, metric in whole.items():
        each = [part.value for part in getattr(seen, name)]
        assert each == pytest.approx(metric(*pair, 5, average="none").tolist(), abs=1e-6)
        assert getattr(seen, f"macro_{name}").value == pytest.approx(float(metric(*pair, 5, average="macro")), abs=1e-6)
    assert seen.macro_recall == macro_recall(found, labels, 5)
    assert [seen.confusion[t, p] for t in range(5) for p in range(5)] == [
        int(((labels == t) & (found == p)).sum()) for t in range(5) for p in range(5)
    ]


def test_values_by_hand() -> None:
    """Two classes, counted by hand: 8 of 10 and 3 of 4 recognised."""
    seen = class_metrics(*_examples([[8, 2], [1, 3]]), 2)
    values = [[part.value for part in parts if part] for parts in (seen.recall, seen.precision, seen.f1)]
    assert values == [[0.8, 0.75], [8 / 9, 0.6], pytest.approx([16 / 19, 6 / 9])]
    assert seen.macro_f1.value == pytest.approx((16 / 19 + 6 / 9) / 2)
    assert seen.lowest_recall.value == 0.75
    for one in (*seen.recall, *seen.precision, *seen.f1, seen.macro_f1, seen.macro_precision, seen.lowest_recall):
        assert one
        assert 0 < one.low < one.value < one.high < 1


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    """It has a recall and an F1 of zero; in the mean its precision counts as zero and may be anything."""
    seen = class_metrics(*_examples([[9, 1, 0], [0, 10, 0], [2, 3, 0]]), 3)
    assert seen.precision[2] is None
    assert (seen.recall[2], seen.f1[2]) != (None, None)
    assert [one.value for one in (seen.recall[2], seen.f1[2], seen.lowest_recall) if one] == [0, 0, 0]
    assert seen.macro_precision.value == pytest.approx((9 / 11 + 10 / 14) / 3)
    assert seen.macro_precision.high > seen.macro_precision.value + 0.3
    unseen = class_metrics([0, 1, 1], [0, 1, 0], 3)
    assert (unseen.recall[2], unseen.precision[2], unseen.f1[2]) == (None, None, None)
    assert unseen.macro_f1.value == pytest.approx(2 / 3)


def test_perfect_predictions_still_leave_doubt() -> None:
    """At 100 % every interval ends at 1 and begins below it, and equal models may differ a little."""
    labels = np.arange(60) % 3
    seen, same = class_metrics(labels, labels, 3), paired_changes(labels, labels, labels, 3)
    for one in (*seen.recall, *seen.precision, *seen.f1, seen.macro_f1, seen.macro_precision, seen.lowest_recall):
        assert one
        assert one.value == one.high == 1.0
        assert 0.7 < one.low < 0.99
    for one in (*same.recall, *same.precision, *same.f1, same.macro_recall, same.macro_precision, same.macro_f1):
        assert one
        assert one.low < one.value == 0 < one.high


def test_changes_are_differences_of_the_two() -> None:
    """Each change is the second model's figure less the first's, in points; swapped models negate it."""
    before, labels = _noisy(4, 500, 0.8)
    after, _ = _noisy(4, 500, 0.7)
    change, back = paired_changes(before, after, labels, 4), paired_changes(after, before, labels, 4)
    first, second = (class_metrics(one, labels, 4) for one in (before, after))
    for name in ("recall", "precision", "f1"):
        for moved, returned, a, b in zip(*(getattr(one, name) for one in (change, back, first, second)), strict=True):
            assert moved.value == pytest.approx(100 * (b.value - a.value), abs=1e-9)
            assert moved.value == pytest.approx(-returned.value, abs=1e-9)
            assert moved.low <= moved.value <= moved.high
        whole = [getattr(one, f"macro_{name}").value for one in (change, first, second)]
        assert whole[0] == pytest.approx(100 * (whole[2] - whole[1]), abs=1e-9)
    assert change == paired_changes(before, after, labels, 4)


def test_what_a_model_never_predicts_has_no_change_of_precision() -> None:
    """Recall and F1 fall to zero, precision is not compared."""
    labels = np.arange(40) % 2
    change = paired_changes(labels, np.zeros(40, int), labels, 2)
    assert change.precision[1] is None
    assert [one and one.value for one in (change.recall[1], change.f1[1])] == [-100, -100]


def test_pairing_narrows_changes() -> None:
    """Models that err on the same examples are told apart by fewer."""
    before, labels = _noisy(4, 2000, 0.8)
    flips = np.random.default_rng(1).random(2000) < 0.01
    after = np.where(flips, (before + 1) % 4, before)
    change = paired_changes(before, after, labels, 4).macro_f1
    apart = [class_metrics(one, labels, 4).macro_f1 for one in (before, after)]
    assert change.high - change.low < 0.5 * 100 * sum(one.high - one.low for one in apart)


def _joint(classes: int, right: float, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the probability of each true and predicted class, errors spread unevenly."""
    spread = np.random.default_rng(seed).random((classes, classes)) ** 3
    np.fill_diagonal(spread, 0)
    joint = spread / spread.sum(1, keepdims=True) * (1 - right) + right * np.eye(classes)
    prior = np.arange(1, classes + 1)
    return np.asarray(joint * (prior / prior.sum())[:, None], np.float64)


@pytest.mark.parametrize(("classes", "n", "right"), [(2, 200, 0.85), (5, 600, 0.9), (10, 2000, 0.8)])
def test_intervals_cover(classes: int, n: int, right: float) -> None:
    """The intervals of F1, precision, their means and the lowest recall hold the truth in about 95 of 100 draws."""
    joint, random = _joint(classes, right, classes), np.random.default_rng(3)
    diagonal, there, taken = joint.diagonal(), joint.sum(1), joint.sum(0)
    truth = {"precision": diagonal / taken, "f1": 2 * diagonal / (there + taken)}
    hits: dict[str, list[bool]] = {name: [] for name in ("precision", "f1", "macro_precision", "macro_f1", "lowest")}
    for _ in range(300):
        counts = random.multinomial(n, joint.ravel()).reshape(classes, classes)
        seen = class_metrics(*_examples(counts.tolist()), classes)
        for name, values in truth.items():
            hits[name] += [one.low <= value <= one.high for one, value in zip(getattr(seen, name), values, strict=True)]
            mean: Estimate = getattr(seen, f"macro_{name}")
            hits[f"macro_{name}"].append(mean.low <= values.mean() <= mean.high)
        hits["lowest"].append(seen.lowest_recall.low <= (diagonal / there).min() <= seen.lowest_recall.high)
    assert {name: np.mean(found) >= 0.92 for name, found in hits.items()} == dict.fromkeys(hits, True)


def test_intervals_of_changes_cover() -> None:
    """The paired intervals hold the true changes in about 95 of 100 draws or more."""
    classes, random = 4, np.random.default_rng(4)
    before = _joint(classes, 0.85, 1)
    moves = _joint(classes, 0.95, 2)
    moves = moves / moves.sum(1, keepdims=True)
    joint = (before[:, :, None] * moves[None]).ravel()
    pairs = [joint.reshape(3 * [classes]).sum(axis) for axis in (2, 1)]
    f1 = [2 * one.diagonal() / (one.sum(0) + one.sum(1)) for one in pairs]
    truth, hits, means = 100 * (f1[1] - f1[0]), [], []
    for _ in range(150):
        cells = np.repeat(np.arange(classes**3), random.multinomial(500, joint))
        seen = paired_changes(cells // classes % classes, cells % classes, cells // classes**2, classes)
        hits += [one is not None and one.low <= value <= one.high for one, value in zip(seen.f1, truth, strict=True)]
        means.append(seen.macro_f1.low <= truth.mean() <= seen.macro_f1.high)
    assert np.mean(hits) >= 0.93
    assert np.mean(means) >= 0.92


@pytest.mark.parametrize("metric", [confusion_matrix, class_metrics, lambda a, b, k: paired_changes(a, b, b, k)])
def test_what_is_no_class_is_refused(metric: Callable[..., object]) -> None:
    """Nothing, unequal lengths and classes that there are not are bad input."""
    with pytest.raises(BadInput, match="no predictions"):
        metric([], [], 2)
    with pytest.raises(BadInput, match=r"\(3,\) against \(2,\)"):
        metric([0, 1, 1], [0, 1], 2)
    with pytest.raises(BadInput, match="predictions run from 0 to 2, but there are 2 classes"):
        metric([0, 2], [0, 1], 2)
    with pytest.raises(BadInput, match="labels run from -1 to 1, but there are 2 classes"):
        metric([0, 1], [-1, 1], 2)
