"""Zeros stay zero, whatever comes after: training, pruning, files."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from shipworthy.compress.distill import Distill
from shipworthy.compress.passes import Context, Pass
from shipworthy.compress.prune import Prune
from shipworthy.compress.quantize import Quantize
from shipworthy.compress.sparsify import Sparsify
from shipworthy.compress.sparsity import is_two_of_four, kernels, zeros_held
from shipworthy.compress.trim import Trim
from shipworthy.export.artifact import OnnxArtifact
from shipworthy.export.engine import to_engine
from shipworthy.export.engine_child import _sparse_weights
from shipworthy.export.onnx_file import to_onnx
from shipworthy.export.onnx_sparsity import read_sparsity
from shipworthy.export.parity import parity
from shipworthy.models.data import Dataset
from shipworthy.models.errors import BadInput, ToolFailed
from shipworthy.models.model import Model, load_pt2, save_pt2
from shipworthy.pipeline.fixed_batch import fix_batch
from shipworthy.pipeline.kept_model import keep, recall
from shipworthy.pipeline.progress import Silent
from shipworthy.pipeline.store import open_store
from shipworthy.tests.small_nets import CALM, FINE, captured, images, quadrants
from shipworthy.tests.test_sparsify import TWO_OF_FOUR, sparse_weights, zeros

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_holds(before: Model, after: Model) -> None:
    """Check that both have the same marks and the same zeros."""
    assert before.sparsity is not None
    assert after.sparsity is not None
    assert before.sparsity.patterns == after.sparsity.patterns
    now = zeros(after)
    assert all(torch.equal(then, now[name]) for name, then in zeros(before).items())


# --- what comes after


@pytest.mark.parametrize("name", ["residual", "plain", "rows", "views"])
@pytest.mark.parametrize("how", [{"pattern": "2:4"}, {"ratio": 0.7}, {"ratio": 0.7, "scope": "global"}])
def test_training_holds_zeros(name: str, how: dict[str, Any], data: Dataset, teacher: Model) -> None:
    """Momentum and weight decay move the weights that are kept, and not one zero, in any memory layout."""
    sparse = Sparsify(**how)(captured(name, torch.float32)).model
    made = Distill(steps=8, weight_decay=0.1, **CALM)(sparse, data=data, teacher=teacher).model
    assert_holds(sparse, made)
    old, new = sparse_weights(sparse), sparse_weights(made)
    assert all(((old[key] != new[key]) | (old[key] == 0)).float().mean() > 0.9 for key in old)


def test_zeros_are_held_while_it_lasts() -> None:
    """Adam leaves them, too; afterwards nothing is left on the weights; a dense model has none to hold."""
    model = Sparsify()(captured("rows", torch.float32)).model.copy()
    before = zeros(model)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=0.1, weight_decay=0.1)
    with zeros_held(model):
        for seed in range(3):
            optimizer.zero_grad()
            model.module(images(4, seed, torch.float32)).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(value, zeros(model)[name]) for name, value in before.items())
    model.module(images(4, dtype=torch.float32)).square().sum().backward()
    optimizer.step()
    assert not zeros(model)["fc.weight"].any()
    with zeros_held(replace(model, sparsity=None)):
        pass


@pytest.mark.parametrize("how", [{"pattern": "2:4"}, {"ratio": 0.9}])
def test_a_reload_holds_zeros(how: dict[str, Any], tmp_path: Path) -> None:
    """Marks, by the same names, and zeros are in the `.pt2` file, also after a second writing."""
    sparse = Sparsify(**how)(captured("stack")).model
    save_pt2(sparse, tmp_path / "a.pt2")
    save_pt2(load_pt2(tmp_path / "a.pt2"), tmp_path / "b.pt2")
    for name in ("a.pt2", "b.pt2"):
        assert_holds(sparse, load_pt2(tmp_path / name))
    save_pt2(captured("stack"), tmp_path / "c.pt2")
    assert load_pt2(tmp_path / "c.pt2").sparsity is None


def test_stages_hold_zeros(tmp_path: Path) -> None:
    """A model that is marked for integers, too, comes out of the cache as it went in."""
    model = Quantize(calibration=8)(Sparsify()(captured("plain", torch.float32)).model, data=quadrants()).model
    with open_store(tmp_path, Silent()) as store:
        stage = store.run("quantize", {}, lambda folder: {"quantization": keep(store, model, folder)})
        found = recall(store, stage)
    assert found is not model
    assert found.quantization is not None
    assert_holds(model, found)


def test_pruning_and_trimming_hold_zeros() -> None:
    """With data and refits: removed channels take their weights along, others keep their values, sparse layers both."""
    data, sparse = quadrants(), Sparsify(ratio=0.6)(captured("stack", torch.float32)).model
    known = torch.cat([value.flatten() for value in sparse_weights(sparse).values()])
    for made in (Prune(ratio=0.4, **FINE)(sparse, data=data), Trim(("b",))(sparse, data=data)):
        found = sparse_weights(made.model)
        assert made.facts["params_after"] < made.facts["params_before"]
        assert all(torch.isin(value, known).all() for value in found.values())
        assert 0.5 < float(torch.cat([value.flatten() == 0 for value in found.values()]).float().mean()) < 0.75
    assert made.model.sparsity is not None
    assert not [name for name in made.model.sparsity.patterns if name.startswith("b.")]


def test_two_of_four_is_refused_to_be_torn() -> None:
    """Trimming takes whole layers and keeps groups of four; pruning takes channels out of them and says so."""
    sparse = TWO_OF_FOUR(captured("stack", torch.float32)).model
    left = Trim(("b",))(sparse, data=quadrants()).model
    assert all(is_two_of_four(value, 1) for value in sparse_weights(left).values())
    with pytest.raises(BadInput, match=r"prune: groups of four lost channels, .* sparsify after this pass"):
        Prune(ratio=0.4, **FINE)(sparse)


def test_more_sparsity_keeps_what_there_is() -> None:
    """A second pass adds zeros to those there are, and a weight that is 2:4 stays so."""
    first = TWO_OF_FOUR(captured("residual")).model
    second = Sparsify(ratio=0.8)(first)
    assert second.model.sparsity is not None
    assert set(second.facts["sparsity_by_pattern"]) == {"2:4", "unstructured"}
    later = zeros(second.model)
    assert all((then & later[name]).equal(then) for name, then in zeros(first).items())
    assert set(TWO_OF_FOUR(Sparsify(ratio=0.8)(captured("residual")).model).facts["sparsity_by_pattern"]) == {
        "2:4",
        "unstructured",
    }


class Revive(Pass):
    """A pass that forgets the zeros."""

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        made = model.copy()
        with torch.no_grad():
            for p in made.module.parameters():
                p.add_(1)
        return made, {}


def test_a_pass_that_revives_zeros_is_caught() -> None:
    """Every pass is checked, whoever wrote it."""
    with pytest.raises(ToolFailed, match=r"revive: .*weight was sparse and lost zeros"):
        Revive()(Sparsify()(captured("plain")).model)
    assert Revive()(captured("plain")).model.sparsity is None


# --- files


def constants(file: OnnxArtifact) -> list[NDArray[Any]]:
    """Return the weights of convolutions and products: in integers, what is dequantized."""
    graph = onnx.load(file.path).graph
    known = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    known |= {n.output[0]: known[n.input[0]] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in known}  # fmt: skip # noqa: E501
    used = [n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    return [known[name] for name in used]


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ({"pattern": "2:4"}, {}),
        ({"pattern": "2:4"}, {"precision": "fp16"}),
        ({"pattern": "2:4"}, {"precision": "int8", "target": "tensorrt"}),
        ({"ratio": 0.75}, {"precision": "int8"}),
    ],
    ids=["2:4-fp32", "2:4-fp16", "2:4-int8-tensorrt", "unstructured-int8-cpu"],
)
def test_files_hold_zeros(how: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the exporter folds and rounds: weights in the file are as sparse, in the same pattern, and say so."""
    sparse = Sparsify(**how)(captured("residual", torch.float32)).model
    made = Quantize(calibration=64)(sparse, data=quadrants()).model
    assert_holds(sparse, made)
    file = to_onnx(made, tmp_path / "m.onnx", **{"precision": "fp32", **options})
    found = constants(file)
    assert len(found) == len(kernels(sparse)) == 7
    for value in found:
        if "ratio" in how:
            assert (value == 0).mean() >= 0.74
        elif value.shape[1] % 4 == 0:
            assert is_two_of_four(torch.from_numpy(value.astype(np.float32)), 1)
    assert read_sparsity(file) == [how.get("pattern", "unstructured")]
    if not options:
        assert parity(sparse, file).passed
    assert read_sparsity(fix_batch(file, made, 1)) == read_sparsity(file) != []


def test_dense_files_say_nothing(tmp_path: Path) -> None:
    """No mark, no property; a file that is no ONNX is refused."""
    assert read_sparsity(to_onnx(captured("plain", torch.float32), tmp_path / "m.onnx")) == []
    (tmp_path / "n.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(BadInput, match=r"n\.onnx: not an ONNX file"):
        read_sparsity(tmp_path / "n.onnx")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed"
)
@pytest.mark.parametrize(
    ("made", "sparsity", "flag"),
    [(TWO_OF_FOUR, ["2:4"], "set"), (Sparsify(), ["unstructured"], "off"), (None, [], "off")],
)
def test_engines_may_use_two_of_four(made: Sparsify | None, sparsity: list[str], flag: str, tmp_path: Path) -> None:
    """The builder is told of 2:4 weights and of no others; the manifest says both."""
    model = captured("residual", torch.float32)
    file = to_onnx(made(model).model if made else model, tmp_path / "m.onnx", precision="fp16")
    manifest = to_engine(file, tmp_path / "m.engine", batches=(1, 1, 2)).manifest
    assert (manifest["sparsity"], manifest["sparse_weights"]) == (sparsity, flag)
    assert manifest["flags"] == ["STRONGLY_TYPED", *(["SPARSE_WEIGHTS"] if flag == "set" else [])]


def test_a_flavour_without_the_flag_is_noted() -> None:
    """Where the builder has no such flag, nothing is set and the manifest says so."""
    asked: list[str] = []
    config = SimpleNamespace(set_flag=asked.append)
    assert _sparse_weights(SimpleNamespace(BuilderFlag=SimpleNamespace()), config) == "unknown to this flavour"
    assert asked == []
    assert _sparse_weights(SimpleNamespace(BuilderFlag=SimpleNamespace(SPARSE_WEIGHTS="s")), config) == "set"
    assert asked == ["s"]
