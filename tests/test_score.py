"""The score of a file is the score of the model that it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shipworthy.export.artifact import OnnxArtifact
from shipworthy.export.onnx_file import OnnxSettings, to_onnx
from shipworthy.export.score import predict, score
from shipworthy.models.confidence import calibration_error
from shipworthy.models.errors import BadInput
from shipworthy.models.model import capture
from shipworthy.tests.small_nets import captured, outputs, quadrants


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """A small classifier."""
    return to_onnx(captured("plain", torch.float32), tmp_path_factory.mktemp("score") / "m.onnx")


def test_the_score_is_the_models(exported: OnnxArtifact) -> None:
    """Predictions, accuracy and macro recall through the file are torch's on the same test images."""
    data = quadrants(train=8, test=600)
    x, y = data.batch(data.test, torch.arange(600))
    wanted = outputs(captured("plain", torch.float32), x)[0].argmax(1)
    found = score(exported, data)
    np.testing.assert_array_equal(found.predictions, wanted.numpy())
    np.testing.assert_array_equal(found.labels, y.numpy())
    assert found.accuracy.value == pytest.approx(float((wanted == y).float().mean()))
    recalls = [float((wanted[y == c] == c).float().mean()) for c in range(4)]
    assert found.macro_recall.value == pytest.approx(sum(recalls) / 4)
    probability = outputs(captured("plain", torch.float32), x)[0].softmax(1).amax(1)
    assert found.confidences is not None
    np.testing.assert_allclose(found.confidences, probability.numpy(), rtol=1e-4)
    assert found.calibration_error is not None
    assert found.calibration_error.value == pytest.approx(
        calibration_error(probability.numpy(), (wanted == y).numpy()).value, abs=1e-3
    )
    assert found.classes.macro_recall == found.macro_recall
    assert (found.classes.confusion.sum(), found.probabilities) == (600, False)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    np.testing.assert_array_equal(predict(exported, data, data.train), predict(exported.path, data, data.train))


def test_a_file_that_does_not_fit_the_data_is_refused(exported: OnnxArtifact, tmp_path: Path) -> None:
    """Other classes, another picture size or two inputs are refused with what was wanted."""
    data = quadrants(train=10, test=10)
    train, test = (replace(part, labels=torch.arange(10) % 5) for part in (data.train, data.test))
    five = replace(data, classes=("a", "b", "c", "d", "e"), train=train, test=test)
    with pytest.raises(BadInput, match=r"gives \(10, 4\), wanted \(batch, 5\) for the data's classes"):
        score(exported, five)
    larger = to_onnx(capture(nn.Flatten(), (torch.zeros(2, 3, 9, 9),)), tmp_path / "l.onnx")
    with pytest.raises(BadInput, match="the samples do not fit the model's inputs"):
        score(larger, data)
    two = to_onnx(capture(nn.Bilinear(2, 2, 4), (torch.zeros(2, 2), torch.zeros(2, 2))), tmp_path / "t.onnx")
    with pytest.raises(BadInput, match=r"takes the inputs .*, quadrants gives image"):
        score(two, data)


class _Shares(nn.Module):
    """Gives probabilities, or of dark pictures what is not a number."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the share of each corner in the brightness, `(batch, 4)`."""
        corners = nn.functional.avg_pool2d(x, 4).mean(1).flatten(1)
        return torch.log(corners.sum(1, keepdim=True) * 0 - 1) * corners if self.broken else corners.softmax(1)


def test_probabilities_are_taken_as_they_are(tmp_path: Path) -> None:
    """A file that ends in a softmax is not put through another; one that gives no numbers has no calibration."""
    data, examples = quadrants(train=8, test=40), (torch.zeros(2, 3, 8, 8),)
    found = score(to_onnx(capture(_Shares(), examples), tmp_path / "s.onnx"), data)
    wanted = _Shares()(data.batch(data.test, torch.arange(40))[0]).amax(1)
    assert found.probabilities
    assert found.confidences is not None
    np.testing.assert_allclose(found.confidences, wanted.numpy(), rtol=1e-5)
    broken = score(to_onnx(capture(_Shares(broken=True), examples), tmp_path / "n.onnx"), data)
    assert (broken.confidences, broken.calibration_error) == (None, None)
    assert len(broken.predictions) == 40


class _Loud(nn.Module):
    """Says which corner is bright, by way of values that half precision does not hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the brightness of each corner, `(batch, 4)`."""
        corners = nn.functional.avg_pool2d(x, 4).mean(1).flatten(1) + 4.0
        large = (corners * 2.0**14) * 2.0**13
        return (large / 2.0**14) / 2.0**13


def test_half_precision_is_scored_as_it_is_written(tmp_path: Path) -> None:
    """What overflows in half precision is wrong for the score too, though a CPU computes it in fp32."""
    data = quadrants(train=64, test=64)
    model = capture(_Loud(), (torch.zeros(2, 3, 8, 8),))
    bare = to_onnx(model, tmp_path / "bare.onnx", "fp16", settings=OnnxSettings(keep_fp32="none"))
    careful, whole = (to_onnx(model, tmp_path / f"{kind}.onnx", kind) for kind in ("fp16", "fp32"))
    wanted = predict(whole, data, data.test)
    assert len(set(wanted)) > 1
    assert (predict(careful, data, data.test) == wanted).mean() > 0.9
    assert (predict(bare, data, data.test) == wanted).mean() < 0.9
