"""Schemes without examples on graphs as they come: shared, turned and odd weights; answers are held against fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from shipworthy.export.engine import to_engine
from shipworthy.export.int8 import Int8Settings
from shipworthy.export.parity_runs import precision_of
from shipworthy.export.quant_linear import LEAST_WEIGHTS
from shipworthy.export.quant_schemes import quantized
from shipworthy.export.quant_weights import BLOCK
from shipworthy.export.quantize_file import quantize_onnx
from shipworthy.models.errors import BadInput
from shipworthy.models.schemes import Scheme
from shipworthy.tests.foreign_files import parsed
from shipworthy.tests.int8_nets import Array, apart, fed, net, noise, outputs

WITHOUT: list[Scheme] = ["dynamic", "int8-weights", "int4-weights"]
NEAR = {"dynamic": 0.03, "int8-weights": 0.015, "int4-weights": 0.15}
ROWS = "float[N,256] x"


def draw(*shape: int, seed: int = 0) -> Array:
    """Return normally distributed weights."""
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)


def made_in(proto: ModelProto, scheme: Scheme, target: str = "cpu") -> ModelProto:
    """Return a graph in a scheme."""
    return quantized(proto, None, target, Int8Settings(scheme=scheme)).proto  # type: ignore[arg-type]  # one of two words


def grids(proto: ModelProto) -> tuple[Array, Array]:
    """Return the integers and the scales of a graph's one layer."""
    held = {one.name.rpartition("/")[2]: numpy_helper.to_array(one) for one in proto.graph.initializer}
    return held["whole"].astype(np.float64), held["scale"].astype(np.float64)


# --- answers within what the scales allow


@pytest.mark.parametrize("inputs", [256, 250])
@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights"])
def test_weights_alone_are_within_the_bounds_of_their_scales(scheme: Scheme, inputs: int) -> None:
    """The file gives the product of its integers; ONNX Runtime's kernel rounds activations, too, to 8 bits by block."""
    weight, x = draw(inputs, 320), noise(8, (inputs,))
    made = made_in(net("y = MatMul(x, w)", given=f"float[N,{inputs}] x", w=weight), scheme)
    whole, scales = grids(made)
    stands_for = whole * np.repeat(scales, BLOCK, axis=0)[:inputs]
    blocks = np.pad(np.abs(x), ((0, 0), (0, -inputs % BLOCK))).reshape(len(x), -1, BLOCK).max(axis=2)
    step = np.repeat(blocks, BLOCK, axis=1)[:, :inputs] / 127
    allowed = 0.51 * step @ np.abs(stands_for) + 1e-5
    assert (np.abs(outputs(made, x)[0] - x.astype(np.float64) @ stands_for) <= allowed).all()
    if scheme == "int8-weights":
        half = np.abs(np.repeat(scales, BLOCK, axis=0))[:inputs] / 2
        assert (np.abs(stands_for - weight) <= 1.001 * half).all()


def test_dynamic_answers_are_within_the_bounds_of_their_scales() -> None:
    """An activation is off by at most its step, zero point included, and a weight by half of its column's."""
    weight, x = draw(256, 320), noise(8, (256,))
    made = made_in(net("y = MatMul(x, w)", given=ROWS, w=weight), "dynamic")
    held = {one.name: numpy_helper.to_array(one).astype(np.float64) for one in made.graph.initializer}
    whole, scales = held["w/linear/whole"], held["w/linear/scale"]
    assert (np.abs(whole * scales - weight) <= 0.501 * scales).all()
    assert np.abs(whole).max() <= 63  # 7 bits
    step = (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / 255
    allowed = step * np.abs(whole * scales).sum(axis=0) + 1e-5
    assert (np.abs(outputs(made, x)[0] - x.astype(np.float64) @ (whole * scales)) <= allowed).all()


# --- graphs as they come

SQUARE = "float[N,320] x"
ONE = "y = MatMul(x, w)"
PAIR = {"w": draw(256, 320), "v": draw(320, 256)}
_BODIES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "one weight read both ways": (
        "a = Gemm(x, w) b = Gemm<transB=1>(x, w) y = Sub(a, b)", SQUARE, {"w": draw(320, 320)}, 2,
    ),
    "one weight in MatMul and Gemm": (
        "a = MatMul(x, w) b = Gemm(x, w, c) y = Mul(a, b)", SQUARE, {"w": draw(320, 320), "c": (320,)}, 2,
    ),
    "one after the other": ("a = MatMul(x, w) y = MatMul(a, v)", ROWS, PAIR, 2),
    "a scaled Gemm": ("a = MatMul(x, w) y = Gemm<alpha=0.5, beta=2.0>(a, v, b)", ROWS, {**PAIR, "b": (256,)}, 1),
    "a Gemm of a turned input": (
        "a = MatMul(x, w) y = Gemm<transA=1>(a, v)", "float[8,256] x", {"w": draw(256, 320), "v": draw(8, 9000)}, 1,
    ),
    "a bias of rows": ("y = Gemm(x, w, b)", "float[8,256] x", {"w": draw(256, 320), "b": (8, 1)}, 1),
    "turned before it is read": ("t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)", ROWS, {"w": draw(320, 256)}, 1),
    "doubles": (
        "c = Cast<to=1>(w) t = Transpose(c) i = Identity(t) y = MatMul(x, i)", ROWS,
        {"w": draw(320, 256).astype(np.float64)}, 1,
    ),
    "weights for each of a batch": (
        "a = MatMul(x, v) y = MatMul(a, w)", "float[8,2,256] x", {"v": draw(256, 256), "w": draw(8, 256, 320)}, 1,
    ),
    "an input without batch": (ONE, "float[256] x", {"w": draw(256, 320)}, 1),
    "few inputs": (ONE, "float[N,16] x", {"w": draw(16, 4096)}, 1),
    "one input more than a block": (ONE, "float[N,33] x", {"w": draw(33, 2000)}, 1),
    "a prime of inputs": (ONE, "float[N,257] x", {"w": draw(257, 256)}, 1),
    "huge weights": (ONE, ROWS, {"w": draw(256, 320) * np.float32(1e25)}, 1),
}  # fmt: skip
GRAPHS = {name: (net(body, given=x, **held), count) for name, (body, x, held, count) in _BODIES.items()}
for opset in (9, 10, 11, 12):
    head = f'<ir_version: 5, opset_import: ["": {opset}]>'
    body = "a = MatMul(x, w) u = Unsqueeze<axes=[1]>(a) s = Squeeze<axes=[1]>(u) y = Relu(s)"
    GRAPHS[f"operator set {opset}"] = (net(body, head, ROWS, w=draw(256, 320)), 1)


def shape_of(proto: ModelProto) -> tuple[int, ...]:
    """Return the shape of the input, eight examples."""
    return tuple(dim.dim_value or 8 for dim in proto.graph.input[0].type.tensor_type.shape.dim)


@pytest.mark.parametrize("scheme", WITHOUT)
@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_of_any_making_is_right_and_smaller(case: str, scheme: Scheme) -> None:
    """What can be integers is, the answers are near, and the file is smaller."""
    proto, layers = GRAPHS[case]
    found = quantized(proto, None, "cpu", Int8Settings(scheme=scheme))
    onnx.checker.check_model(found.proto)
    assert len(found.products) == layers
    x = noise(1, shape_of(proto))[0]
    assert apart(*(outputs(one, x)[0].astype(np.float64) for one in (found.proto, proto))) < NEAR[scheme]
    assert found.proto.ByteSize() < proto.ByteSize()


@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights"])
@pytest.mark.parametrize("case", ["one weight read both ways", "few inputs", "one input more than a block", "a prime of inputs"])  # fmt: skip # noqa: E501
def test_tensorrt_takes_what_is_made_for_it(case: str, scheme: Scheme, tmp_path: Path) -> None:
    """Blocks are equal, whatever the inputs; the answers as written are near, and an RTX engine is built."""
    pytest.importorskip("tensorrt_rtx_bindings")
    proto = GRAPHS[case][0]
    made = made_in(proto, scheme, "tensorrt")
    x = noise(1, shape_of(proto))[0]
    assert apart(outputs(made, x)[0], outputs(proto, x)[0]) < NEAR[scheme]
    onnx.save(made, tmp_path / "m.onnx")
    assert to_engine(tmp_path / "m.onnx", tmp_path / "m.engine").bytes


def test_an_odd_number_of_four_bits_stays_in_fp32_for_tensorrt() -> None:
    """TensorRT refuses it; the layer beside it, and the same one for CPUs, become integers."""
    proto = net("a = MatMul(x, w) y = MatMul(a, v)", given="float[N,257] x", w=draw(257, 257), v=draw(257, 256))
    assert len(quantized(proto, None, "tensorrt", Int8Settings(scheme="int4-weights")).products) == 1
    assert len(quantized(proto, None, "tensorrt", Int8Settings(scheme="int8-weights")).products) == 2
    assert len(quantized(proto, None, "cpu", Int8Settings(scheme="int4-weights")).products) == 2


@pytest.mark.parametrize("scheme", WITHOUT)
def test_columns_of_zeros_stay_zero(scheme: Scheme) -> None:
    """Outputs whose weights are all zero, or too small for a scale, are nothing; the others are near."""
    weight = draw(256, 320)
    weight[:, 5], weight[:, 6] = 0, 1e-42
    proto, x = net("y = MatMul(x, w)", given=ROWS, w=weight), noise(4, (256,))
    found, right = outputs(made_in(proto, scheme), x)[0], outputs(proto, x)[0]
    assert np.abs(found[:, 5:7]).max() < 1e-30
    assert apart(found, right) < NEAR[scheme]


def test_layers_too_narrow_for_blocks_stay_in_fp32() -> None:
    """Of few inputs the scales take more than the integers save."""
    proto = net("y = MatMul(x, w)", given="float[N,2] x", w=draw(2, LEAST_WEIGHTS))
    with pytest.raises(BadInput, match="int8-weights: nothing to quantize"):
        made_in(proto, "int8-weights")


# --- what cannot be


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("scheme", WITHOUT)
def test_weights_that_are_no_numbers_are_named(scheme: Scheme, bad: float, tmp_path: Path) -> None:
    """The layer is named, no file is left; kept in floating point, the others are quantized."""
    weight = draw(256, 320)
    weight[3, 4] = bad
    onnx.save(net("a = MatMul(x, w) y = MatMul(a, v)", given=ROWS, w=weight, v=draw(320, 256)), tmp_path / "a.onnx")
    with pytest.raises(BadInput, match="the weight 'w' of MatMul 'MatMul_0' holds NaN or infinity"):
        quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", None, settings=Int8Settings(scheme=scheme))
    assert not (tmp_path / "b.onnx").exists()
    kept = Int8Settings(scheme=scheme, keep_float=("MatMul_0",))
    assert quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", None, settings=kept).products == 1


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_int8_does_not_have(bits: int) -> None:
    """More would wrap around, one is nothing but zero."""
    proto = net("y = MatMul(x, w)", given=ROWS, w=draw(256, 320))
    with pytest.raises(BadInput, match=f"weight_bits {bits}, wanted 2 to 8"):
        quantized(proto, None, "cpu", Int8Settings(scheme="dynamic", weight_bits=bits))
    with pytest.raises(BadInput, match=f"weight_bits {bits}, wanted 2 to 8"):
        quantized(proto, fed(noise(32, (256,))), "cpu", Int8Settings(weight_bits=bits))


@pytest.mark.parametrize("scheme", WITHOUT)
def test_halves_and_quantized_files_are_refused(scheme: Scheme, tmp_path: Path) -> None:
    """Both ask for the fp32 file; nothing is written."""
    half = parsed("g (float16[N,2] x) => (float16[N,2] y) <float16[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }")
    whole = made_in(net("y = MatMul(x, w)", given=ROWS, w=draw(256, 320)), scheme)
    for proto in (half, whole):
        onnx.save(proto, tmp_path / "a.onnx")
        with pytest.raises(BadInput, match="the fp32 file it was made of"):
            quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", None, settings=Int8Settings(scheme=scheme))
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(("scheme", "precision"), [("dynamic", "int8"), ("int8-weights", "int8-weights"), ("int4-weights", "int4-weights")])  # fmt: skip # noqa: E501
def test_a_file_says_its_precision(scheme: Scheme, precision: str, tmp_path: Path) -> None:
    """What parity reads from a graph is what its properties say."""
    onnx.save(net("y = MatMul(x, w)", given=ROWS, w=draw(256, 320)), tmp_path / "a.onnx")
    quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", None, settings=Int8Settings(scheme=scheme))
    held = {one.key: one.value for one in onnx.load(tmp_path / "b.onnx").metadata_props}
    assert (held["shipworthy.precision"], held["shipworthy.scheme"]) == (precision, scheme)
    assert precision_of(tmp_path / "b.onnx") == precision
