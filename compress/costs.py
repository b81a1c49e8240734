"""What a model costs when some of its channels are gone, from the sizes alone: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.fx import Node

from ..models.graph import argument, aten, shape_of
from ..models.model import Model
from .atoms import Lost, kept
from .channels import Channels, Dims
from .rules_shapes import period

Sizes = Callable[[Any], list[int]]
"""From a node to its sizes, those of one example where the batch may vary."""


def costs(model: Model, channels: Channels, lost: Lost) -> dict[str, int]:
    """Return `params` and `macs` (per example) without the atoms `lost`. MACs are those of layers and products."""

    def sizes(node: Any) -> list[int]:
        shape = shape_of(node) or ()
        return _left([period(size) for size in shape], channels.nodes[node.name], lost)

    parameters = dict(model.module.named_parameters())
    params = sum(
        int(np.prod(_left(list(parameters[name].shape), dims, lost), dtype=np.int64))
        for name, dims in channels.tensors.items()
        if name in parameters
    )
    return {"params": params, "macs": sum(macs_of(node, sizes) for node in model.module.graph.nodes)}


def _left(sizes: list[int], dims: Dims, lost: Lost) -> list[int]:
    return [
        size if atoms is None else size // len(atoms) * int(kept(atoms, lost).sum())
        for size, atoms in zip(sizes, dims, strict=True)
    ]


def macs_of(node: Node, sizes: Sizes) -> int:
    """Return the multiply-accumulates of an operator; 0 of those that multiply no matrices."""
    counter = _COUNTERS.get(node.target) if node.op == "call_function" else None
    return 0 if counter is None else int(counter(node, sizes))


def _layer(node: Node, sizes: Sizes) -> int:
    """Every output needs all weights of its channel."""
    return _product(sizes(node)) * _product(sizes(node.args[1])[1:])


def _transposed(node: Node, sizes: Sizes) -> int:
    return _product(sizes(node.args[0])) * _product(sizes(node.args[1])[1:])


def _matmul(node: Node, sizes: Sizes) -> int:
    return _product(sizes(node)) * sizes(node.args[0])[-1]


def _add_matmul(node: Node, sizes: Sizes) -> int:
    return _product(sizes(node)) * sizes(node.args[1])[-1]


def _einsum(node: Node, sizes: Sizes) -> int:
    inputs = str(node.args[0]).replace(" ", "").partition("->")[0].split(",")
    operands: Any = node.args[1]
    known = {letter: size for part, o in zip(inputs, operands, strict=True) for letter, size in zip(part, sizes(o), strict=False)}  # fmt: skip # noqa: E501
    return _product(list(known.values())) if len(operands) > 1 else 0


def _attention(node: Node, sizes: Sizes) -> int:
    """Scores, then what they weigh."""
    keys = sizes(node.args[1])[-2]
    return _product(sizes(node.args[0])) * keys + _product(sizes(node)) * keys


def _recurrent(node: Node, sizes: Sizes) -> int:
    steps = sizes(node.args[0])[1 if argument(node, "batch_first") else 0]
    return steps * sum(_product(sizes(w)) for w in argument(node, "params") if len(sizes(w)) == 2)


def _product(sizes: list[int]) -> int:
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
