"""Every scheme as a recipe's pass and as `sw.Quantize`: its file, its precision, what it needs, and what keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import shipworthy as sw
from shipworthy.compress.quantize import Quantize
from shipworthy.export.onnx_metadata import read_metadata
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, Quantization, capture
from shipworthy.models.schemes import Scheme
from shipworthy.pipeline import paying
from shipworthy.pipeline.build import build
from shipworthy.pipeline.recipe import RecipeFaults, read_recipe
from shipworthy.pipeline.record import RunRecord
from shipworthy.pipeline.report import html_text, markdown_text
from shipworthy.profile.compare import Comparison, compare_measurements
from shipworthy.tests.tiny_project import write_project, write_recipe

WIDE = '''\
import torch
from torch import nn


def factory():
    """Return linear layers of 65,536 weights, and a small one."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 4)]
    return nn.Sequential(nn.Flatten(), *layers), torch.zeros(2, 1, 8, 8)
'''
WITHOUT: list[Scheme] = ["dynamic", "int8-weights", "int4-weights"]
PRECISION = {"dynamic": "int8", "int8-weights": "int8-weights", "int4-weights": "int4-weights"}
KINDS = {"dynamic": "MatMulInteger", "int8-weights": "DequantizeLinear", "int4-weights": "DequantizeLinear"}
QUICK = {"runtimes": ["ort-cpu"], "budget_seconds": 0.5}
SPEED: dict[str, Any] = {"speedup": {"min": 0.001}}
SIZE: dict[str, Any] = {"size_ratio": {"max": 0.9}}


def wide() -> Model:
    """Return the same layers captured."""
    space: dict[str, Any] = {}
    exec(WIDE, space)
    module, example = space["factory"]()
    return capture(module, (example,))


def _slower(*args: Any) -> Comparison:
    return replace(compare_measurements(*args), outcome="slower", ratio=0.7, low=0.65, high=0.75)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a project in which nothing is faster; builds share what they have in common."""
    folder = tmp_path_factory.mktemp("schemes")
    write_project(folder)
    (folder / "wide.py").write_text(WIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paying, "compare_measurements", _slower)
        yield folder


def made(folder: Path, quantize: dict[str, Any], **sections: Any) -> RunRecord:
    """Build a project whose one pass is a quantization, without data."""
    parts: dict[str, Any] = {"model": {"source": "wide.py:factory"}, "goals": SPEED, "profile": QUICK, "export": None}
    parts["data"] = None
    return build(write_recipe(folder, **parts | {"compress": [{"quantize": quantize}]} | sections), folder / "out")


def faults(folder: Path, quantize: dict[str, Any], **sections: Any) -> str:
    """Return what is wrong with a recipe."""
    write_project(folder)
    parts: dict[str, Any] = {"goals": SIZE, "profile": QUICK, "export": None}
    with pytest.raises(RecipeFaults) as caught:
        read_recipe(write_recipe(folder, **parts | {"compress": [{"quantize": quantize}]} | sections))
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- the pass


@pytest.mark.parametrize("scheme", WITHOUT)
def test_the_pass_needs_no_data(scheme: Scheme, tmp_path: Path) -> None:
    """The model is marked as it is, and its file is in the scheme without saying so again."""
    model = wide()
    result = sw.Quantize(scheme=scheme)(model)
    assert result.model.module is model.module
    assert result.facts["scheme"] == scheme
    assert "calibration_examples" not in result.facts
    file = sw.to_onnx(result.model, tmp_path / "m.onnx")
    assert file.precision == PRECISION[scheme]
    assert (file.opset == 20) == (scheme == "dynamic")
    assert KINDS[scheme] in {node.op_type for node in onnx.load(file.path).graph.node}
    noted = read_metadata(file.path)
    assert (noted["precision"], noted["scheme"], noted["target"]) == (PRECISION[scheme], scheme, "cpu")
    found = sw.parity(result.model, file)
    assert (found.precision, found.passed) == (PRECISION[scheme], True)
    assert found.outputs[0].relative < (0.2 if scheme == "int4-weights" else 0.03)


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_weights_alone_need_no_pass(precision: str, tmp_path: Path) -> None:
    """A model that nothing was done to is written with small weights when asked to."""
    files = [sw.to_onnx(wide(), tmp_path / f"{one}.onnx", one) for one in ("fp32", precision)]  # type: ignore[arg-type]  # two of its words
    assert files[1].bytes < files[0].bytes / 3
    assert files[1].precision == precision
    assert [held["axis"] for held in _axes(files[1].path)] == [0, 0]


def _axes(path: Path) -> list[dict[str, int]]:
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear"]
    return [{one.name: one.i for one in node.attribute} for node in nodes]


def test_layers_that_are_named_stay_in_fp32(tmp_path: Path) -> None:
    """By the path of the module, as in the other schemes."""
    marked = Quantize(scheme="int8-weights", keep_float=("1",))(wide()).model
    file = sw.to_onnx(marked, tmp_path / "m.onnx")
    assert len(_axes(file.path)) == 1


@pytest.mark.parametrize("scheme", WITHOUT)
@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 10), ("max_drop", 1.0), ("equalize", True), ("correct_bias", True), ("smooth", 0.5), ("method", "mse"),
     ("calibration", 64), ("learning_rate", 0.1)],
)  # fmt: skip
def test_a_setting_without_use_is_refused(scheme: Scheme, setting: str, value: Any, tmp_path: Path) -> None:
    """In one message, in Python and in a recipe, where it has its line."""
    with pytest.raises(ValidationError, match=f"{scheme}: has no {setting}, as "):
        Quantize(scheme=scheme, **{setting: value})
    said = faults(tmp_path, {"scheme": scheme, setting: value})
    assert f"compress[0].quantize: {scheme}: has no {setting}, as " in said
    assert "1 fault" in said


def test_all_that_has_no_use_is_in_one_message() -> None:
    """Bits of weights are of `dynamic`, not of weights alone; defaults that are written out are no fault."""
    with pytest.raises(
        ValidationError, match="int4-weights: has no equalize, smooth, steps, weight_bits, as activations"
    ):
        Quantize(scheme="int4-weights", steps=5, smooth=0.5, equalize=True, weight_bits=8)
    assert Quantize(scheme="dynamic", weight_bits=8, calibration=512, smooth=None, seed=3).weight_bits == 8


def test_integers_of_another_precision_are_refused(tmp_path: Path) -> None:
    """What the pass marked is what is written; a float is always possible."""
    marked = Quantize(scheme="int4-weights")(wide()).model
    with pytest.raises(BadInput, match="precision 'int8': the model was quantized for int4-weights; leave"):
        sw.to_onnx(marked, tmp_path / "m.onnx", "int8")
    with pytest.raises(BadInput, match="int4-weights: takes no calibration, activations stay in fp32"):
        sw.to_onnx(marked, tmp_path / "m.onnx", calibration=torch.zeros(32, 1, 8, 8))
    assert not (tmp_path / "m.onnx").exists()
    assert sw.to_onnx(marked, tmp_path / "m.onnx", "fp16").precision == "fp16"


def test_a_scheme_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """In the pass, and where a model was marked by hand."""
    with pytest.raises(ValidationError, match="'int8', 'dynamic', 'int8-weights' or 'int4-weights'"):
        Quantize(scheme="int3")  # type: ignore[arg-type]  # the point
    marked = replace(wide(), quantization=Quantization("int3", "minmax", ()))
    with pytest.raises(BadInput, match=r"precision 'int3': choose one of .*int8, int8-weights, int4-weights"):
        sw.to_onnx(marked, tmp_path / "m.onnx")


def test_a_model_without_large_layers_is_refused(tmp_path: Path) -> None:
    """There is nothing for weights alone, and no file is left."""
    small = capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (torch.zeros(1, 1, 8, 8),))
    with pytest.raises(BadInput, match="int8-weights: nothing to quantize"):
        sw.to_onnx(Quantize(scheme="int8-weights")(small).model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


# --- the recipe


def test_tensorrt_and_dynamic_do_not_go_together(tmp_path: Path) -> None:
    """That is a fault before any work; with a float precision of its own the engine is possible."""
    trt: dict[str, Any] = {"onnx": {"dynamic_batch": [1, 8]}, "tensorrt": {}}
    said = faults(tmp_path, {"scheme": "dynamic"}, export=trt)
    assert "compress[0].quantize.scheme: TensorRT takes scales from the file only, and `dynamic` has none" in said
    fine = {**trt, "tensorrt": {"precision": "fp16"}}
    recipe = read_recipe(write_recipe(tmp_path, compress=[{"quantize": {"scheme": "dynamic"}}], export=fine))
    assert (recipe.tensorrt_precision, recipe.integers) == ("fp16", "int8")


def test_the_precision_for_tensorrt_is_that_of_the_scheme(tmp_path: Path) -> None:
    """Left open it follows; another kind of integers is a fault, and so are integers without the pass."""
    trt: dict[str, Any] = {"onnx": {"dynamic_batch": [1, 8]}, "tensorrt": {}}
    write_project(tmp_path)
    four = [{"quantize": {"scheme": "int4-weights"}}]
    assert read_recipe(write_recipe(tmp_path, compress=four, export=trt)).tensorrt_precision == "int4-weights"
    other = {**trt, "tensorrt": {"precision": "int8"}}
    said = faults(tmp_path, {"scheme": "int4-weights"}, export=other)
    assert 'export.tensorrt.precision: got "int8" (text), and `quantize` makes int4-weights; leave it out' in said
    none = {**trt, "tensorrt": {"precision": "int4-weights"}}
    with pytest.raises(RecipeFaults, match="int4-weights needs a `quantize` pass"):
        read_recipe(write_recipe(tmp_path, compress=None, export=none))


def test_a_recipe_without_data_may_quantize_without_calibration(project: Path, tmp_path: Path) -> None:
    """Static int8 asks for data and names the other way."""
    said = faults(tmp_path, {}, data=None)
    assert "calibrates on training data, and the recipe has none; add a `data` section, or use a `scheme`" in said
    found = made(project, {"scheme": "int8-weights"}, goals=SIZE)
    assert [step.name for step in found.steps] == ["baseline", "quantize"]
    assert found.exit_code == 0


def test_a_build_in_four_bits_for_both_targets(project: Path) -> None:
    """Both files and the engine are of the scheme, and every report says its precision, not int8."""
    pytest.importorskip("tensorrt_rtx_bindings")
    trt = {"onnx": {"dynamic_batch": [1, 8]}, "tensorrt": {}}
    found = made(project, {"scheme": "int4-weights"}, export=trt, goals=SIZE)
    rows = {row.name: row.precision for row in found.artifacts}
    assert rows["model"] == rows["model.tensorrt"] == "int4-weights"
    assert found.integers == []
    assert all("int4-weights" in text for text in (markdown_text(found), html_text(found)))
    assert (project / "out" / "model.engine").stat().st_size > 0


@pytest.mark.parametrize(
    ("goals", "kept", "said"),
    [
        (SIZE, True, "no faster (0.70x, 0.65-0.75); kept for the size (size_ratio)"),
        (SPEED | SIZE, True, "kept for the size (size_ratio)"),
        (None, True, "kept for the size, which weights alone are for (0."),
        (SPEED, False, "but the goals are on speed (speedup): a goal on size or `insist` keeps it"),
    ],
)
def test_weights_alone_are_kept_for_size(goals: dict[str, Any] | None, kept: bool, said: str, project: Path) -> None:
    """They are dropped only where the recipe wants speed and nothing else, and the line says what was given up."""
    found = made(project, {"scheme": "int8-weights"}, goals=goals)
    assert (found.pays[0].kept, said in found.pays[0].line) == (kept, True), found.pays[0].line
    assert found.pays[0].line.startswith("quantize: no faster" if kept else "pass dropped: quantize: no faster (0.70x")


def test_a_dropped_scheme_stays_for_tensorrt_where_the_recipe_says_so(project: Path) -> None:
    """Left open, that file is fp16, and the note names the precision that keeps it."""
    trt: dict[str, Any] = {"onnx": {"dynamic_batch": [1, 8]}, "tensorrt": {}}
    found = made(project, {"scheme": "int4-weights"}, export=trt)
    assert any("export.tensorrt.precision: int4-weights keeps it in int4-weights" in note for note in found.notes)
    found = made(project, {"scheme": "int4-weights"}, export={**trt, "tensorrt": {"precision": "int4-weights"}})
    assert {row.name: row.precision for row in found.artifacts} == {
        "baseline": "fp32", "model": "fp32", "model.tensorrt": "int4-weights", "model.engine": "int4-weights",
    }  # fmt: skip


def test_dynamic_is_dropped_where_it_is_no_faster(project: Path) -> None:
    """It is for speed, like static int8; a recipe that insists keeps it, and its share in integers is said."""
    assert made(project, {"scheme": "dynamic"}).pays[0].line == "pass dropped: quantize: no faster (0.70x, 0.65-0.75)"
    found = made(project, {"scheme": "dynamic", "insist": True})
    assert next(row.precision for row in found.artifacts if row.name == "model") == "int8"
    assert [share["share"] for share in found.integers] == [1.0]
