"""Confidences are softmaxes, their calibration error is torchmetrics', and its intervals cover what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shipworthy.models.confidence import are_probabilities, calibration_change, calibration_error, confidences
from shipworthy.models.errors import BadInput

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _draw(
    n: int, bias: float, random: np.random.Generator
) -> tuple[Array, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    """Return confidences, and whether they were right: less often than they say by the share `bias`."""
    sure = 0.1 + 0.9 * random.beta(8, 1.5, n)
    return sure, random.random(n) < sure * (1 - bias)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_error_is_torchmetrics() -> None:
    """Scores, their softmax and the class that is predicted give the multiclass calibration error."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(400, 6, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(400, generator=generator) < 0.6, scores.argmax(1), torch.randint(6, (400,)))
    wanted = float(multiclass_calibration_error(scores.softmax(1), labels, 6, 15, "l1"))
    sure = confidences(scores.numpy())
    np.testing.assert_allclose(sure, scores.softmax(1).amax(1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(confidences(scores.softmax(1).numpy(), True), sure, rtol=1e-12)
    assert calibration_error(sure, (scores.argmax(1) == labels).numpy()).value == pytest.approx(wanted, abs=1e-6)


def test_the_error_by_hand() -> None:
    """Two bins: 0.9 said and 3 of 4 right, 0.5 said and 1 of 2 right."""
    found = calibration_error([0.9] * 4 + [0.5] * 2, [1, 1, 1, 0, 1, 0])
    assert found.value == pytest.approx(4 / 6 * 0.15)


def test_probabilities_are_told_from_scores() -> None:
    """Rows of shares that add up to one are probabilities, also in half precision; scores and logarithms are not."""
    scores = np.random.default_rng(0).normal(size=(50, 10))
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert are_probabilities(shares)
    assert are_probabilities(shares.astype(np.float16))
    assert not any(are_probabilities(other) for other in (scores, np.log(shares), 1 / (1 + np.exp(-scores))))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    """They have no probabilities; minus infinity rules a class out and is fine, unless all are."""
    scores = np.zeros((3, 4))
    scores[1, 2] = bad
    with pytest.raises(BadInput, match="the scores of 1 of 3 examples are not a number or infinite"):
        confidences(scores)
    scores[1, 2] = -np.inf
    assert confidences(scores).tolist() == pytest.approx([0.25, 1 / 3, 0.25])
    with pytest.raises(BadInput, match="3 of 3 examples"):
        confidences(np.full((3, 4), -np.inf))
    with pytest.raises(BadInput, match=r"scores of shape \(3,\); wanted \(n, classes\)"):
        confidences(np.zeros(3))


def test_confidences_outside_zero_to_one_are_refused() -> None:
    """Percentages and nothing at all are bad input."""
    with pytest.raises(BadInput, match="confidences run from 50 to 90; wanted probabilities"):
        calibration_error([50, 90], [True, False])
    with pytest.raises(BadInput, match="no predictions"):
        calibration_error([], [])
    with pytest.raises(BadInput, match="same length"):
        calibration_change([0.5], [1], [0.5, 0.6], [1, 1])


def test_perfect_and_certain_still_leaves_doubt() -> None:
    """Certain and always right has no error, and forty examples do not prove it; nor that two such models are equal."""
    sure, right = np.ones(40), np.ones(40, bool)
    found, change = calibration_error(sure, right), calibration_change(sure, right, sure, right)
    assert (found.value, found.low) == (0, 0)
    assert 0.05 < found.high < 0.15
    assert change.low < change.value == 0 < change.high


@pytest.mark.parametrize(("n", "bias", "true"), [(300, 0.08, 0.0686), (300, 0.0, 0.0), (2000, 0.08, 0.0686)])
def test_interval_covers(n: int, bias: float, true: float) -> None:
    """The interval holds the true error in about 95 of 100 draws, of an honest model too; it is hardly ever too low."""
    random = np.random.default_rng(5)
    found = [calibration_error(*_draw(n, bias, random)) for _ in range(100)]
    assert np.mean([one.low <= true <= one.high for one in found]) >= 0.92
    assert np.mean([one.high < true for one in found]) <= 0.05


def test_interval_of_a_change_covers() -> None:
    """The true change lies in the interval in 9 of 10 draws, though chance adds more to the smaller error."""
    random, hits = np.random.default_rng(6), 0
    for _ in range(100):
        sure, _ = _draw(1000, 0.0, random)
        luck = random.random(1000)
        change = calibration_change(sure, luck < sure * 0.97, sure, luck < sure * 0.90)
        # Both are too sure in every bin, so the errors are the mean of what they say too much.
        hits += change.low <= 100 * 0.07 * (0.1 + 0.9 * 8 / 9.5) <= change.high
    assert hits >= 87
