"""Change constants of a graph, and find products that follow one another, with nothing between that mixes channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from .onnx_shapes import attributes_of
from .quant_plan import Wiring

Array = NDArray[Any]

HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout"})  # fmt: skip # noqa: E501
"""Operators that give `s f(x)` for `s x`, channel by channel, for every `s` above zero."""


class Constants:
    """The constants of a graph, to be read and replaced in place."""

    def __init__(self, proto: ModelProto) -> None:
        self._held = {one.name: one for one in proto.graph.initializer}

    def read(self, name: str) -> Array:
        """Return a constant's values."""
        return numpy_helper.to_array(self._held[name])

    def write(self, name: str, values: Array) -> None:
        """Replace a constant's values; its type stays."""
        kind = numpy_helper.to_array(self._held[name]).dtype
        self._held[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, kind), name))


@dataclass(frozen=True, eq=False)
class Chain:
    """Two products, and a value between them that no one else reads.

    Attributes:
        first: makes the channels.
        value: what `second` takes.
        second: takes the channels.
        channels: how many there are.
    """

    first: NodeProto
    value: str
    second: NodeProto
    channels: int


def chains(wiring: Wiring) -> Iterator[Chain]:
    """Yield products that follow one another, in the graph's order."""
    for node in wiring.graph.node:
        if owns_constants(wiring, node):
            found = _followed(wiring, node)
            if found is not None:
                yield found


def owns_constants(wiring: Wiring, node: NodeProto) -> bool:
    """Whether a node is a convolution or Gemm whose weight and bias are constants that it alone reads."""
    if node.op_type not in ("Conv", "Gemm") or number(node, "transA", 0) or number(node, "beta", 1.0) != 1:
        return False
    return all(name in wiring.weights and wiring.only_reader(name) is node for name in node.input[1:] if name)


def _followed(wiring: Wiring, first: NodeProto) -> Chain | None:
    channels, value, flat = _made(wiring, first), first.output[0], first.op_type == "Gemm"
    while (reader := wiring.only_reader(value)) is not None and reader.input[0] == value:
        if owns_constants(wiring, reader):
            fits = taken(wiring, reader) % channels == 0 if flat else taken(wiring, reader) == channels
            return Chain(first, value, reader, channels) if fits else None
        flattens = reader.op_type == "Flatten" and number(reader, "axis", 1) == 1
        if not (reader.op_type in HOMOGENEOUS or flattens) or len(list(filter(None, reader.output))) != 1:
            return None
        value, flat = reader.output[0], flat or flattens
    return None


def _made(wiring: Wiring, node: NodeProto) -> int:
    weight = wiring.weights[node.input[1]].dims
    return int(weight[0] if node.op_type == "Conv" or number(node, "transB", 0) else weight[1])


def taken(wiring: Wiring, node: NodeProto) -> int:
    """Return how many channels, or values of a flattened map, a product takes."""
    weight = wiring.weights[node.input[1]].dims
    if node.op_type == "Conv":
        return int(weight[1] * number(node, "group", 1))
    return int(weight[1] if number(node, "transB", 0) else weight[0])


def rows_of(node: NodeProto, weight: Array) -> Array:
    """Return a product's weight as `(outputs, inputs of each group, places)`."""
    if node.op_type == "Conv":
        return weight.reshape(*weight.shape[:2], -1)
    rows: Array = (weight if number(node, "transB", 0) else weight.T)[:, :, None]
    return rows


def by_output(node: NodeProto, weight: Array, factors: Array) -> Array:
    """Return a weight with its output channels multiplied."""
    axis = 0 if node.op_type == "Conv" or number(node, "transB", 0) else 1
    made: Array = weight * factors.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])
    return made


def by_input(node: NodeProto, weight: Array, factors: Array) -> Array:
    """Return a weight with its input channels multiplied, of which each may stand for several neighbours."""
    if node.op_type == "Gemm":
        wide = weight if number(node, "transB", 0) else weight.T
        made: Array = wide * np.repeat(factors, wide.shape[1] // len(factors))
        return made if number(node, "transB", 0) else made.T
    groups = int(number(node, "group", 1))
    split = weight.reshape(groups, -1, *weight.shape[1:])
    found: Array = split * factors.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return found.reshape(weight.shape)


def largest_by_input(node: NodeProto, weight: Array, channels: int) -> Array:
    """Return the largest weight on each input channel, `(channels,)`, relative to its output channel's largest.

    Each output channel has a scale of its own, so only what a weight is beside its row's largest counts.
    """
    rows = np.abs(rows_of(node, weight))
    most = rows.max(axis=(1, 2), keepdims=True)
    relative = (rows / np.where(most > 0, most, 1.0)).max(axis=2)
    if node.op_type == "Gemm":
        found: Array = relative.max(axis=0).reshape(channels, -1).max(axis=1)
        return found
    groups = int(number(node, "group", 1))
    return np.asarray(relative.reshape(groups, -1, relative.shape[1]).max(axis=1).reshape(-1))


def number(node: NodeProto, name: str, usual: float) -> float:
    """Return a number among a node's attributes, or the usual one."""
    return float(attributes_of(node).get(name, usual))
