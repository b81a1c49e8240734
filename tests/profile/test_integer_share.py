from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from shipworthy.profile.errors import BadPlan
from shipworthy.profile.integer_share import FloatNode, IntegerShare, engine_share, integer_share
from shipworthy.profile.not_faster import Timed, look_into, share_lines, why_not_faster
from shipworthy.profile.plan import Plan

CHANNELS, PIXELS = 16, 8
WIDE = CHANNELS * 9
CONV_MACS = CHANNELS * CHANNELS * 9 * PIXELS**2

Net = Callable[..., Path]


class Graph:
    """Write a chain of convolutions and a product, with Q/DQ pairs where they are wanted."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.numbers = np.random.default_rng(0)
        self.constant("scale", np.float32(0.05))

    def constant(self, name: str, value: Any) -> str:
        """Add an initializer."""
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def pair(self, value: str, name: str, dtype: Any = np.uint8) -> str:
        """Quantize and dequantize an activation."""
        zero = self.constant(f"{name}_zero", dtype(128 if dtype is np.uint8 else 0))
        self.nodes.append(helper.make_node("QuantizeLinear", [value, "scale", zero], [f"{name}_q"], f"{name}_Q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", zero], [name], f"{name}_DQ"))
        return name

    def conv(self, value: str, name: str) -> str:
        """Add a convolution that keeps the size, its weight in int8."""
        weight, shape = f"{name}.weight", (CHANNELS, CHANNELS, 3, 3)
        held = self.constant(f"{weight}_int8", self.numbers.integers(-64, 64, shape, dtype=np.int8))
        zero = self.constant(f"{weight}_zero", np.int8(0))
        self.nodes.append(helper.make_node("DequantizeLinear", [held, "scale", zero], [weight], f"{weight}_DQ"))
        self.nodes.append(helper.make_node("Conv", [value, weight], [f"{name}_out"], name, pads=[1, 1, 1, 1]))
        return f"{name}_out"

    def product(self, value: str, name: str) -> str:
        """Add a product with a weight in float, of as many MACs as a convolution has."""
        weight = self.constant(f"{name}.weight", self.numbers.standard_normal((PIXELS, WIDE)).astype(np.float32))
        self.nodes.append(helper.make_node("MatMul", [value, weight], [f"{name}_out"], name))
        return f"{name}_out"

    def write(self, path: Path, last: str) -> Path:
        """Write the file; the value `last` is its output."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, PIXELS, PIXELS])
        y = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", CHANNELS, PIXELS, "width"])
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


@pytest.fixture
def net(tmp_path: Path) -> Net:
    """Give a writer of two convolutions, the second one perhaps a product: `bad` says what is wrong around it."""

    def write(bad: str = "") -> Path:
        graph = Graph()
        first = graph.conv(graph.pair("x", "x_dq"), "first")
        between = first if bad == "input" else graph.pair(first, "between")
        if bad == "sigmoid":
            graph.nodes.append(helper.make_node("Sigmoid", [between], ["sigmoid"], "act"))
            between = "sigmoid"
        second = graph.product(between, "second") if bad == "weight" else graph.conv(between, "second")
        if bad == "relu":
            graph.nodes.append(helper.make_node("Softplus", [second], ["softplus"], "act"))
            second = "softplus"
        last = second if bad == "output" else graph.pair(second, "last", np.int8 if bad == "types" else np.uint8)
        if bad == "types":  # of an int8 value with two users ONNX Runtime makes no uint8
            graph.nodes.append(helper.make_node("Softplus", [last], ["softplus"], "act"))
            graph.nodes.append(helper.make_node("Mul", [last, "softplus"], ["product"], "mul"))
            last = "product"
        return graph.write(tmp_path / f"{bad or 'good'}.onnx", last)

    return write


def test_all_is_in_integers_where_all_pairs_are_right(net: Net) -> None:
    """MACs are those of the shapes, all run in integers, and what is left of the pairs turns input and output."""
    found = integer_share(net())
    assert (found.macs, found.integer_macs, found.share) == (2 * CONV_MACS, 2 * CONV_MACS, 1.0)
    assert (found.products, found.integer_products, found.in_float, found.not_counted) == (2, 2, (), ())
    assert (found.pairs, found.edges, found.inner_pairs) == ({"QuantizeLinear": 1, "DequantizeLinear": 1}, 2, 0)
    assert share_lines(found) == ("100 % of MACs run in int8 on ort-cpu (2 of 2 operators)",)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("weight", "its weight is not quantized"),
        ("output", "its output is not quantized"),
        ("relu", "its output is not quantized before Softplus"),
        ("sigmoid", "no Q/DQ at its input, which Sigmoid makes"),
        ("types", "its input is uint8 and its output int8, where ONNX Runtime wants one type"),
    ],
)
def test_what_falls_back_is_named_with_its_cause(bad: str, reason: str, net: Net) -> None:
    """Half of the MACs stay in float, in the node that was planted, for the planted reason."""
    found = integer_share(net(bad))
    (node,) = found.in_float
    assert (node.operator, node.macs, node.reason) == ("MatMul" if bad == "weight" else "Conv", CONV_MACS, reason)
    assert "second" in node.title
    assert found.share == 0.5
    assert share_lines(found)[1] == f"in float: {node.title}, 50 % of MACs: {reason}"
    assert reason in " ".join(why_not_faster(found))


def test_an_input_without_a_pair_keeps_both_sides_in_float(net: Net) -> None:
    """A convolution without pairs behind it is not fused either."""
    found = integer_share(net("input"))
    assert found.share == 0
    reasons = {node.reason for node in found.in_float}
    assert reasons == {"its output is not quantized before Conv", "no Q/DQ at its input, which Conv makes"}


def test_pairs_that_are_left_are_counted_with_what_they_are_around(net: Net) -> None:
    """Types that differ leave the operator between its pairs."""
    found = integer_share(net("types"))
    assert found.inner_pairs > 0
    assert "Conv second" in found.unfused
    assert any(
        f"{found.inner_pairs} QuantizeLinear" in line and "Conv second" in line for line in why_not_faster(found)
    )


def _product(path: Path) -> Path:
    numbers = np.random.default_rng(0)
    w = numpy_helper.from_array(numbers.standard_normal((64, 32)).astype(np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "net", [x], [y], [w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_dynamic_quantization_is_in_integers(tmp_path: Path) -> None:
    """Integers whose ranges are found as it runs are integers all the same; MACs are those of an example."""
    made = tmp_path / "dynamic.onnx"
    quantize_dynamic(_product(tmp_path / "float.onnx"), made, weight_type=QuantType.QInt8)
    for batch in (1, 4):
        found = integer_share(made, plan=Plan(batch=batch))
        assert (found.macs, found.share) == (64 * 32, 1.0)


def test_integer_weights_alone_are_said_apart(tmp_path: Path) -> None:
    """Four-bit weights are no integer arithmetic."""
    w = numpy_helper.from_array(np.random.default_rng(0).integers(0, 255, (32, 2, 16), dtype=np.uint8), "w")
    scales = numpy_helper.from_array(np.ones((32 * 2,), np.float32), "scales")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])
    few: Any = {"domain": "com.microsoft", "K": 64, "N": 32, "bits": 4, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", "w", "scales"], ["y"], "few", **few)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "few.onnx"
    graph = helper.make_graph([node], "net", [x], [y], [w, scales])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    found = integer_share(path)
    assert (found.macs, found.integer_macs, found.weights_only_macs, found.share) == (64 * 32, 0, 64 * 32, 0.0)
    assert "100 % of MACs have integer weights only" in share_lines(found)[1]


def test_a_file_in_float_says_so(tmp_path: Path) -> None:
    """No pairs, no integers, and the operator named."""
    found = integer_share(_product(tmp_path / "float.onnx"))
    assert (found.share, found.pairs, found.macs) == (0.0, {}, 64 * 32)
    assert [(node.operator, node.reason) for node in found.in_float] == [("MatMul", "no Q/DQ at its input")]


def test_it_is_plain_data_and_back(net: Net) -> None:
    """What is stored is what was found."""
    found = integer_share(net("types"))
    assert IntegerShare.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_what_cannot_be_run_is_refused_in_words(tmp_path: Path, net: Net) -> None:
    """Runtimes without a graph to read, and files that are none."""
    with pytest.raises(BadPlan, match=r"got runtime 'tensorrt', wanted one of ort-cpu, ort-cuda"):
        integer_share(net(), "tensorrt")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(BadPlan, match=r"broken\.onnx: ONNX Runtime .* cannot profile it"):
        integer_share(tmp_path / "broken.onnx")


def test_an_engine_tells_formats_or_why_not() -> None:
    """TensorRT tells what kernels write, and only where a GPU could load the engine."""
    told = engine_share({"flavour": "rtx", "engine_precisions": {"INT8": 9, "FP16": 2}})
    assert (told.share, told.nodes) == (None, 11)
    assert share_lines(told) == ("kernels on rtx by number format: 9 INT8, 2 FP16",)
    absent = engine_share({"flavour": "rtx", "engine_precisions": {}})
    assert "only where a GPU can load it" in share_lines(absent)[0]


CONV = FloatNode("Conv_2", "Conv", 10, "its weight is not quantized", "stem.conv")
HALF = IntegerShare("ort-cpu", 8, 2, 1, 100, 90, in_float=(CONV,), pairs={"QuantizeLinear": 3}, edges=1)


def test_a_graph_whose_start_costs_most_is_too_small() -> None:
    """Eight operators of 1 us each are most of an inference of 10 us, and little of one of 1 ms."""
    small, large = (why_not_faster(HALF, timed=Timed(ns, {"QLinearConv": 1.0}, 1000.0)) for ns in (1e4, 1e6))
    assert small[0].startswith(
        "the graph is too small: starting its 8 operators takes 8.00 us (1.00 us each, measured)"
    )
    assert not any("too small" in line for line in large)


def test_times_are_said_of_what_was_added() -> None:
    """Pairs and layouts come with their share of the time, and little work with where the time goes."""
    timed = Timed(1e6, {"QLinearConv": 0.3, "QuantizeLinear": 0.2, "Transpose": 0.1, "Softmax": 0.4})
    share = IntegerShare("ort-cpu", 8, 2, 2, 100, 100, pairs={"QuantizeLinear": 3}, edges=1, reorders={"Transpose": 2}, casts=1)  # fmt: skip # noqa: E501
    assert why_not_faster(share, timed=timed) == (
        "multiply-accumulates take only 30 % of its time; the rest goes into Softmax 40 %, QuantizeLinear 20 %, "
        "Transpose 10 %",
        "2 QuantizeLinear and DequantizeLinear nodes inside the graph were not fused; with those at its ends they take "
        "20 % of the time",
        "ONNX Runtime added 2 changes of layout (2 Transpose); they take 10 % of the time",
        "ONNX Runtime added 1 Cast nodes",
    )


def test_a_pruning_that_spares_nothing_is_told_so() -> None:
    """Files in float are compared by the MACs that run, padding included."""
    before, after = IntegerShare("ort-cpu", 3, 2, 0, 1000), IntegerShare("ort-cpu", 3, 2, 0, 990)
    assert why_not_faster(after, before)[0].startswith("only 1 % fewer MACs run than before (990 of 1,000")
    assert "fewer MACs run, and on this CPU that is no faster" in why_not_faster(IntegerShare("ort-cpu", 3, 2, 0, 500), before)[0]  # fmt: skip # noqa: E501


def test_there_is_always_a_reason(net: Net) -> None:
    """A file against itself is never faster; what is said of it was really counted and timed."""
    share, reasons = look_into(net(), net(), plan=Plan(budget_s=0.1))
    assert share.share == 1.0
    assert reasons
