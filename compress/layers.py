"""Layers as linear maps: what a kernel sees, as rows of a matrix, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Interpreter, Node

from ..models.graph import aten, get_tensor, shape_of
from ..models.model import Model
from .least_squares import Sums, sums_of
from .rules_shapes import period

MEMORY_BYTES = 2**30
"""All examples pass a layer before any passes the next, so no more are used than fit into this."""

CHUNK_BYTES = 2**26
"""The patches under a kernel are laid out as a matrix for so many bytes at a time."""

WIDEST = 5000
"""Layers with more weights for one output are left alone: a fit takes memory by their square and time by their cube."""

Patches = Callable[[Tensor], Tensor]
"""From a layer's inputs `(n, ...)` to what its kernel sees: `(n, positions, weights of one output)`."""


@dataclass(frozen=True)
class Layer:
    """A layer that is a linear map of what its kernel sees, with constants that only it uses.

    `weight` and `bias` are their names, `source` gives its inputs; `norm` is the batch norm that alone uses its result.
    """

    weight: str
    bias: str | None
    source: Node
    norm: Node | None
    patches: Patches


def layer_of(model: Model, node: Node) -> Layer | None:
    """Return a node's layer; None for other operators, grouped and very wide layers, and constants used elsewhere."""
    if node.target not in _PATCHES or not alone(node):
        return None
    source, *constants = [a for a in node.args[:3] if isinstance(a, Node)]
    weight, bias = [str(constant.target) for constant in constants] + [None] * (2 - len(constants))
    if weight is None:
        return None
    value = get_tensor(model.module, weight)
    patches = _PATCHES[node.target](node, value) if value[0].numel() <= WIDEST else None
    user = next(iter(node.users)) if len(node.users) == 1 else None
    norm = user if user is not None and user.target == aten.batch_norm.default else None
    return None if patches is None else Layer(weight, bias, source, norm, patches)


def _convolution_patches(node: Node, weight: Tensor) -> Patches | None:
    rest: list[Any] = list(node.args[3:])
    stride, padding, dilation, groups = rest + [(1, 1), (0, 0), (1, 1), 1][len(rest) :]
    if groups != 1:
        return None
    return lambda x: F.unfold(x, weight.shape[2:], dilation, padding, stride).transpose(1, 2)


def _linear_patches(node: Node, weight: Tensor) -> Patches:
    return lambda x: x.reshape(len(x), -1, x.shape[-1])


_PATCHES: dict[Any, Callable[[Node, Tensor], Patches | None]] = {
    aten.conv2d.default: _convolution_patches,
    aten.linear.default: _linear_patches,
}


def alone(node: Node) -> bool:
    """Whether an operator has constants, and no other operator uses them."""
    constants = [a for a in node.args[1:5] if isinstance(a, Node)]
    if not constants or any(c.op != "get_attr" for c in constants):
        return False
    names = {c.target for c in constants}
    return sum(len(n.users) for n in node.graph.nodes if n.op == "get_attr" and n.target in names) == len(constants)


def patch_sums(patches: Patches, x: Tensor, targets: Tensor | None = None) -> Sums:
    """Return sums over all positions of all examples `(n, ...)`; `targets` are `(n, positions, o)`, or none."""
    step = max(1, CHUNK_BYTES // (4 * patches(x[:1]).numel()))

    def of_part(start: int) -> Sums:
        rows = patches(x[start : start + step]).flatten(0, 1)
        return sums_of(rows, rows[:, :0] if targets is None else targets[start : start + step].flatten(0, 1))

    return reduce(Sums.plus, map(of_part, range(0, len(x), step)))


def affordable(model: Model, count: int) -> int:
    """Return how many of `count` examples fit into memory, through two such models, at the widest place."""
    if not model.dynamic_batch:
        return min(count, int(model.inputs[0].shape[0] or 1))
    interpreter = Interpreter(model.module)
    live, peak, sizes = 0, 1, dict[Node, int]()
    for node in model.module.graph.nodes:
        shape = shape_of(node) or ()
        sizes[node] = 0 if node.op == "get_attr" else 8 * int(np.prod([period(size) for size in shape]))
        live += sizes[node]
        peak = max(peak, live)
        live -= sum(sizes[used] for used in interpreter.user_to_last_uses.get(node, ()))
    return max(1, min(count, MEMORY_BYTES // peak))


def running(model: Model, x: Tensor | tuple[Tensor, ...]) -> Iterator[tuple[Node, Mapping[Node, Any]]]:
    """Run a model operator by operator: yield each when it has run, with all values that are still needed.

    Args:
        model: any.
        x: examples `(n, ...)` of each input, or of the only one; no more are used than fit into memory.
    """
    inputs = iter(first(x, affordable(model, count_of(x))))
    interpreter = Interpreter(model.module)
    for node in model.module.graph.nodes:
        if node.op == "output":
            return
        with torch.no_grad():
            interpreter.env[node] = next(inputs).clone() if node.op == "placeholder" else interpreter.run_node(node)
        yield node, interpreter.env
        for used in interpreter.user_to_last_uses.get(node, ()):
            del interpreter.env[used]


def first(x: Tensor | tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """Return the first so many examples of each input."""
    return tuple(each[:count] for each in (x if isinstance(x, tuple) else (x,)))


def count_of(x: Tensor | tuple[Tensor, ...]) -> int:
    """Return how many examples there are."""
    return len(x[0] if isinstance(x, tuple) else x)


def norm_scale(model: Model, norm: Node) -> Tensor | None:
    """Return what a batch norm multiplies each channel by `(c,)`, or None where that depends on the batch."""
    weight, variance = (
        get_tensor(model.module, str(a.target)).detach() if isinstance(a, Node) else None
        for a in (norm.args[1], norm.args[4])
    )
    if variance is None:
        return None
    scale = torch.rsqrt(variance + norm_eps(norm))
    return scale if weight is None else scale * weight


def norm_eps(norm: Node) -> float:
    """Return what a batch norm adds to the variance."""
    eps: Any = norm.args[7]
    return float(eps)
