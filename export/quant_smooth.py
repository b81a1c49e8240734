"""Smooth activations behind a norm: outliers of few channels go into the weights that read them.

SmoothQuant (Xiao et al. 2023): transformers have channels a hundred times larger than the others, and one scale for
all leaves the others few integers. Dividing a norm's scale and shift by `s`, channel by channel, and multiplying the
rows of the weights that read it is the same function. Where a sum reads the norm too, as in BERT, the division is an
operator of its own in front of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from .quant_chains import Constants, number
from .quant_plan import Wiring
from .quant_prepare import wiring_of

Array = NDArray[Any]

_LEAST_SHARE = 1e-5


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm whose channels, the last dimension, weights read.

    Attributes:
        value: what it gives.
        parts: its scale and its shift, which it alone reads; none where they cannot be divided.
        products: what reads the value, with a constant weight each.
    """

    value: str
    parts: tuple[str, ...]
    products: tuple[NodeProto, ...]


def smoothable(proto: ModelProto) -> dict[str, int]:
    """Return the values that `smoothed` can smooth, with the dimension of the channels.

    Args:
        proto: a prepared fp32 graph.
    """
    return {norm.value: -1 for norm in _norms(wiring_of(proto))}


def smoothed(proto: ModelProto, largest: Mapping[str, Array], alpha: float = 0.5) -> ModelProto:
    """Return a graph of the same function with smaller outliers in what norms give to matrix products.

    A norm is a LayerNormalization, or what other tools take it apart to: a `Mul` by one number for each channel, and an
    `Add` of one. Channel `c` is divided by `max|x_c|^alpha / max|w_c|^(1 - alpha)`.

    Args:
        proto: a prepared fp32 graph.
        largest: the largest magnitude of each channel of values, from calibration; others stay as they are.
        alpha: how much goes into the weights, in 0 to 1; 0.5 shares it out.
    """
    made = ModelProto()
    made.CopyFrom(proto)
    constants = Constants(made)
    for norm in _norms(wiring_of(made)):
        if norm.value in largest:
            _divide(made, constants, norm, _factors(constants, norm, largest[norm.value], alpha))
    return made


def _factors(constants: Constants, norm: Norm, largest: Array, alpha: float) -> Array:
    weights = [np.abs(_by_input(node, constants.read(node.input[1]))).max(axis=1) for node in norm.products]
    sides = [largest.astype(np.float64), np.max(weights, axis=0).astype(np.float64)]
    if not all(side.max(initial=0.0) for side in sides):
        return np.ones(len(largest))
    given, read = (np.log(np.maximum(side, _LEAST_SHARE * side.max())) for side in sides)
    found = alpha * given - (1 - alpha) * read
    return np.asarray(np.exp(found - found.mean()))


def _divide(made: ModelProto, constants: Constants, norm: Norm, factors: Array) -> None:
    for node in norm.products:
        weight = constants.read(node.input[1])
        scaled = _by_input(node, weight) * factors[:, None]
        constants.write(node.input[1], scaled.T if _is_turned(node) else scaled)
    for name in norm.parts:
        constants.write(name, constants.read(name) / factors)
    if not norm.parts:
        _divide_apart(made, norm, factors)


def _divide_apart(made: ModelProto, norm: Norm, factors: Array) -> None:
    """Put a multiplication between a value and the products that read it, in place."""
    name, by = f"{norm.value}/smooth", f"{norm.value}/smooth_by"
    made.graph.initializer.append(numpy_helper.from_array((1 / factors).astype(np.float32), by))
    first = min(list(made.graph.node).index(node) for node in norm.products)
    for node in norm.products:
        node.input[0] = name
    made.graph.node.insert(first, helper.make_node("Mul", [norm.value, by], [name], name))


def _norms(wiring: Wiring) -> Iterator[Norm]:
    for node in wiring.graph.node:
        parts = _parts(wiring, node)
        if parts is None:
            continue
        readers = wiring.readers.get(node.output[0], [])
        products = tuple(reader for reader in readers if _reads(wiring, reader, node.output[0]))
        # Weights that others read as well would need a copy.
        if products and all(wiring.only_reader(product.input[1]) is product for product in products):
            free = len(products) == len(readers) and node.output[0] not in wiring.outputs
            owned = all(len(wiring.readers[name]) == 1 and name not in wiring.outputs for name in parts)
            yield Norm(node.output[0], parts if free and owned else (), products)


def _parts(wiring: Wiring, node: NodeProto) -> tuple[str, ...] | None:
    """Return the scale and shift of a norm that ends in a node; None where none does."""
    if node.op_type == "LayerNormalization":
        parts = tuple(filter(None, node.input[1:3]))
        rows = all(name in wiring.weights and len(wiring.weights[name].dims) == 1 for name in parts)
        return parts if rows else None
    shift = _row(wiring, node) if node.op_type == "Add" else None
    if shift is not None:
        maker = wiring.makers.get(_other(node, shift))
        if maker is None or maker.op_type != "Mul" or wiring.only_reader(maker.output[0]) is not node:
            return None
        scale = _row(wiring, maker)
        return None if scale is None else (scale, shift)
    scale = _row(wiring, node) if node.op_type == "Mul" else None
    return None if scale is None else (scale,)


def _row(wiring: Wiring, node: NodeProto) -> str | None:
    """Return the constant of more than one number, one for each channel, that a node takes."""
    found = [name for name in node.input if name in wiring.weights and len(wiring.weights[name].dims) == 1]
    return found[0] if len(found) == 1 and wiring.weights[found[0]].dims[0] > 1 else None


def _other(node: NodeProto, name: str) -> str:
    return str(next(one for one in node.input if one != name))


def _reads(wiring: Wiring, node: NodeProto, value: str) -> bool:
    """Whether a product takes a value as it is, and a constant weight of two dimensions."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] != value or number(node, "transA", 0):
        return False
    weight = wiring.weights.get(node.input[1])
    return weight is not None and len(weight.dims) == 2 and node.input[1] in wiring.floats


def _is_turned(node: NodeProto) -> bool:
    return node.op_type == "Gemm" and bool(number(node, "transB", 0))


def _by_input(node: NodeProto, weight: Array) -> Array:
    """Return a weight as `(inputs, outputs)`."""
    return weight.T if _is_turned(node) else weight


__all__ = ["smoothable", "smoothed"]
