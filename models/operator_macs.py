"""Multiply-accumulates of ATen operators, from sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.fx import Node

from .graph import argument, aten

Sizes = Callable[[Any], list[int]]
"""From a node to its sizes."""


def macs_of(node: Node, sizes: Sizes) -> int:
    """Return the multiply-accumulates of an operator; 0 of those that multiply no matrices."""
    counter = _COUNTERS.get(node.target) if node.op == "call_function" else None
    return 0 if counter is None else int(counter(node, sizes))


def _layer(node: Node, sizes: Sizes) -> int:
    """Every output needs all weights of its channel."""
    return product(sizes(node)) * product(sizes(node.args[1])[1:])


def _transposed(node: Node, sizes: Sizes) -> int:
    return product(sizes(node.args[0])) * product(sizes(node.args[1])[1:])


def _matmul(node: Node, sizes: Sizes) -> int:
    return product(sizes(node)) * sizes(node.args[0])[-1]


def _add_matmul(node: Node, sizes: Sizes) -> int:
    return product(sizes(node)) * sizes(node.args[1])[-1]


def _einsum(node: Node, sizes: Sizes) -> int:
    """One operand after the other: each product runs over the letters of both, and keeps what is still needed."""
    inputs, _, output = str(node.args[0]).replace(" ", "").replace("...", "").partition("->")
    operands: Any = node.args[1]
    parts = inputs.split(",")
    known = {letter: size for part, o in zip(parts, operands, strict=True) for letter, size in zip(part[::-1], sizes(o)[::-1], strict=False)}  # fmt: skip # noqa: E501
    total, have = 0, set(parts[0])
    for place, part in enumerate(parts[1:], start=1):
        total += product([known[letter] for letter in have | set(part)])
        have = (have | set(part)) & set("".join([output, *parts[place + 1 :]]))
    return total


def _attention(node: Node, sizes: Sizes) -> int:
    """Scores, then what they weigh."""
    keys = sizes(node.args[1])[-2]
    return product(sizes(node.args[0])) * keys + product(sizes(node)) * keys


def _recurrent(node: Node, sizes: Sizes) -> int:
    steps = product(sizes(node.args[0])[:-1])
    return steps * sum(product(sizes(w)) for w in argument(node, "params") if len(sizes(w)) == 2)


def product(sizes: list[int]) -> int:
    """Return how many positions such a tensor has."""
    return int(np.prod(sizes, dtype=np.int64))


def _all(names: str, counter: Callable[[Node, Sizes], int]) -> dict[Any, Callable[[Node, Sizes], int]]:
    packets = [getattr(aten, name) for name in names.split()]
    return {getattr(packet, overload): counter for packet in packets for overload in packet.overloads()}


_COUNTERS = {
    **_all("conv1d conv2d conv3d linear", _layer),
    **_all("conv_transpose1d conv_transpose2d conv_transpose3d", _transposed),
    **_all("matmul mm bmm mv", _matmul),
    **_all("addmm baddbmm", _add_matmul),
    **_all("einsum", _einsum),
    **_all("scaled_dot_product_attention", _attention),
    **_all("lstm gru rnn_tanh rnn_relu", _recurrent),
}
