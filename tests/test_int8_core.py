"""Where integers go: what ONNX Runtime then runs, what TensorRT is given, and that the function stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from shipworthy.export.engine import to_engine
from shipworthy.export.int8 import Int8Settings, Known, to_int8
from shipworthy.export.onnx_clean import check
from shipworthy.export.quant_grid import Range
from shipworthy.tests.int8_nets import apart, fed, in_integers, left_in_float, net, noise, optimized, outputs, types

# ruff: noqa: E501 (graphs as text)
KERNEL = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
HEAD8 = "p = GlobalAveragePool(last) f = Flatten(p) y = Gemm<transB = 1>(f, wg, bg)"
W: dict[str, Any] = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 8, 3, 3), "b3": (8,), "wg": (4, 8), "bg": (4,)}  # fmt: skip
STEM = f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1)"
SIX: dict[str, Any] = {"zero": np.float32(0), "six": np.float32(6)}


def _residual(sides: str) -> ModelProto:
    return net(f"""{STEM} c2 = Conv<{KERNEL}>(r1, w2, b2) r2 = Relu(c2) c3 = Conv<{KERNEL}>(r2, w3, b3)
        s = Add({sides}) last = Relu(s) {HEAD8}""", **W)  # fmt: skip


def _mobile() -> ModelProto:
    return net(f"""c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Clip(c1, zero, six)
        d = Conv<{KERNEL}, group = 8>(r1, wd, b2) r2 = Clip(d, zero, six)
        c3 = Conv(r2, wp, b3) last = Add(r1, c3) {HEAD8}""", **{**W, **SIX, "wd": (8, 1, 3, 3), "wp": (8, 8, 1, 1)})  # fmt: skip


def _efficient() -> ModelProto:
    return net(f"""c1 = Conv<{KERNEL}>(x, w1, b1) g1 = Sigmoid(c1) r1 = Mul(c1, g1)
        p0 = GlobalAveragePool(r1) q = Conv(p0, wq, bq) gq = Sigmoid(q) sq = Mul(q, gq) e = Conv(sq, we, b2)
        gate = Sigmoid(e) last = Mul(r1, gate) {HEAD8}""",
        **{**W, "wq": (2, 8, 1, 1), "bq": (2,), "we": (8, 2, 1, 1)})  # fmt: skip


NETS = {
    "residual": _residual("r1, c3"),
    "residual-turned": _residual("c3, r1"),
    "mobile": _mobile(),
    "efficient": _efficient(),
    "concat": net(f"{STEM} c2 = Conv<{KERNEL}>(r1, w2, b2) last = Concat<axis = 1>(r1, c2) p = GlobalAveragePool(last) "
                  "f = Flatten(p) y = Gemm<transB = 1>(f, wg, bg)", **{**W, "wg": (4, 16)}),
    "several-readers": net(f"{STEM} c2 = Conv<{KERNEL}>(r1, w2, b2) c3 = Conv<{KERNEL}>(r1, w3, b3) last = Add(c2, c3) {HEAD8}", **W),
    "shared-weight": net(f"{STEM} c2 = Conv<{KERNEL}>(r1, w2, b2) r2 = Relu(c2) last = Conv<{KERNEL}>(r2, w2, b3) {HEAD8}", **W),
    "no-bias": net(f"c1 = Conv<{KERNEL}>(x, w1) r1 = Relu(c1) last = Conv<{KERNEL}>(r1, w2) p = GlobalAveragePool(last) "
                   "f = Flatten(p) y = Gemm<transB = 1>(f, wg)", **W),
    "grouped": net(f"{STEM} c2 = Conv<{KERNEL}, group = 2>(r1, w2, b2) last = Relu(c2) {HEAD8}", **{**W, "w2": (8, 4, 3, 3)}),
    "gemm-plain": net(f"{STEM} p = GlobalAveragePool(r1) f = Flatten(p) y = Gemm(f, wg, bg)", **{**W, "wg": (8, 4)}),
    "pooled": net(f"{STEM} m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r1) last = Conv<{KERNEL}>(m, w2, b2) {HEAD8}", **W),
    "leaky": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = LeakyRelu<alpha = 0.1>(c1) last = Conv<{KERNEL}>(r1, w2, b2) {HEAD8}", **W),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_left_in_float_on_a_cpu(name: str, tmp_path: Path) -> None:
    """ONNX Runtime runs every product and what is between in integers, and the result is near that in fp32."""
    made = in_integers(NETS[name])
    check(made.proto)
    assert left_in_float(NETS[name], tmp_path) != []
    assert left_in_float(made.proto, tmp_path) == []
    assert made.kept == ()
    x = noise(seed=1)
    assert apart(outputs(made.proto, x)[0], outputs(NETS[name], x)[0]) < 0.06


@pytest.mark.parametrize("name", NETS)
def test_the_layout_for_tensorrt(name: str) -> None:
    """All grids are signed and symmetric, biases stay in fp32, weights have a scale for each output channel."""
    made = in_integers(NETS[name], "tensorrt").proto
    check(made)
    held = {one.name: one for one in made.graph.initializer}
    quantizers = [node for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantizers
    for node in quantizers:
        zero = held[node.input[2]]
        assert zero.data_type == TensorProto.INT8
        assert not numpy_helper.to_array(zero).any()
    for node in made.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            assert held[node.input[2]].data_type == TensorProto.FLOAT
    x = noise(seed=1)
    assert apart(outputs(made, x)[0], outputs(NETS[name], x)[0]) < 0.06


@pytest.mark.parametrize("name", ["residual", "residual-turned"])
def test_a_shortcut_is_quantized_for_tensorrt(name: str) -> None:
    """Of a sum, the side that is no product goes through Q/DQ, the product's does not."""
    graph = in_integers(NETS[name], "tensorrt").proto.graph
    makers = {one: node.op_type for node in graph.node for one in node.output}
    add = next(node for node in graph.node if node.op_type == "Add")
    assert sorted(makers[one] for one in add.input) == ["Conv", "DequantizeLinear"]


def test_an_engine_is_built(tmp_path: Path) -> None:
    """TensorRT for RTX takes the layout for TensorRT."""
    pytest.importorskip("tensorrt_rtx_bindings")
    path = tmp_path / "m.onnx"
    fixed = ModelProto()
    fixed.CopyFrom(in_integers(NETS["residual"], "tensorrt").proto)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path.write_bytes(fixed.SerializeToString())
    assert to_engine(path, tmp_path / "m.engine", flavour="rtx").path.stat().st_size > 0


def test_clamps_are_done_by_grids() -> None:
    """ReLU and ReLU6 after a product are gone, and nothing below 0 or above 6 comes out."""
    text = f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Clip(c1, zero, six) c2 = Conv<{KERNEL}>(r1, w2, b2) y = Relu(c2)"
    proto = net(text, **{**W, **SIX, "w1": 20 * noise(8, (3, 3, 3))})
    made = in_integers(proto).proto
    assert {"Relu", "Clip"}.isdisjoint(types(made))
    inner = ModelProto()
    inner.CopyFrom(made)
    read = [node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear" and node.input[0] == "r1/whole"]  # fmt: skip
    inner.graph.output[0].name = read[0]
    found = outputs(inner, noise(seed=1) * 3)[0]
    assert found.min() == 0
    assert found.max() == pytest.approx(6, abs=0.01)


@pytest.mark.parametrize(("high", "kept"), [(12.0, 6.0), (6.01, 6.01)])
def test_a_trained_grid_stands_for_a_clamp_no_further_than_it_reaches(high: float, kept: float) -> None:
    """A range that training left beyond ReLU6 is cut off there; one beyond it by rounding alone is kept."""
    text = f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Clip(c1, zero, six) y = Conv<{KERNEL}>(r1, w2, b2)"
    proto = net(text, **W, **SIX)
    known = Known(ranges={"r1": Range(0.0, high)})
    made = to_int8(proto, fed(noise()), "cpu", Int8Settings(), known).proto
    held = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    quantizer = next(node for node in made.graph.node if node.output[0] == "r1/whole")
    assert 255 * held[quantizer.input[1]] == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize(("low", "high"), [(1.0, 6.0), (-6.0, -1.0)])
def test_a_clamp_beside_zero_stays(low: float, high: float) -> None:
    """A grid always holds zero, so that it cannot do the work of a clamp that does not let it through."""
    text = f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Clip(c1, low, high) y = Conv<{KERNEL}>(r1, w2, b2)"
    proto = net(text, **W, low=np.float32(low), high=np.float32(high))
    made = in_integers(proto).proto
    assert "Clip" in types(made)
    assert apart(outputs(made, noise(seed=1))[0], outputs(proto, noise(seed=1))[0]) < 0.05


@pytest.mark.parametrize("inside", ["r1", "c2"])
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_an_output_that_is_read_inside(inside: str, target: str) -> None:
    """Values that go out and on keep their names and what they are."""
    proto = net(f"{STEM} c2 = Conv<{KERNEL}>(r1, w2, b2) y = Conv<{KERNEL}>(c2, w3, b3)", made=f"float y, float {inside}", **W)  # fmt: skip
    made = in_integers(proto, target).proto  # type: ignore[arg-type]  # parametrized
    check(made)
    assert [one.name for one in made.graph.output] == ["y", inside]
    x = noise(seed=1)
    for found, wanted in zip(outputs(made, x), outputs(proto, x), strict=True):
        assert apart(found, wanted) < 0.06


def test_a_bias_beyond_32_bits() -> None:
    """A bias too large for integers in the products' scale gets coarser weights, not a wrapped sum."""
    weights: dict[str, Any] = {**W, "w1": 1e-9 * noise(8, (3, 3, 3)), "b1": np.arange(8, dtype=np.float32) * 50 - 100}
    proto = net(f"y = Conv<{KERNEL}>(x, w1, b1)", **weights)
    assert apart(outputs(in_integers(proto).proto, noise())[0], outputs(proto, noise())[0]) < 0.01


def test_a_product_with_a_number(tmp_path: Path) -> None:
    """A constant factor between products is an integer, too."""
    proto = net(f"{STEM} m = Mul(r1, half) last = Conv<{KERNEL}>(m, w2, b2) {HEAD8}", half=np.float32(0.3), **W)
    made = in_integers(proto).proto
    assert left_in_float(made, tmp_path) == []
    assert apart(outputs(made, noise(seed=1))[0], outputs(proto, noise(seed=1))[0]) < 0.06


def test_a_negative_constant(tmp_path: Path) -> None:
    """A factor below zero and a summand keep their values in unsigned integers."""
    proto = net(f"{STEM} m = Mul(r1, less) a = Add(m, row) last = Conv<{KERNEL}>(a, w2, b2) {HEAD8}",
                less=np.float32(-0.3), row=noise(1, (8, 1, 1)), **W)  # fmt: skip
    made = in_integers(proto).proto
    assert left_in_float(made, tmp_path) == []
    assert apart(outputs(made, noise(seed=1))[0], outputs(proto, noise(seed=1))[0]) < 0.06


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_a_matrix_product_with_its_sum(target: str) -> None:
    """A MatMul and the Add of its bias, after a transpose, keep their function."""
    proto = net("t = Transpose<perm = [0, 2, 1]>(x) m = MatMul(t, w) a = Add(m, b) r = Relu(a) y = MatMul(r, v)",
                given="float[N,6,5] x", w=(6, 7), b=(7,), v=(7, 3))  # fmt: skip
    x = noise(64, (6, 5))
    made = in_integers(proto, target, x)  # type: ignore[arg-type]  # parametrized
    check(made.proto)
    assert len(made.products) == 2
    assert apart(outputs(made.proto, x)[0], outputs(proto, x)[0]) < 0.06


def test_what_is_kept_in_float(tmp_path: Path) -> None:
    """A pattern keeps an operator in fp32, and the list of those that stay names it."""
    made = in_integers(NETS["residual"], keep_float=("Gemm",))
    assert [name.split("_")[0] for name in made.kept] == ["Gemm"]
    assert any(kind.endswith("Gemm") and not kind.startswith("Q") for kind in types(optimized(made.proto, tmp_path)))


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_the_same_gives_the_same(target: str) -> None:
    """The same graph and examples give the same bytes."""
    made = [in_integers(NETS["efficient"], target).proto.SerializeToString() for _ in range(2)]  # type: ignore[arg-type]
    assert made[0] == made[1]


def test_weights_have_so_many_bits() -> None:
    """Weights use 7 bits on CPUs and 8 for TensorRT, and as many as are asked for."""

    def most(made: ModelProto) -> int:
        held = [one for one in made.graph.initializer if one.data_type == TensorProto.INT8 and len(one.dims) > 1]
        return int(max(np.abs(numpy_helper.to_array(one).astype(int)).max() for one in held))

    net_ = NETS["residual"]
    assert most(in_integers(net_).proto) == 63
    assert most(in_integers(net_, "tensorrt").proto) == 127
    assert most(in_integers(net_, weight_bits=4).proto) == 7
