"""Which operators a target computes in integers, and what they want around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .artifact import Target

PRODUCTS = frozenset({"Conv", "MatMul", "Gemm"})
"""Operators with MACs: what quantization is for."""

MOVES = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "MaxPool", "Identity",
     "DepthToSpace", "SpaceToDepth", "Expand", "Dropout"}
)  # fmt: skip
"""Operators whose results are among their first input's values: they take over its grid."""

CLAMPS = frozenset({"Relu", "Clip"})
"""Operators that the grid of their result computes on the way: what lies outside is cut off."""

FIXED = {"Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "HardSigmoid": (0.0, 1.0)}
"""Operators whose results have a range by definition."""


@dataclass(frozen=True)
class Rules:
    """What a target computes in integers.

    Attributes:
        products: with weights, or of two activations.
        joins: operators of several values or of their own, with integers at every input and the output.
        moves: operators that pass integers on.
        outputs: operators whose result must be quantized, or the target computes them in floating point.
        shortcuts: only what a sum takes beside a product is quantized: the product is added to in its own kernel.
    """

    products: frozenset[str]
    joins: frozenset[str]
    moves: frozenset[str]
    outputs: frozenset[str]
    shortcuts: bool = False


RULES: Mapping[Target, Rules] = {
    # ONNX Runtime: kernels named QLinear*, checked on 1.31.
    "cpu": Rules(
        products=PRODUCTS,
        joins=frozenset({"Add", "Mul", "Sigmoid", "LeakyRelu", "Concat", "AveragePool", "GlobalAveragePool"}),
        moves=MOVES - {"Expand", "Gather", "Slice", "SpaceToDepth"},
        outputs=frozenset({"Conv"}),
    ),
    # TensorRT takes integers at the inputs of its kernels and moves Q over what commutes with it by itself.
    "tensorrt": Rules(
        products=PRODUCTS | {"ConvTranspose"},
        joins=frozenset(),
        moves=frozenset(),
        outputs=frozenset(),
        shortcuts=True,
    ),
}
