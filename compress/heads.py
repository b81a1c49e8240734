"""The last layer of a classifier: found by walking back from the output, and replaced by one of another width."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ..models.errors import BadInput
from ..models.graph import argument, aten, get_tensor

_DEPTH = 16
"""Operators between the last layer and the output: pooling, flattening, activations."""


@dataclass(frozen=True)
class Head:
    """The names of the last layer's weight `(classes, width, ...)` and bias `(classes,)`, where it has one."""

    weight: str
    bias: str | None
    classes: int


def find_head(module: GraphModule) -> Head:
    """Return the linear layer or 1 x 1 convolution that gives the output.

    Raises:
        BadInput: another operator mixes channels after it, or there is none.
    """
    output = next(node for node in module.graph.nodes if node.op == "output")
    given = output.all_input_nodes
    node = given[0] if len(given) == 1 else None
    for _ in range(_DEPTH):
        if node is None or node.op != "call_function":
            break
        if node.target in (aten.linear.default, aten.conv2d.default):
            return _head(module, node)
        node = _before(node)
    raise BadInput(
        "the graph's last layer is no linear layer and no 1 x 1 convolution, so no head can be replaced; "
        "give a model with the data's classes, and head: keep"
    )


def _before(node: Node) -> Node | None:
    """Return what an operator with a single input reads."""
    return node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None


def _head(module: GraphModule, node: Node) -> Head:
    weight, bias = argument(node, "weight"), argument(node, "bias")
    if not isinstance(weight, Node) or weight.op != "get_attr":
        raise BadInput("the last layer's weight is computed, so it cannot be replaced; set head: keep")
    value = get_tensor(module, str(weight.target))
    if value.ndim > 2 and any(size != 1 for size in value.shape[2:]):
        raise BadInput(f"the last layer is a convolution of {tuple(value.shape[2:])}, wanted 1 x 1; set head: keep")
    return Head(str(weight.target), str(bias.target) if isinstance(bias, Node) else None, value.shape[0])


def new_head(module: GraphModule, head: Head, classes: int, seed: int) -> dict[str, Tensor]:
    """Return fresh tensors for the head by name: a convolution's Kaiming uniform, else truncated normal of 0.02."""
    old, generator = get_tensor(module, head.weight), torch.Generator().manual_seed(seed)
    weight = torch.empty((classes, *old.shape[1:]), dtype=old.dtype)
    if old.ndim > 2:
        bound = math.sqrt(3.0 / old[0].numel())
        nn.init.uniform_(weight, -bound, bound, generator=generator)
    else:
        nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04, generator=generator)
    return {head.weight: weight} | ({head.bias: torch.zeros(classes, dtype=old.dtype)} if head.bias else {})


__all__ = ["Head", "find_head", "new_head"]
