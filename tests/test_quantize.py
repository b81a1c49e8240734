"""Quantize chooses calibration examples from the training data and leaves the graph to the exporter."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from shipworthy.compress.quantize import Quantize
from shipworthy.models.errors import BadInput
from shipworthy.tests.small_nets import captured, quadrants


def test_examples_are_preprocessed_training_images() -> None:
    """The examples are those that the seed picks of the training set, as the model sees them; the graph is the same."""
    model, data = captured("plain", torch.float32), quadrants()
    result = Quantize(calibration=40, method="entropy", seed=5)(model, data=data)
    chosen = result.model.quantization
    assert chosen is not None
    assert torch.equal(chosen.calibration[0], data.batch(data.train, data.sample(40, 5))[0])
    assert (chosen.scheme, chosen.method) == ("int8", "entropy")
    assert result.model.module is model.module
    assert model.quantization is None
    assert result.changed
    assert result.facts["calibration_examples"] == 40


def test_no_more_examples_than_there_are() -> None:
    """Asking for more examples than the training set has gives all of it."""
    data = quadrants(train=16, test=8)
    assert Quantize(calibration=512)(captured("plain", torch.float32), data=data).facts["calibration_examples"] == 16


def test_data_are_needed() -> None:
    """Without data the message says what to pass; unknown settings are refused."""
    with pytest.raises(BadInput, match="quantize: needs training data for calibration"):
        Quantize()(captured("plain", torch.float32))
    with pytest.raises(ValidationError):
        Quantize(method="guess")  # type: ignore[arg-type]  # the point
