"""Weight-only quantization: integers of 8 or 4 bits in blocks, products in floating point."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from .artifact import Target
from .quant_linear import Linear, Weights, kin
from .quant_prepare import in_opset
from .typed import opset_of

Array = NDArray[Any]
Bits = Literal[4, 8]

BLOCK = 32
"""Weights to a scale. A scale takes 4 bytes beside the 16 of its 4-bit weights; 64 and 128 lose more accuracy."""
_LEAST_INPUTS = 16
"""Below this scales take more than the integers save."""
LEAST_OPSET = 21
"""The first in which a DequantizeLinear has a scale for each block, and integers have 4 bits."""
_LEAST_IR = 10
_LEAST_SCALE = float(np.finfo(np.float32).tiny)

_SHARES: dict[int, tuple[float, ...]] = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)}


def in_blocks(proto: ModelProto, layers: dict[str, Linear], bits: Bits, target: Target) -> ModelProto:
    """Return the graph with linear layers' weights as integers that are dequantized block by block.

    ONNX Runtime makes one kernel of the DequantizeLinear, the product and the bias (MatMulNBits); TensorRT takes the
    same file.

    Args:
        proto: a prepared fp32 graph of operator set 21 or later, see `of_blocks`.
        layers: of it, see `linear_layers`.
        bits: of a weight.
        target: the family of runtimes; TensorRT takes positive scales only.
    """
    signed = bits == 4 and target == "cpu"
    weights, nodes = Weights(), list[NodeProto]()
    for node in proto.graph.node:
        layer = layers.get(node.name)
        nodes.extend([node] if layer is None else _dequantized(layer, (bits, signed, block_of(layer, target)), weights))
    made = weights.into(proto, nodes)
    made.ir_version = max(made.ir_version, _LEAST_IR)
    return made


def of_blocks(proto: ModelProto) -> ModelProto:
    """Return the graph in an operator set that has blocks.

    Raises:
        BadInput: onnx cannot convert it.
    """
    if opset_of(proto) >= LEAST_OPSET:
        return proto
    remedy = f"export the model anew with opset {LEAST_OPSET} or later"
    return in_opset(proto, LEAST_OPSET, "weight-only", "scales by block", remedy)


def takes_blocks(layer: Linear, bits: Bits, target: Target) -> bool:
    """Whether a layer gets smaller in blocks, and the target takes it: TensorRT no odd number of 4-bit integers."""
    whole = bits == 8 or target == "cpu" or layer.weight.size % 2 == 0
    return whole and len(layer.weight) >= _LEAST_INPUTS


def block_of(layer: Linear, target: Target) -> int:
    """Return how many inputs share a scale: 32; for TensorRT, whose blocks are equal, the divisor nearest to that."""
    inputs = len(layer.weight)
    if target == "cpu":
        return BLOCK
    return min((size for size in range(1, inputs + 1) if inputs % size == 0), key=lambda size: abs(log(size / BLOCK)))


def _dequantized(layer: Linear, grid: tuple[Bits, bool, int], weights: Weights) -> Iterator[NodeProto]:
    name = layer.source
    if not weights.has(f"{name}/whole"):
        whole, scales = blocks_of(layer.weight, *grid)
        weights.add(f"{name}/whole", whole, TensorProto.INT4 if grid[0] == 4 else None)
        weights.add(f"{name}/scale", scales)
    result = f"{layer.node.output[0]}/weight"
    given = [f"{name}/whole", f"{name}/scale"]
    yield kin(layer.node, "DequantizeLinear", given, result, f"{result}/dequantize", axis=0, block_size=grid[2])
    yield from layer.product("MatMul", [layer.node.input[0], result])


def blocks_of(
    weight: Array, bits: Bits, signed: bool = False, block: int = BLOCK
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return weights as integers and the scales of their blocks along the inputs, `(blocks, outputs)`.

    A block's scale takes its largest magnitude to the largest integer, or is somewhat smaller: the one with the least
    squared error. Where its sign is free, the largest weight may become the most negative integer, of which there is
    one more than of positive ones.

    Args:
        weight: `(inputs, outputs)`.
        bits: of an integer, sign included.
        signed: scales may be negative.
        block: inputs to a scale; the last block may have fewer.
    """
    inputs, outputs = weight.shape
    padded = np.pad(weight, ((0, -inputs % block), (0, 0))).reshape(-1, block, outputs).astype(np.float32)
    most = 2 ** (bits - 1) - 1
    low, high = padded.min(axis=1), padded.max(axis=1)
    extreme = np.where(-low > high, low, high)
    ends = [np.abs(extreme) / most, *([extreme / -(most + 1)] if signed else [])]
    best = _usable(ends[0])
    least = _error(padded, best, most)
    for scale in [_usable(full * np.float32(share)) for full in ends for share in _SHARES[bits]]:
        error = _error(padded, scale, most)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return _whole(padded, best, most).astype(np.int8).reshape(-1, outputs)[:inputs], best


def _usable(scale: Array) -> NDArray[np.float32]:
    """Return scales that can be divided by. That of zeros is small, too: kernels leave some of its rounding behind."""
    return np.where(np.abs(scale) < _LEAST_SCALE, _LEAST_SCALE, scale).astype(np.float32)


def _error(blocks: Array, scale: Array, most: int) -> NDArray[np.float64]:
    """Return the squared error of each block, in double precision: squares of large weights overflow in single."""
    left = _whole(blocks, scale, most) * scale[:, None] - blocks
    found: NDArray[np.float64] = np.einsum("ijk,ijk->ik", left, left, dtype=np.float64)
    return found


def _whole(blocks: Array, scale: Array, most: int) -> Array:
    made: Array = np.clip(np.round(blocks / scale[:, None]), -most - 1, most)
    return made
