"""The score of a file is the score of the model that it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shipworthy.export.artifact import OnnxArtifact
from shipworthy.export.onnx_file import to_onnx
from shipworthy.export.score import predict, score
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
    with pytest.raises(BadInput, match="classification takes one input, this file has"):
        score(two, data)
