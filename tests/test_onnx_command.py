"""The command `export` and the recipe ask for what `to_onnx` makes, and refuse the rest before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto
from typer.testing import CliRunner

from shipworthy.export import opsets
from shipworthy.export.onnx_metadata import read_metadata
from shipworthy.models.errors import BadInput
from shipworthy.models.model import save_pt2
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.recipe import Recipe, RecipeFaults, read_recipe
from shipworthy.pipeline.recipe_hash import led_to
from shipworthy.tests.small_nets import captured

RECIPE = """\
shipworthy: 1
model: {source: "reference:fashion-resnet20"}
data: {source: "fashion-mnist"}
compress:
  - prune: {ratio: 0.5}
  - prune: {ratio: 0.3}
  - quantize
export: {onnx: {opset: 25, keep_fp32: [Softmax, "layer1.*"]}}
goals: {size_mb: {max: 0.5}}
"""


def _run(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model on disk."""
    save_pt2(captured("residual", torch.float32), tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


def test_the_command_writes_what_is_asked(source: Path, tmp_path: Path) -> None:
    """Precision, opset, islands and the types of inputs and outputs are those of the options."""
    done = _run(
        "export", source, "-o", tmp_path / "m.onnx", "--precision", "fp16", "--opset", 21, "--low-io",
        "--keep-fp32", "GlobalAveragePool", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["precision"], said["opset"]) == ("fp16", 21)
    assert [name.partition("_")[0] for name in said["fp32_nodes"]] == ["GlobalAveragePool"]
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {TensorProto.FLOAT16}
    assert read_metadata(tmp_path / "m.onnx")["source"] == "residual"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "bf16", "--opset", "20"], "opset 20: bf16 needs 22 or more"),
        (["--precision", "fp32", "--low-io"], "--keep-fp32 and --low-io are for fp16, bf16 and mixed, not for fp32"),
        (["--precision", "fp16", "--keep-fp32", "auto", "--keep-fp32", "Gemm"], "auto and none stand alone"),
    ],
)
def test_the_command_refuses_before_it_loads(options: list[str], message: str, tmp_path: Path) -> None:
    """Options that do not go together are said before the model is looked for."""
    done = _run("export", tmp_path / "absent.pt2", "-o", tmp_path / "m.onnx", *options)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_an_opset_that_a_target_does_not_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed ONNX Runtime is asked for what it reads; TensorRT's limit is written down."""
    assert opsets.most_in_onnxruntime() >= 22
    assert opsets.chosen_opset(None, "fp16", "cpu") == 20
    assert opsets.chosen_opset(None, "bf16", "tensorrt") == 22
    assert opsets.chosen_opset(25, "fp32", "tensorrt") == 25
    monkeypatch.setattr(opsets, "most_in_onnxruntime", lambda: 21)
    with pytest.raises(BadInput, match="opset 23: the installed ONNX Runtime reads up to 21; choose one of 18 to 21"):
        opsets.chosen_opset(23, "fp32", "cpu")
    assert opsets.chosen_opset(23, "fp32", "tensorrt") == 23


def test_a_recipe_says_what_stays_in_fp32(tmp_path: Path) -> None:
    """The key takes a word or patterns; another word is a fault with its place."""
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    assert read_recipe(path).export.onnx.keep_fp32 == ("Softmax", "layer1.*")
    path.write_text(RECIPE.replace('[Softmax, "layer1.*"]', "some"))
    with pytest.raises(RecipeFaults, match=r"export\.onnx\.keep_fp32"):
        read_recipe(path)


def test_the_hash_of_a_recipe_is_of_what_led_to_the_model(tmp_path: Path) -> None:
    """Goals and opsets do not change it; the model, the data and the passes up to the step do."""
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    recipe: Recipe = read_recipe(path)
    steps = [led_to(recipe, label) for label in ("capture", "prune", "prune-2", "quantize")]
    assert len(set(steps)) == 4
    path.write_text(RECIPE.replace("max: 0.5", "max: 0.7").replace("opset: 25", "opset: 20"))
    assert led_to(read_recipe(path), "quantize") == steps[-1]
    path.write_text(RECIPE.replace("ratio: 0.3", "ratio: 0.4"))
    assert led_to(read_recipe(path), "prune") == steps[1]
    assert led_to(read_recipe(path), "prune-2") != steps[2]
