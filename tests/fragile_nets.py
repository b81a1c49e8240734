"""Networks in which one value has a channel so large that no grid of 8 bits holds the others beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from shipworthy.export.int8 import Int8Settings
from shipworthy.export.quant_layers import QuantLayers
from shipworthy.tests.int8_nets import HEAD, fed, net, noise

Array = NDArray[Any]
CLASSES, FRAGILE = 5, 3000.0
CONV = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
BODY = (
    f"a = Conv<{CONV}>(x, w1, b1) ar = Relu(a) b = Conv<{CONV}>(ar, w2) br = Relu(b) c = Conv<{CONV}>(br, w3) "
    "cr = Relu(c) f = Flatten(cr) y = Gemm(f, w4)"
)
MADE, READS = "Conv_0", "Conv_2"
"""The layers that make and read the fragile value."""


def fragile(factor: float = FRAGILE, batch: str = "N", head: str = HEAD) -> ModelProto:
    """Return three convolutions and a linear layer; the first channel between the first two is `factor` times larger.

    The second convolution divides by it, so that the function is the same for every factor.
    """
    draw = np.random.default_rng(1)
    weights: dict[str, Any] = {
        name: (draw.normal(size=shape) / 8).astype(np.float32)
        for name, shape in {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (512, CLASSES)}.items()
    }
    # Without what is alike in all examples, so that every class occurs.
    last = weights["w4"].reshape(8, 64, CLASSES)
    last -= last.mean(axis=1, keepdims=True)
    weights["b1"] = draw.normal(size=8).astype(np.float32)
    weights["w1"][0] *= factor
    weights["b1"][0] *= factor
    weights["w2"][:, 0] /= factor
    return net(BODY, head, f"float[{batch},3,8,8] x", **weights)


def layers_of(proto: ModelProto, target: Any = "cpu", count: int = 64, **settings: Any) -> QuantLayers:
    """Return a graph's layers, calibrated by noise."""
    return QuantLayers(proto, fed(noise(count)), target, Int8Settings(**settings))
