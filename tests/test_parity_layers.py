"""Which layer of a file is not what it was: faults are planted, and the planted layer must be the one that is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from shipworthy.export.onnx_file import OnnxSettings, to_onnx
from shipworthy.export.parity import Parity, parity
from shipworthy.export.parity_align import cuts
from shipworthy.export.parity_layers import Search
from shipworthy.export.parity_noise import NoisyTaps
from shipworthy.export.parity_taps import OnnxTaps
from shipworthy.export.parity_taps import Tensor as Tapped
from shipworthy.export.parity_text import breach_facts, layer_text
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import images

Change = Callable[[NDArray[Any]], NDArray[Any]]


class Attention(nn.Module):
    """One block of a transformer over the rows of an image, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(24, 16), nn.Linear(16, 4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        scores: Tensor = self.head(self.block(self.embed(x.transpose(1, 2).flatten(2))).mean(1))
        return scores


class Blown(nn.Module):
    """A convolution whose result leaves fp16 and comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.large, self.head = nn.Conv2d(3, 4, 3), Large(), nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        scores: Tensor = self.head(torch.relu(self.large(self.first(x))).flatten(1))
        return scores


class Large(nn.Module):
    """Multiply and divide by what is nothing in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x * 2.0**14 * 2.0**13 / 2.0**14 / 2.0**13


class Chain(nn.Module):
    """Residual convolutions of one shape: only the right order tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)), nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        scores: Tensor = self.head(x.flatten(1))
        return scores


def made(net: type[nn.Module]) -> Model:
    """Return a seeded, captured net of images `(batch, 3, 8, 8)`."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return capture(net().eval(), (torch.zeros(2, 3, 8, 8),), source=net.__name__)


@pytest.fixture(scope="module")
def chain() -> Model:
    """A deep net."""
    return made(Chain)


@pytest.fixture(scope="module")
def attention() -> Model:
    """A transformer."""
    return made(Attention)


@pytest.fixture(scope="module")
def right(chain: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its file."""
    return to_onnx(chain, tmp_path_factory.mktemp("chain") / "right.onnx").path


def changed(proto: ModelProto, name: str, change: Change) -> None:
    """Change one weight."""
    weight = next(i for i in proto.graph.initializer if i.name == name)
    value = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.asarray(change(value), value.dtype), name))


def compared(reference: Model | Path, proto: ModelProto, folder: Path) -> Parity:
    """Compare with a changed graph."""
    onnx.save(proto, folder / "wrong.onnx")
    return parity(reference, folder / "wrong.onnx", {"x": images(16, dtype=torch.float32).numpy()})


@pytest.mark.parametrize(
    ("weight", "change", "reference"),
    [
        ("layers.3.weight", partial(np.multiply, 1.05), "file"),
        ("layers.4.bias", np.zeros_like, "torch"),
        ("layers.0.bias", np.zeros_like, "file"),
        ("head.weight", np.negative, "file"),
    ],
)
def test_a_changed_weight_is_found(
    weight: str, change: Change, reference: str, chain: Model, right: Path, tmp_path: Path
) -> None:
    """Of alike layers the changed one is named, not one that only shows it, in a logarithm of runs."""
    proto = onnx.load(right)
    changed(proto, weight, change)
    found = compared(chain if reference == "torch" else right, proto, tmp_path)
    assert found.layer is not None
    assert (found.layer.name, found.layer.kind) == (weight.rpartition(".")[0], "first")
    assert found.layer.before < 1e-5 < found.layer.own
    assert found.layer.runs <= 7
    assert found.cost is not None
    assert found.cost.candidate <= found.cost.repaired == 1


def test_a_wrong_axis_is_found(attention: Model, tmp_path: Path) -> None:
    """A softmax over the wrong tokens is named by its module and operator."""
    proto = onnx.load(to_onnx(attention, tmp_path / "right.onnx").path)
    node = next(n for n in proto.graph.node if n.op_type == "Softmax")
    node.attribute[0].i = -2
    found = compared(attention, proto, tmp_path)
    assert found.layer is not None
    assert found.layer.name == "block.self_attn"
    assert "Softmax" in found.layer.operator
    facts = breach_facts(found)
    assert facts["bad_layer"]["text"] == layer_text(found.layer, found.cost)
    assert "first bad layer: block.self_attn (" in facts["bad_layer"]["text"]
    assert "agreement with the reference " in facts["bad_layer"]["text"]


def test_an_overflow_is_found(tmp_path: Path) -> None:
    """Numbers that fp16 cannot hold are a breach on a CPU too, which would compute them in fp32; the maker is named."""
    model = made(Blown)
    half = to_onnx(model, tmp_path / "h.onnx", "fp16", settings=OnnxSettings(keep_fp32="none"))
    found = parity(model, half, {"x": images(16, dtype=torch.float32).numpy()})
    assert not found.passed
    assert found.layer is not None
    assert (found.layer.name, found.layer.operator, found.layer.own) == ("large", "Mul", float("inf"))
    assert "infinity or not a number" in layer_text(found.layer, found.cost)
    assert breach_facts(found)["bad_layer"]["own"] is None


def test_files_of_other_names_are_aligned_by_their_values(right: Path, tmp_path: Path) -> None:
    """Where no name is shared, tensors are told by what they hold and, behind the fault, by order and shape."""
    proto = onnx.load(right)
    changed(proto, "layers.2.weight", lambda w: w * 1.5)
    wrong = next(n.output[0] for n in proto.graph.node if "layers.2.weight" in n.input)
    kept = {v.name for v in (*proto.graph.input, *proto.graph.output)} | {i.name for i in proto.graph.initializer}
    for node in proto.graph.node:
        node.name = ""
        del node.metadata_props[:]
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = name if name in kept or not name else f"t_{name}"
    found = compared(right, proto, tmp_path)
    assert found.layer is not None
    assert (found.layer.tensor, found.layer.kind) == (f"t_{wrong}", "first")


def test_errors_that_add_up_are_no_single_layer(right: Path) -> None:
    """Where each layer keeps its own tolerance and all together do not, the worst one is named as such."""
    proto, truth = onnx.load(right), onnx.load(right)
    x = {"x": images(4, dtype=torch.float32).numpy()}
    for place in range(6):
        changed(proto, f"layers.{place}.weight", partial(np.multiply, 1 + 1e-6 * (place + 1)))
    search = Search(OnnxTaps(truth), NoisyTaps(truth, "fp16"), OnnxTaps(proto), "fp16", x)
    layer, _ = search.find()
    assert (layer.kind, layer.own < layer.tolerance) == ("largest", True)
    assert layer.name.startswith("layers.")
    assert "no layer alone is bad" in layer_text(layer)


def test_an_int8_file_names_the_layer_that_errs_most(chain: Model, tmp_path: Path) -> None:
    """What 8 bits cost everywhere has no first layer: of a broken file the worst one is named."""
    made = to_onnx(chain, tmp_path / "i.onnx", "int8", calibration=images(32, dtype=torch.float32))
    proto = onnx.load(made.path)
    scale = next(i.name for i in proto.graph.initializer if i.name.startswith("head.weight") and "scale" in i.name)
    changed(proto, scale, lambda held: held * 40)
    found = compared(chain, proto, tmp_path)
    assert (found.precision, found.passed) == ("int8", False)
    assert found.layer is not None
    assert (found.layer.name, found.layer.kind) == ("head", "largest")


def test_cuts_are_where_everything_flows_through() -> None:
    """A place where something unknown is still needed is none; shapes do not count."""
    chain = [
        Tapped("a", "Conv", "", ("x",), True),
        Tapped("s", "Shape", "", ("x",), False),
        Tapped("b", "Conv", "", ("a",), True),
        Tapped("c", "Add", "", ("a", "b"), True),
        Tapped("y", "Reshape", "", ("c", "s"), True),
    ]
    known = dict.fromkeys(["x", "a", "b", "c", "y"], "")
    assert [cut.live for cut in cuts(chain, known, ["x"], ["y"])] == [("x",), ("a",), ("a", "b"), ("c",), ("y",)]
    assert [cut.live for cut in cuts(chain, {**dict.fromkeys("xbcy", "")}, ["x"], ["y"])] == [("x",), ("c",), ("y",)]


def test_a_search_that_fails_leaves_the_comparison(
    chain: Model, right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When layers cannot be compared, the breach stands and says why no layer is named."""
    proto = onnx.load(right)
    changed(proto, "layers.3.weight", lambda w: w * 2)

    def refused(model: Model) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr("shipworthy.export.parity.traced", refused)
    found = compared(replace(chain), proto, tmp_path)
    assert (found.passed, found.layer) == (False, None)
    assert found.notes == ("the layers could not be compared: no such operator",)
    assert breach_facts(found) == {"parity_notes": list(found.notes)}
