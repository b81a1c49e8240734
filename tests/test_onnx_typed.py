"""A file of lower precision is typed throughout, casts at borders only, and keeps in fp32 what would break."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto
from torch import Tensor, nn

from shipworthy.export.artifact import OnnxArtifact
from shipworthy.export.onnx_file import OnnxSettings, to_onnx
from shipworthy.export.onnx_graph import OnnxGraph, read_graph
from shipworthy.export.onnx_rewrites import lower_case_einsums, transposes_after_products
from shipworthy.export.rounding import run, with_roundings
from shipworthy.export.session import OnnxSession
from shipworthy.export.typed import value_types
from shipworthy.export.typed_nodes import SENSITIVE
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import captured, images, outputs

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "mixed": TensorProto.FLOAT16}


class _Block(nn.Module):
    """Norm, attention and a small perceptron, as in any transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.act, self.fc = nn.Hardswish(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 5, 4)` of tokens `(batch, 5, 8)`."""
        y = self.norm(x)
        y = self.act(self.attention(y, y, y)[0]) + x
        scores: Tensor = self.fc(y).softmax(-1)
        return scores


class _Squares(nn.Module):
    """A root of a mean of squares that fp16 cannot hold, with a term that it takes for nothing."""

    def __init__(self, scale: float = 400.0) -> None:
        super().__init__()
        self.stem, self.fc, self.scale = nn.Linear(8, 8), nn.Linear(8, 4), scale

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)` of `(batch, 8)`."""
        y = self.stem(x) * self.scale
        scores: Tensor = self.fc(y / (y.square().mean(-1, keepdim=True) + 1e-7).sqrt())
        return scores


def _block() -> Model:
    torch.manual_seed(0)
    return capture(_Block(), (torch.randn(2, 5, 8),))


def _squares() -> Model:
    torch.manual_seed(0)
    return capture(_Squares(), (torch.randn(2, 8),))


def _computed(file: OnnxArtifact, x: Tensor) -> np.ndarray[Any, Any]:
    """Return the first output with every rounding taken, as a GPU takes them."""
    found = run(with_roundings(read_graph(file.path)), {file.inputs[0].name: x.numpy()})
    return found[file.outputs[0].name]


def _apart(found: np.ndarray[Any, Any], wanted: Tensor) -> float:
    return float(np.abs(found - wanted.detach().numpy()).max() / wanted.abs().max())


def _pairs_of_casts(proto: ModelProto) -> list[NodeProto]:
    """Return casts of what a cast gave, and casts that change nothing."""
    made = {name: node for node in proto.graph.node for name in node.output}
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    twice = [node for node in casts if node.input[0] in made and made[node.input[0]].op_type == "Cast"]
    types = value_types(OnnxGraph(proto))
    return twice + [node for node in casts if types[node.input[0]] == types[node.output[0]]]


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("name", ["squeeze-excite", "block"])
def test_a_typed_file_is_close_and_low(precision: Any, name: str, tmp_path: Path) -> None:
    """At batch 1 and 3 the roundings stay small; weights are low, inputs and outputs fp32, no cast is superfluous."""
    model = _block() if name == "block" else captured(name, torch.float32)
    file = to_onnx(model, tmp_path / "m.onnx", precision)
    for batch in (1, 3):
        x = torch.randn(batch, 5, 8) if name == "block" else images(batch, dtype=torch.float32)
        assert _apart(_computed(file, x), outputs(model, x)[0]) < (6e-2 if precision == "bf16" else 8e-3)
    proto = onnx.load(file.path)
    onnx.checker.check_model(proto, full_check=True)
    large = {i.data_type for i in proto.graph.initializer if len(i.dims) > 1 and i.data_type != TensorProto.INT64}
    assert large == {LOW[precision]}
    assert {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)} == {TensorProto.FLOAT}
    assert _pairs_of_casts(proto) == []
    kept = {node.op_type for node in proto.graph.node if node.name in file.fp32_nodes}
    assert (kept <= SENSITIVE) if precision == "mixed" else (kept == set())


def test_what_a_cpu_hides_is_seen_and_kept_in_fp32(tmp_path: Path) -> None:
    """Squares beyond 65504 are infinite on a GPU, and fine on a CPU; they and what takes them stay in fp32."""
    model, x = _squares(), torch.randn(4, 8)
    file = to_onnx(model, tmp_path / "auto.onnx", "fp16")
    kinds = {n.name: n.op_type for n in onnx.load(file.path).graph.node}
    assert {kinds[name] for name in file.fp32_nodes} >= {"ReduceMean", "Add", "Sqrt", "Pow"}
    assert _apart(_computed(file, x), outputs(model, x)[0]) < 5e-3
    # Named nodes only: the squares are of the low type, and the file is useless where roundings are taken.
    broken = to_onnx(model, tmp_path / "named.onnx", "fp16", settings=OnnxSettings(keep_fp32=("Gemm",)))
    assert not np.allclose(_computed(broken, x), outputs(model, x)[0].numpy(), atol=0.1)


def test_constants_that_the_type_cannot_hold_stay_always(tmp_path: Path) -> None:
    """A term of 1e-7 and a mask of -1e9 have no digits or range in fp16: what takes them is in fp32, asked or not."""

    class _Mask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Return shares `(batch, 8)`, next to nothing for the negative."""
            return torch.where(x < 0, x - 1e9, x + 1e-7).softmax(-1)

    model, x = capture(_Mask(), (torch.randn(2, 8),)), torch.randn(3, 8)
    file = to_onnx(model, tmp_path / "m.onnx", "fp16", settings=OnnxSettings(keep_fp32="none"))
    proto = onnx.load(file.path)
    kinds = sorted(n.op_type for n in proto.graph.node if n.name in file.fp32_nodes)
    assert kinds == ["Add", "Sub"]
    auto = to_onnx(model, tmp_path / "auto.onnx", "fp16")
    assert {n.op_type for n in onnx.load(auto.path).graph.node if n.name in auto.fp32_nodes} >= {
        "Add",
        "Sub",
        "Softmax",
    }
    assert _apart(_computed(auto, x), outputs(model, x)[0]) < 2e-3


def test_islands_can_be_named(tmp_path: Path) -> None:
    """Patterns name operator types, module paths or nodes; one that fits nothing is an error with the nearest name."""
    model = _block()
    by_type = to_onnx(model, tmp_path / "a.onnx", "fp16", settings=OnnxSettings(keep_fp32=("Soft*",)))
    assert {name.partition("_")[0] for name in by_type.fp32_nodes} == {"Softmax"}
    by_path = to_onnx(model, tmp_path / "b.onnx", "fp16", settings=OnnxSettings(keep_fp32=("attention",)))
    assert "MatMul" in {name.partition("_")[0] for name in by_path.fp32_nodes}
    assert not any(name.startswith("LayerNorm") for name in by_path.fp32_nodes)
    types = value_types(read_graph(by_path.path))
    inside = [n for n in onnx.load(by_path.path).graph.node if n.name in by_path.fp32_nodes and n.op_type == "MatMul"]
    assert {types[name] for n in inside for name in (*n.input, *n.output)} == {TensorProto.FLOAT}
    with pytest.raises(BadInput, match=r"keep_fp32: 'atention' fits no node, .* nearest name is 'attention'"):
        to_onnx(model, tmp_path / "c.onnx", "fp16", settings=OnnxSettings(keep_fp32=("atention",)))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_inputs_and_outputs_can_be_low_too(precision: Any, tmp_path: Path) -> None:
    """Asked for, what goes in and comes out is of the low type, without casts at the ends."""
    model = captured("residual", torch.float32)
    file = to_onnx(model, tmp_path / "m.onnx", precision, settings=OnnxSettings(keep_io_types=False))
    graph = onnx.load(file.path).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {LOW[precision]}
    assert [n for n in graph.node if n.op_type == "Cast"] == []
    x = images(2, dtype=torch.float32)
    assert _apart(_computed(file, x), outputs(model, x)[0]) < 6e-2


def test_the_parser_of_tensorrt_takes_every_precision(tmp_path: Path) -> None:
    """A strongly typed network of TensorRT for RTX parses each precision, and its types are the file's."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    wanted = {"fp32": "FLOAT", "fp16": "HALF", "mixed": "HALF", "bf16": "BF16"}
    for precision, kind in wanted.items():
        file = to_onnx(_block(), tmp_path / f"{precision}.onnx", precision)  # type: ignore[arg-type]  # each is one
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(file.path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
        assert {layer.get_output(0).dtype.name for layer in products} == {kind}


def test_roundings_are_those_of_torch_in_half(tmp_path: Path) -> None:
    """A chain of elementwise operators with roundings written out gives torch's own fp16 results, bit for bit."""

    class _Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Return `(batch, 64)`."""
            return (x * 1.7 + 0.3) * (x - 0.25)

    model, x = capture(_Chain(), (torch.randn(2, 64),)), torch.randn(3, 64)
    file = to_onnx(model, tmp_path / "m.onnx", "fp16")
    # The factors are rounded first, as the file's constants are; torch would multiply by them in fp32.
    half = x.half()
    one = (half * torch.tensor(1.7).half()) + torch.tensor(0.3).half()
    np.testing.assert_array_equal(_computed(file, x), (one * (half - torch.tensor(0.25).half())).float().numpy())


def test_labels_of_sums_are_written_small() -> None:
    """Upper-case labels become free lower-case ones, and the sum stays the same."""
    x, y = (onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 3]) for name in "xy")
    node = onnx.helper.make_node("Einsum", ["x"], ["y"], equation="aBb->Bba")
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    lower_case_einsums(graph)
    equation = onnx.helper.get_attribute_value(graph.node[0].attribute[0]).decode()
    assert equation.islower()
    value = np.random.default_rng(0).random((2, 3, 3))
    np.testing.assert_array_equal(np.einsum(equation, value), np.einsum("aBb->Bba", value))


class _Sequence(nn.Module):
    """A projection of tokens that come with the batch second, as inside torch's attention, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both projections of `(batch, 5, 8)`."""
        y = self.norm(x).transpose(0, 1)
        return self.inner(y).relu().transpose(0, 1), self.outer(y).relu().transpose(0, 1)


@pytest.mark.parametrize("precision", ["fp16", "mixed"])
def test_a_file_of_attention_opens_on_cpus(precision: Any, tmp_path: Path) -> None:
    """No product of a low file reads what its batch was moved in: ONNX Runtime dies of that on an x86 CPU.

    The file is opened as others would open it, in a process of its own; the same fp32 file written low has the fault.
    """
    torch.manual_seed(0)
    module, x = _Sequence().eval(), torch.randn(3, 5, 8)
    model = capture(module, (x[:2],))
    file = to_onnx(model, tmp_path / "m.onnx", precision)
    opened = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    subprocess.run([sys.executable, "-c", opened, str(file.path)], check=True)
    found = OnnxSession(file.path).run({model.inputs[0].name: x.numpy()})
    for one, wanted in zip(found, module(x), strict=True):
        np.testing.assert_allclose(one, wanted.detach().numpy(), rtol=0, atol=4e-3)
    graph = onnx.load(file.path).graph
    moved = {node.output[0] for node in graph.node if node.op_type == "Transpose"}
    assert not moved & {name for node in graph.node if node.op_type == "MatMul" for name in node.input}


def test_a_transposition_that_others_read_is_kept() -> None:
    """Of a value that goes into a product and into a branch, the branch still has its transposition."""
    make = onnx.helper.make_node
    inner = onnx.helper.make_graph(
        [make("Neg", ["t"], ["n"])], "i", [], [onnx.helper.make_empty_tensor_value_info("n")]
    )
    nodes = [
        make("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        make("MatMul", ["t", "w"], ["y"]),
        make("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in "yz"]
    graph = onnx.helper.make_graph(nodes, "g", [], outputs, [weight])
    transposes_after_products(graph)
    assert [node.op_type for node in graph.node] == ["Transpose", "MatMul", "Transpose", "If"]
    assert graph.node[1].input[0] == "x"


def test_a_typed_file_is_the_same_each_time(tmp_path: Path) -> None:
    """Two exports of one model in a lower precision give the same bytes."""
    model = _squares()
    first, second = (to_onnx(model, tmp_path / f"{i}.onnx", "fp16") for i in range(2))
    assert first.sha256 == second.sha256
