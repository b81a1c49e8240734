"""Equalisation, smoothing and bias correction: the same function in fp32, and a better one in integers."""
# ruff: noqa: E501 (graphs as text)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from shipworthy.export.int8 import Int8Settings, Known, to_int8
from shipworthy.export.quant_bias import with_biases
from shipworthy.export.quant_equalize import equalizable, equalized
from shipworthy.export.quant_grid import Range
from shipworthy.export.quant_prepare import prepared
from shipworthy.export.quant_smooth import smoothable, smoothed
from shipworthy.export.quant_stream import largest_by_channel, means_by_channel
from shipworthy.models.errors import BadInput
from shipworthy.tests.int8_nets import apart, fed, in_integers, net, noise, outputs, types

KERNEL = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
SIZES = np.exp(np.random.default_rng(1).normal(0, 2, 8)).astype(np.float32)
"""What channels are scaled by to make grids for all of them bad."""
DRAW = np.random.default_rng(2)
W1 = DRAW.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32)
W2 = DRAW.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32)
DEEP = DRAW.normal(0, 0.3, (8, 1, 3, 3)).astype(np.float32)
B = DRAW.normal(0, 0.1, 8).astype(np.float32)
UNEVEN: dict[str, Any] = {
    "w1": W1 * SIZES[:, None, None, None],
    "b1": B * SIZES,
    "w2": W2 / SIZES[None, :, None, None],
    "b2": B,
}
WIDTH = 12


def _pair(between: str) -> ModelProto:
    return net(f"c1 = Conv<{KERNEL}>(x, w1, b1) {between} y = Conv<{KERNEL}>(r1, w2, b2)", **UNEVEN)


CHAINS = {
    "relu": _pair("r1 = Relu(c1)"),
    "leaky": _pair("r1 = LeakyRelu<alpha = 0.2>(c1)"),
    "pooled": _pair("a = Relu(c1) r1 = MaxPool<kernel_shape = [2, 2]>(a)"),
    "nothing": _pair("r1 = Identity(c1)"),
    "depthwise": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) d = Conv<{KERNEL}, group = 8>(r1, wd, b2) r2 = Relu(d) y = Conv<{KERNEL}>(r2, w2, b2b)",
        **{**UNEVEN, "w2": W2, "b2b": B, "wd": DEEP / SIZES[:, None, None, None]}),
    "grouped": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) y = Conv<{KERNEL}, group = 2>(r1, w2, b2)",
        **{**UNEVEN, "w2": np.concatenate([W2[:4, :4] / SIZES[None, :4, None, None], W2[4:, 4:] / SIZES[None, 4:, None, None]])}),
    "flattened": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) f = Flatten(r1) y = Gemm<transB = 1>(f, wg)",
        **{**UNEVEN, "wg": DRAW.normal(0, 0.1, (4, 512)).astype(np.float32) / np.repeat(SIZES, 64)}),
    "dense": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) p = GlobalAveragePool(r1) f = Flatten(p) g = Gemm(f, wg, b2) r = Relu(g) y = Gemm(r, wh)",
        **{**UNEVEN, "wg": DRAW.normal(0, 0.3, (8, 8)).astype(np.float32) / SIZES[:, None], "wh": W2[:, :4, 0, 0]}),
}  # fmt: skip

LEFT_ALONE = {
    "relu6": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Clip(c1, zero, six) y = Conv<{KERNEL}>(r1, w2, b2)",
                 zero=np.float32(0), six=np.float32(6), **UNEVEN),
    "prelu": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = PRelu(c1, slope) y = Conv<{KERNEL}>(r1, w2, b2)", slope=(8, 1, 1), **UNEVEN),
    "read twice": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) c2 = Conv<{KERNEL}>(r1, w2, b2) y = Add(c2, r1)", **UNEVEN),
    "output": net(f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) y = Conv<{KERNEL}>(r1, w2, b2)", made="float y, float r1", **UNEVEN),
    "shared weight": net(f"c0 = Conv<{KERNEL}>(x, w1, b1) c1 = Conv<{KERNEL}>(c0, w2, b1) r1 = Relu(c1) y = Conv<{KERNEL}>(r1, w2, b2)", **UNEVEN),
    "sigmoid": _pair("r1 = Sigmoid(c1)"),
}  # fmt: skip


def _largest(proto: ModelProto, x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return largest_by_channel(proto, equalizable(proto), fed(x)())


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("measured", [True, False])
def test_equalised_is_the_same_function(name: str, measured: bool) -> None:
    """In fp32 nothing changes; what lies between products is of more even size, whether measured or by weights."""
    proto, x = prepared(CHAINS[name]), noise()
    made = equalized(proto, _largest(proto, x) if measured else None)
    assert apart(outputs(made, x)[0], outputs(proto, x)[0]) < 1e-5

    def spread(one: ModelProto) -> float:
        return max(float(values.max() / values[values > 0].min()) for values in _largest(one, x).values())

    assert spread(made) < spread(proto) / 4


@pytest.mark.parametrize("name", CHAINS)
def test_equalised_is_better_in_integers(name: str) -> None:
    """The error of 8 bits on channels of unequal size falls to a half or less."""
    x = noise()
    wanted = outputs(CHAINS[name], x)[0]
    errors = [apart(outputs(in_integers(CHAINS[name], equalize=on).proto, x)[0], wanted) for on in (False, True)]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_does_not_commute_is_left_alone(name: str) -> None:
    """ReLU6, PReLU, sigmoid, and values or weights that others use, stay as they are."""
    proto = prepared(LEFT_ALONE[name])
    made = equalized(proto)
    before, after = ({one.name: one for one in p.graph.initializer} for p in (proto, made))
    changed = {key for key in before if before[key] != after[key]}
    assert changed == set()


def test_dead_channels_are_left_out() -> None:
    """A channel that is always zero, or that nobody uses, blows nothing up."""
    dead, unused = W1.copy(), W2.copy()
    dead[2], unused[:, 5] = 0, 0
    proto = prepared(net(f"c1 = Conv<{KERNEL}>(x, w1) r1 = Relu(c1) y = Conv<{KERNEL}>(r1, w2)", w1=dead, w2=unused))
    made, x = equalized(proto, _largest(proto, noise())), noise()
    assert np.isfinite(outputs(made, x)[0]).all()
    assert apart(outputs(made, x)[0], outputs(proto, x)[0]) < 1e-5


# --- norms

OUTLIERS = np.where(np.arange(WIDTH) % 5 == 0, 60, 1).astype(np.float32)
NORM = "n = LayerNormalization(x, scale, shift)"
APART = "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [-1]>(q) e = Add(v, tiny) t = Sqrt(e) u = Div(d, t) k = Mul(u, scale) n = Add(k, shift)"
READ = "a = MatMul(n, wa) b = MatMul(n, wb) y = Add(a, b)"


def _norm(body: str) -> ModelProto:
    draw = np.random.default_rng(3)
    weights: dict[str, Any] = {
        name: (draw.normal(0, 0.3, (WIDTH, WIDTH)) / OUTLIERS[:, None] ** 0.7).astype(np.float32)
        for name in ("wa", "wb")
    }
    return net(
        body,
        HEAD,
        "float[N,5,12] x",
        scale=OUTLIERS,
        shift=draw.normal(size=WIDTH).astype(np.float32),
        tiny=np.float32(1e-5),
        **weights,
    )


HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
NORMS = {
    "whole": (_norm(f"{NORM} {READ}"), False),
    "apart": (_norm(f"{APART} {READ}"), False),
    "gemm": (net("f = Flatten<axis = 1>(x) n = LayerNormalization(f, scale) y = Gemm<transB = 1>(n, w)", HEAD, "float[N,12] x", scale=OUTLIERS, w=(6, 12)), False),
    "with a sum": (_norm(f"{NORM} a = MatMul(n, wa) y = Add(a, n)"), True),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_smoothed_is_the_same_function(name: str) -> None:
    """In fp32 nothing changes, outliers shrink, and an operator is added only where a sum reads the norm."""
    given, adds = NORMS[name]
    proto, x = (
        prepared(given),
        noise(64, tuple(d.dim_value for d in given.graph.input[0].type.tensor_type.shape.dim[1:])),
    )
    made = smoothed(proto, largest_by_channel(proto, smoothable(proto), fed(x)()))
    assert apart(outputs(made, x)[0], outputs(proto, x)[0]) < 1e-5
    assert (len(types(made)) > len(types(proto))) == adds
    before, after = (
        largest_by_channel(one, smoothable(one) if not adds else {"n": -1}, fed(x)()) for one in (proto, made)
    )
    read = after if not adds else largest_by_channel(made, {"n/smooth": -1}, fed(x)())
    ratio = [float(values.max() / values.min()) for found in (before, read) for values in found.values()]
    assert ratio[-1] < ratio[0] / 2


@pytest.mark.parametrize("name", ["whole", "apart", "with a sum"])
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_smoothed_is_better_in_integers(name: str, target: str) -> None:
    """Outliers of few channels cost less when the weights take a part of them."""
    given, x = NORMS[name][0], noise(64, (5, WIDTH))
    wanted = outputs(given, x)[0]
    found = [in_integers(given, target, x, smooth=alpha).proto for alpha in (None, 0.5)]  # type: ignore[arg-type]
    errors = [apart(outputs(one, x)[0], wanted) for one in found]
    assert errors[1] < errors[0]


# --- biases


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("body", [
    f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) y = Conv<{KERNEL}>(r1, w2, b2)",
    f"c1 = Conv<{KERNEL}>(x, w1) r1 = Relu(c1) y = Conv<{KERNEL}>(r1, w2)",
    f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) p = GlobalAveragePool(r1) f = Flatten(p) y = MatMul(f, wm)",
    f"c1 = Conv<{KERNEL}>(x, w1, b1) r1 = Relu(c1) p = GlobalAveragePool(r1) f = Flatten(p) m = MatMul(f, wm) y = Add(bm, m)",
])  # fmt: skip
def test_biases_bring_the_means_back(target: str, body: str) -> None:
    """Four-bit weights move means; with corrected biases, old and new, the output's are nearer to those in fp32."""
    proto, x = net(body, wm=(8, 4), bm=(4,), **{**UNEVEN, "w1": W1, "w2": W2}), noise(64) + 0.5
    wanted = means_by_channel(proto, {"y": 1}, fed(x)())["y"]
    moved = []
    for on in (False, True):
        made = in_integers(proto, target, x, weight_bits=4, correct_bias=on).proto  # type: ignore[arg-type]
        moved.append(np.abs(means_by_channel(made, {"y": 1}, fed(x)())["y"] - wanted).max())
    assert moved[1] < moved[0] / 3


def test_biases_of_its_own_change_nothing() -> None:
    """Shared, missing and short biases become one for each product; the function stays."""
    proto = prepared(net(f"c1 = Conv<{KERNEL}>(x, w1, b) c2 = Conv<{KERNEL}>(c1, w2, b) p = GlobalAveragePool(c2) f = Flatten(p) g = Gemm(f, wg, one) y = MatMul(g, wh)",
        w1=W1, w2=W2, b=B, wg=(8, 6), one=np.ones((1, 1), np.float32), wh=(6, 4)))  # fmt: skip
    made = with_biases(proto, [node.name for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")])
    biases = [node.input[2] for node in made.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(set(biases)) == 3
    assert types(made)[-2:] == ["MatMul", "Add"]
    assert apart(outputs(made, noise())[0], outputs(proto, noise())[0]) < 1e-6


def test_nothing_is_changed_that_was_trained() -> None:
    """With scales from training none of the three applies; smoothing takes a share."""
    known = Known({"x": Range(-1, 1)})
    with pytest.raises(BadInput, match="what the scales were trained for"):
        to_int8(CHAINS["relu"], fed(noise()), "cpu", Int8Settings(equalize=True), known)
    with pytest.raises(BadInput, match=r"smooth 1\.5, wanted 0 to 1"):
        in_integers(CHAINS["relu"], smooth=1.5)
