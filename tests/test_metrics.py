"""Metrics agree with references, and their intervals cover what they promise."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shipworthy.models.errors import BadInput
from shipworthy.models.metrics import Estimate, accuracy, agreement, macro_recall, paired_drop


def _pairs(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return baseline, artifact and labels with these counts of right and wrong; the right class is 0."""
    counts = [both, lost, won, neither]
    return np.repeat([0, 0, 1, 1], counts), np.repeat([0, 1, 0, 1], counts), np.zeros(sum(counts), int)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_accuracy_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    """Wilson's limits equal the published ones (Newcombe 1998, "Two-sided confidence intervals", table I)."""
    found = accuracy(np.arange(n) < right, np.ones(n, bool))
    assert (found.value, found.low, found.high) == pytest.approx((right / n, low, high), abs=6e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_values_equal_torchmetrics() -> None:
    """Accuracy and macro recall equal those of torchmetrics, on unbalanced classes."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_recall

    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.6, 0.25, 0.1, 0.05]), 500, True, generator=generator)
    found = torch.where(
        torch.rand(500, generator=generator) < 0.7, labels, torch.randint(4, (500,), generator=generator)
    )
    wanted = (
        multiclass_accuracy(found, labels, 4, average="micro"),
        multiclass_recall(found, labels, 4, average="macro"),
    )
    assert (accuracy(found, labels).value, macro_recall(found, labels).value) == pytest.approx(
        [float(w) for w in wanted]
    )


def test_perfect_predictions_still_leave_doubt() -> None:
    """At 100 % the interval ends at 1 and begins below it."""
    labels = torch.arange(40) % 4
    for found in (accuracy(labels, labels), macro_recall(labels, labels), agreement(labels, labels)):
        assert found.value == found.high == 1.0
        assert 0.8 < found.low < 0.96


def test_agreement_ignores_labels_and_order() -> None:
    """Agreement is the share of equal predictions, whichever model comes first."""
    a, b = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])
    assert agreement(a, b) == agreement(b, a)
    assert agreement(a, b).value == 0.75


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.integers(0, 300)] * 4).filter(lambda counts: sum(counts) > 0))
def test_drop_is_antisymmetric_and_inside_its_interval(counts: tuple[int, int, int, int]) -> None:
    """Swapping the models negates the drop and its limits; the value lies between the limits, all within 100."""
    before, after, labels = _pairs(*counts)
    drop, rise = paired_drop(before, after, labels), paired_drop(after, before, labels)
    assert -100 <= drop.low <= drop.value <= drop.high <= 100
    assert (drop.value, drop.low, drop.high) == pytest.approx((-rise.value, -rise.high, -rise.low), abs=1e-9)
    assert drop.value == pytest.approx(100 * (accuracy(before, labels).value - accuracy(after, labels).value), abs=1e-9)


def test_drop_without_differences_narrows_with_examples() -> None:
    """With no discordant pair the interval is symmetric, not empty, and about 1/n wide."""
    widths = []
    for n in (100, 1000, 10_000):
        drop = paired_drop(*_pairs(n, 0, 0, 0))
        assert drop.value == 0
        assert drop.low == -drop.high < 0
        widths.append(drop.high)
    assert [a / b for a, b in itertools.pairwise(widths)] == pytest.approx([10, 10], rel=0.05)


@pytest.mark.parametrize(
    ("n", "lost", "won", "draws"),
    [
        (20, 0.1, 0.05, 1500),
        (50, 0.02, 0.02, 1500),
        (200, 0.05, 0.0, 1500),
        (500, 0.03, 0.01, 1500),
        (10_000, 0.015, 0.01, 600),
    ],
)
def test_drop_interval_covers(n: int, lost: float, won: float, draws: int) -> None:
    """The paired interval holds the true drop in about 95 of 100 experiments, also with few discordant pairs."""
    random = np.random.default_rng(1)
    counts = random.multinomial(n, [0.9 - lost, lost, won, 0.1 - won], size=draws)
    found = [paired_drop(*_pairs(*map(int, row))) for row in counts]
    covered = np.mean([one.low <= 100 * (lost - won) <= one.high for one in found])
    assert covered >= 0.935


def test_paired_interval_is_narrower_than_two_separate_ones() -> None:
    """Pairing pays: models that err on the same images are told apart by fewer images."""
    before, after, labels = _pairs(9200, 60, 40, 700)
    drop, a, b = paired_drop(before, after, labels), accuracy(before, labels), accuracy(after, labels)
    assert drop.high - drop.low < 0.5 * 100 * (a.high - a.low + b.high - b.low)


@pytest.mark.parametrize("recalls", [(0.95, 0.9, 0.99), (0.5, 0.7, 0.6), (1.0, 0.98, 0.9)])
def test_macro_recall_interval_covers(recalls: tuple[float, ...]) -> None:
    """The interval of macro recall holds the true mean in about 95 of 100 experiments, classes unbalanced."""
    random, sizes = np.random.default_rng(2), (40, 100, 200)
    labels, hits = np.repeat([0, 1, 2], sizes), 0
    for _ in range(600):
        right = random.random(len(labels)) < np.repeat(recalls, sizes)
        found = macro_recall(np.where(right, labels, 3), labels)
        hits += bool(found.low <= np.mean(recalls) <= found.high)
    assert hits / 600 >= 0.93


def test_macro_recall_refuses_labels_beyond_its_classes() -> None:
    """Where the number of classes is known, a label outside is told."""
    assert macro_recall([0, 1, 1], [0, 1, 0], 3).value == 0.75
    with pytest.raises(BadInput, match="labels run from 0 to 3, but there are 3 classes"):
        macro_recall([0, 1], [0, 3], 3)


@pytest.mark.parametrize("metric", [accuracy, agreement, macro_recall, lambda a, b: paired_drop(a, b, b)])
def test_metrics_refuse_what_cannot_be_scored(metric: Callable[..., Estimate]) -> None:
    """Nothing, unequal lengths and scores instead of classes are bad input."""
    with pytest.raises(BadInput, match="no predictions"):
        metric([], [])
    with pytest.raises(BadInput, match=r"\(3,\) against \(2,\)"):
        metric([1, 2, 3], [1, 2])
    with pytest.raises(BadInput, match="same length"):
        metric(np.zeros((4, 10)), np.zeros(4))
