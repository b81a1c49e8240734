"""Large weights of linear layers become integers in blocks; nothing else changes, and runtimes have kernels for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shipworthy.export.artifact import Target
from shipworthy.export.engine import to_engine
from shipworthy.export.int8 import Int8Settings, Scheme
from shipworthy.export.quant_linear import packed
from shipworthy.export.quant_schemes import without_examples
from shipworthy.export.quant_weights import BLOCK, blocks_of
from shipworthy.export.quantize_file import quantize_onnx
from shipworthy.models.errors import BadInput
from shipworthy.tests.int8_nets import Array, apart, net, optimized, outputs, types

RANK3 = "float[N,L,256] x"


def weights(inputs: int = 256, outputs: int = 320, seed: int = 0) -> Array:
    """Return normally distributed weights."""
    return np.random.default_rng(seed).normal(0, 0.05, (inputs, outputs)).astype(np.float32)


def examples(*shape: int) -> Array:
    """Return normally distributed inputs."""
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def restored(whole: Array, scales: Array) -> Array:
    """Return what integers of blocks stand for."""
    made: Array = whole * np.repeat(scales, BLOCK, axis=0)[: len(whole)]
    return made


@pytest.mark.parametrize("inputs", [256, 250])
def test_every_weight_is_within_half_a_step(inputs: int) -> None:
    """With 8 bits no weight moves by more than half of its block's step; the last block may be short."""
    weight = weights(inputs)
    whole, scales = blocks_of(weight, 8)
    steps = np.repeat(scales, BLOCK, axis=0)[:inputs]
    assert scales.shape == (-(-inputs // BLOCK), 320)
    assert (np.abs(restored(whole, scales) - weight) <= steps * 0.5001).all()


def test_four_bits_lose_less_than_plain_rounding() -> None:
    """The scale of the least error is better than the one that holds every weight, and a free sign better still."""
    weight = weights()
    most = np.abs(weight.reshape(-1, BLOCK, 320)).max(axis=1) / 7
    plain = apart(np.round(weight / np.repeat(most, BLOCK, axis=0)) * np.repeat(most, BLOCK, axis=0), weight)
    positive, free = (apart(restored(*blocks_of(weight, 4, signed)), weight) for signed in (False, True))
    assert free < positive < plain
    assert (blocks_of(weight, 4)[1] > 0).all()
    assert (blocks_of(weight, 4, signed=True)[1] < 0).any()


def test_a_block_of_zeros_stays_zero() -> None:
    """Weights that pruning zeroed stay exactly zero."""
    weight = weights()
    weight[:BLOCK] = 0
    for bits in (4, 8):
        whole, scales = blocks_of(weight, bits, signed=True)
        assert np.isfinite(scales).all()
        assert not restored(whole, scales)[:BLOCK].any()


def test_four_bits_are_packed_as_onnx_reads_them() -> None:
    """Two integers share a byte, an odd one too."""
    values = np.array([[-8, 7, 3], [0, -1, 5], [1, 2, -3]], np.int8)
    tensor = helper.make_tensor("w", TensorProto.INT4, values.shape, packed(values), raw=True)
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


@pytest.mark.parametrize(("scheme", "least"), [("int8-weights", 0.01), ("int4-weights", 0.12)])
@pytest.mark.parametrize(
    ("net_of", "shape"),
    [
        (("float[N,L,256] x", "m = MatMul(x, w) y = Add(m, b)"), (2, 3, 256)),
        (("float[N,H,L,250] x", "y = MatMul(x, w)"), (2, 2, 3, 250)),
        (("float[N,256] x", "y = Gemm(x, w, b)"), (3, 256)),
    ],
)
def test_one_kernel_of_runtimes_computes_it(
    tmp_path: Path, scheme: Scheme, least: float, net_of: tuple[str, str], shape: tuple[int, ...]
) -> None:
    """ONNX Runtime fuses weight, product and bias whatever the rank, and the result is near."""
    proto = net(net_of[1], given=net_of[0], w=weights(shape[-1]), b=(320,))
    made = without_examples(proto, "cpu", Int8Settings(scheme=scheme))
    onnx.checker.check_model(made.proto, full_check=True)
    x = examples(*shape)
    assert apart(outputs(made.proto, x)[0], outputs(proto, x)[0]) < least
    assert types(optimized(made.proto, tmp_path)) == ["MatMulNBits"]


def test_a_transposed_weight_is_the_same_layer() -> None:
    """A Gemm with its weight transposed gives what it gave."""
    proto = net("y = Gemm<transB=1>(x, w, b)", given="float[N,256] x", w=weights().T.copy(), b=(320,))
    x = examples(3, 256)
    made = without_examples(proto, "cpu", Int8Settings(scheme="int8-weights")).proto
    assert apart(outputs(made, x)[0], outputs(proto, x)[0]) < 0.01


def test_small_layers_stay_as_they_are() -> None:
    """Layers below the size, of activations, and those that are named stay in fp32."""
    body = "a = MatMul(x, w) b = MatMul(a, small) y = MatMul(b, w2)"
    proto = net(body, given=RANK3, w=weights(), small=weights(320, 8), w2=weights(8, 16))
    made = without_examples(proto, "cpu", Int8Settings(scheme="int4-weights"))
    assert len(made.products) == 1
    assert len(made.kept) == 2
    assert {one.name for one in made.proto.graph.initializer} >= {"small", "w2"}
    with pytest.raises(BadInput, match="at least 65536 constant fp32 weights"):
        without_examples(proto, "cpu", Int8Settings(keep_float=(made.products[0],), scheme="int4-weights"))


def test_old_files_are_brought_to_blocks(tmp_path: Path) -> None:
    """A file of an old operator set becomes one of 21, is as small as its bits, and says what it is."""
    source, path = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(net("y = MatMul(x, w)", '<ir_version: 7, opset_import: ["": 11]>', RANK3, w=weights(256, 4096)), source)
    made = quantize_onnx(source, path, None, settings=Int8Settings(scheme="int4-weights"))
    assert made.scheme == "int4-weights"
    assert made.examples == 0
    assert made.source_bytes / made.bytes > 6
    found = onnx.load(path)
    assert found.opset_import[0].version == 21
    assert "int4-weights" in {one.value for one in found.metadata_props}


def test_a_shared_weight_is_held_once() -> None:
    """Two layers of one weight read the same integers."""
    proto = net("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)", given=RANK3, w=weights(256, 256))
    made = without_examples(proto, "cpu", Int8Settings(scheme="int8-weights"))
    assert len(made.products) == 2
    assert len(made.proto.graph.initializer) == 2


@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights"])
def test_tensorrt_builds_engines_of_blocks(tmp_path: Path, scheme: Scheme) -> None:
    """An RTX engine is built, and has small weights."""
    pytest.importorskip("tensorrt_rtx_bindings")
    source, path = tmp_path / "m.onnx", tmp_path / "m.w.onnx"
    onnx.save(net("m = MatMul(x, w) y = Add(m, b)", given="float[N,256] x", w=weights(256, 4096), b=(4096,)), source)
    quantize_onnx(source, path, None, "tensorrt", Int8Settings(scheme=scheme))
    sizes = [to_engine(file, tmp_path / f"{file.stem}.engine").path.stat().st_size for file in (source, path)]
    assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        ("tensorrt", Int8Settings(scheme="dynamic"), "TensorRT takes scales from the file only"),
        ("cpu", Int8Settings(scheme="int8-weights", smooth=0.5), "int8-weights: has no smooth"),
        ("cpu", Int8Settings(scheme="int4-weights", weight_bits=4), "int4-weights: has no weight_bits"),
        ("cpu", Int8Settings(scheme="dynamic", method="mse"), "dynamic: has no method"),
        ("cpu", Int8Settings(scheme="int3"), "scheme 'int3': choose one of int8, dynamic"),  # type: ignore[arg-type]  # the point
    ],
)
def test_what_cannot_be(target: Target, settings: Int8Settings, words: str) -> None:
    """A scheme that the target cannot run, or a setting that it has no use for, is refused."""
    with pytest.raises(BadInput, match=words):
        without_examples(net("y = MatMul(x, w)", given=RANK3, w=weights()), target, settings)


def test_examples_where_they_belong(tmp_path: Path) -> None:
    """Static int8 without examples, and the others with some, are refused; no file is left."""
    source, path = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(net("y = MatMul(x, w)", given="float[N,256] x", w=weights()), source)
    with pytest.raises(BadInput, match="needs calibration, examples that show"):
        quantize_onnx(source, path, None)
    with pytest.raises(BadInput, match="dynamic: takes no calibration"):
        quantize_onnx(source, path, {"x": examples(16, 256)}, settings=Int8Settings(scheme="dynamic"))
    assert not path.exists()
