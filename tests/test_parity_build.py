"""What a build and its reports say of a file that is not the graph it was made from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shipworthy.export.onnx_file import to_onnx
from shipworthy.models.data import Dataset
from shipworthy.models.model import Model, capture, save_pt2
from shipworthy.pipeline.judging import Evidence, doubts
from shipworthy.pipeline.progress import Silent
from shipworthy.pipeline.record import RunRecord
from shipworthy.pipeline.recording import _artifact
from shipworthy.pipeline.report import html_text, markdown_text
from shipworthy.pipeline.stages import Exported, check_stage
from shipworthy.pipeline.store import Stage, Store
from shipworthy.tests.report_sample import sample
from shipworthy.tests.small_nets import eager, quadrants

SENTENCE = "first bad layer: b.0 (Conv"


@pytest.fixture(scope="module")
def data() -> Dataset:
    """A tiny task."""
    return quadrants()


@pytest.fixture(scope="module")
def model() -> Model:
    """A net for it."""
    import torch

    return capture(eager("grouped", torch.float32), (torch.zeros(2, 3, 8, 8),), source="grouped")


@pytest.fixture(scope="module")
def checked(model: Model, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A file whose second convolution was scaled after it was exported, with its check."""
    root = tmp_path_factory.mktemp("build")
    save_pt2(model, root / "model.pt2")
    file = to_onnx(model, root / "model.onnx")
    proto = onnx.load(file.path)
    weight = next(i for i in proto.graph.initializer if i.name.startswith("b.0"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(-3), weight.name))
    onnx.save(proto, file.path)
    store = Store(root / "out", Silent())
    (root / "out" / "stages").mkdir(parents=True)
    step = Stage("capture", root, {}, "step", 0.0)
    made = Stage("export-baseline", root, file.to_dict(), "file", 0.0)
    return Exported("capture", "cpu", step, made, check_stage(store, step, made, data))


def test_a_check_names_the_layer_and_its_cost(checked: Exported) -> None:
    """The stage's facts, which a later run reads back, hold the layer as values and as a sentence."""
    layer = checked.checked.facts["bad_layer"]
    assert (layer["name"], layer["operator"], layer["kind"]) == ("b.0", "Conv", "first")
    assert layer["text"].startswith(SENTENCE)
    assert layer["cost"]["by"] == "accuracy"
    assert layer["cost"]["samples"] == 64
    assert json.loads(json.dumps(layer)) == layer


def test_a_doubt_names_the_layer(checked: Exported) -> None:
    """The verdict's reason says which layer it was."""
    (doubt,) = doubts(Evidence(checked, {"cpu": checked}, {}, None))[:1]
    assert doubt.reason.endswith("; first bad layer: b.0 (Conv)")


def test_every_report_names_the_layer(checked: Exported) -> None:
    """Markdown, HTML and JSON have the sentence; a run whose files are right has none."""
    row = _artifact("baseline.onnx", checked, Evidence(checked, {"cpu": checked}, {}, None))
    good = sample()
    broken = replace(good, artifacts=[row, *good.artifacts[1:]])
    assert row.notes[0].startswith(f"parity: {SENTENCE}")
    for text in _texts(broken):
        assert SENTENCE in text
    for text in _texts(good):
        assert "bad layer" not in text
    assert json.loads(broken.to_json())["artifacts"][0]["details"]["bad_layer"]["name"] == "b.0"


def _texts(record: RunRecord) -> tuple[str, ...]:
    return markdown_text(record), html_text(record), record.to_json()


def test_layers_are_no_part_of_a_good_check(model: Model, data: Dataset, tmp_path: Path) -> None:
    """A file that is its graph has no layer, and tells the rounding noise that it was judged by."""
    save_pt2(model, tmp_path / "model.pt2")
    file = to_onnx(model, tmp_path / "model.onnx")
    (tmp_path / "out" / "stages").mkdir(parents=True)
    step, made = (
        Stage("capture", tmp_path, {}, "step", 0.0),
        Stage("export-baseline", tmp_path, file.to_dict(), "file", 0.0),
    )
    facts = check_stage(Store(tmp_path / "out", Silent()), step, made, data).facts
    assert "bad_layer" not in facts
    (row,) = facts["parity"]
    assert row["passed"]
    assert row["noise"] < row["tolerance"] == pytest.approx(max(8 * row["noise"], 2.0**-20))
    assert row["relative"] < row["tolerance"]
