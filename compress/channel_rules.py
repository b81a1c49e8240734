"""How each ATen operator carries channels from its inputs to its output.

A rule takes the tracker and a node and returns the dimensions of the node's output. `RULES` is the one list of what
is known; everything else freezes what reaches it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from ..models.graph import aten, shape_of
from .channels import Atoms, Dims, Tracker

Rule = Callable[[Tracker, Node], Dims]


def follow(tracker: Tracker, node: Node) -> None:
    """Apply the rule of one node and remember the dimensions of its output."""
    if node.op == "get_attr":
        tracker.values[node] = _attribute(tracker, str(node.target))
    elif node.op == "placeholder":
        tracker.values[node] = _untracked(node)
    elif node.op == "output":
        tracker.freeze_all(node, "an output of the model")
    elif node.op == "call_function":
        rule = RULES.get(node.target)
        tracker.values[node] = rule(tracker, node) if rule else _unknown(tracker, node)


def _attribute(tracker: Tracker, name: str) -> Dims:
    """Return the dimensions of a tensor; a graph (the body of `torch.cond` or of a `no_grad` block) has none."""
    value = operator.attrgetter(name)(tracker.model.module)
    return tracker.tensor(name, value.shape) if isinstance(value, Tensor) else ()


def _untracked(node: Node) -> Dims:
    return (None,) * len(shape_of(node) or ())


def _unknown(tracker: Tracker, node: Node) -> Dims:
    met = any(atoms is not None for source in node.all_input_nodes for atoms in tracker.dims(source))
    if met:
        tracker.unknown.add(str(node.target))
    tracker.freeze_all(node, f"reaches {node.target}, which has no rule")
    return _untracked(node)


def _same(tracker: Tracker, node: Node) -> Dims:
    return tracker.dims(node.args[0])


def _argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _convolution(tracker: Tracker, node: Node) -> Dims:
    x, weight = tracker.dims(node.args[0]), tracker.dims(node.args[1])
    bias = tracker.dims(_argument(node, 2, "bias"))
    groups = int(_argument(node, 6, "groups", 1))
    if len(x) != len(weight):
        return _unknown(tracker, node)  # without a batch the channels are elsewhere
    for kernel, pixels in zip(weight[2:], x[2:], strict=True):
        tracker.table.freeze(kernel, "a kernel dimension")
        tracker.table.freeze(pixels, "is what a kernel moves over")
    out = weight[0]
    if groups == 1:
        tracker.link(x[1], weight[1], "meets a dimension that stays")
    elif _is_depthwise(node, groups):
        tracker.link(x[1], out, "meets a dimension that stays")
    else:
        for atoms in (x[1], *weight[:2]):
            tracker.table.freeze(atoms, "a grouped convolution")
    if bias:
        tracker.link(out, bias[0], "meets a dimension that stays")
    return (None, out, *(None for _ in weight[2:]))


def _is_depthwise(node: Node, groups: int) -> bool:
    weight = shape_of(node.args[1]) if isinstance(node.args[1], Node) else None
    return weight is not None and bool(weight[0] == groups) and bool(weight[1] == 1)


def _linear(tracker: Tracker, node: Node) -> Dims:
    x, weight = tracker.dims(node.args[0]), tracker.dims(node.args[1])
    bias = tracker.dims(_argument(node, 2, "bias"))
    tracker.link(x[-1], weight[1], "meets a dimension that stays")
    if bias:
        tracker.link(weight[0], bias[0], "meets a dimension that stays")
    return (*x[:-1], weight[0])


def _batch_norm(tracker: Tracker, node: Node) -> Dims:
    x = tracker.dims(node.args[0])
    for place in range(1, 5):
        values = tracker.dims(node.args[place])
        if values:
            tracker.link(x[1], values[0], "meets a dimension that stays")
    return x


def _elementwise(tracker: Tracker, node: Node) -> Dims:
    """Broadcast from the right: dimensions of one size are linked, a dimension of size one gives way."""
    sides = [a for a in node.args[:2] if isinstance(a, Node) and shape_of(a) is not None]
    if len(sides) < 2:
        return tracker.dims(sides[0]) if sides else ()
    left, right = (tracker.dims(side) for side in sides)
    left_sizes, right_sizes = (shape_of(side) or () for side in sides)
    out: list[Atoms | None] = []
    for i in range(1, max(len(left), len(right)) + 1):
        if i > len(left) or (i <= len(right) and left_sizes[-i] == 1):
            out.append(right[-i])
        elif i > len(right) or right_sizes[-i] == 1:
            out.append(left[-i])
        else:
            out.append(tracker.link(left[-i], right[-i], "is added to or multiplied by a dimension that stays"))
    return tuple(reversed(out))


def _concat(tracker: Tracker, node: Node) -> Dims:
    parts: Any = node.args[0]
    values = [tracker.dims(part) for part in parts]
    axis = int(_argument(node, 1, "dim", 0)) % len(values[0])
    out: list[Atoms | None] = []
    for dim in range(len(values[0])):
        if dim == axis:
            out.append(_side_by_side(tracker, parts, axis))
            continue
        joined = values[0][dim]
        for value in values[1:]:
            joined = tracker.link(joined, value[dim], "is concatenated beside a dimension that stays")
        out.append(joined)
    return tuple(out)


def _side_by_side(tracker: Tracker, parts: Any, axis: int) -> Atoms | None:
    found = [tracker.dims(part)[axis] for part in parts]
    if all(atoms is None for atoms in found):
        return None
    filled = []
    for part, atoms in zip(parts, found, strict=True):
        size = (shape_of(part) or ())[axis]
        if atoms is None and not isinstance(size, int):
            for other in found:
                tracker.table.freeze(other, "is concatenated with a dimension of unknown size")
            return None
        if atoms is None:
            atoms = tracker.table.new(int(size))
            tracker.table.freeze(atoms, "a dimension that stays")
        filled.append(atoms)
    return np.concatenate(filled)


def _pool_over(pixels: int) -> Rule:
    """Pooling over the last dimensions keeps those before."""

    def rule(tracker: Tracker, node: Node) -> Dims:
        x = tracker.dims(node.args[0])
        for atoms in x[-pixels:]:
            tracker.table.freeze(atoms, f"is pooled over by {node.target}")
        return (*x[:-pixels], *(None for _ in range(pixels)))

    return rule


def _mean(tracker: Tracker, node: Node) -> Dims:
    x = tracker.dims(node.args[0])
    named: Any = _argument(node, 1, "dim") or range(len(x))
    gone = {int(d) % len(x) for d in (named if not isinstance(named, int) else [named])}
    for dim in gone:
        tracker.table.freeze(x[dim], f"is averaged over by {node.target}")
    if _argument(node, 2, "keepdim", False):
        return tuple(None if i in gone else atoms for i, atoms in enumerate(x))
    return tuple(atoms for i, atoms in enumerate(x) if i not in gone)


def _reshape(tracker: Tracker, node: Node) -> Dims:
    """Follow reshapes that only merge neighbouring dimensions; others freeze what they split."""
    source = node.args[0]
    old, new = (shape_of(source) if isinstance(source, Node) else None), shape_of(node)
    if old is None or new is None:
        return _unknown(tracker, node)
    runs = merged_runs(old, new)
    if runs is None:
        return _unknown(tracker, node)
    x = tracker.dims(source)
    return tuple(_merge(tracker, x[start:stop], old[start:stop]) for start, stop in runs)


def merged_runs(old: tuple[Any, ...], new: tuple[Any, ...]) -> list[tuple[int, int]] | None:
    """Return for each new dimension the run of old dimensions that it merges, or None if any is split.

    Symbolic sizes match only themselves.
    """
    runs, start = [], 0
    for index, size in enumerate(new):
        stop = start
        product: Any = 1
        last = index == len(new) - 1
        while stop < len(old) and (last or stop == start or not _equal(product, size)):
            product = product * old[stop]
            stop += 1
        if not _equal(product, size):
            return None
        runs.append((start, stop))
        start = stop
    return runs if start == len(old) else None


def _equal(left: Any, right: Any) -> bool:
    """Compare sizes by what is written, without adding a guard on a symbol."""
    return str(left) == str(right)


def _merge(tracker: Tracker, dims: Dims, sizes: tuple[Any, ...]) -> Atoms | None:
    carriers = [i for i, atoms in enumerate(dims) if atoms is not None]
    if not carriers:
        return None
    concrete = all(isinstance(size, int) for size in sizes)
    if len(carriers) > 1 or not concrete:
        for i in carriers:
            tracker.table.freeze(dims[i], "is flattened together with another tracked or unknown dimension")
        return None
    place = carriers[0]
    atoms = dims[place]
    if atoms is None:
        return None
    outer, inner = int(np.prod(sizes[:place], dtype=int)), int(np.prod(sizes[place + 1 :], dtype=int))
    return np.tile(np.repeat(atoms, inner), outer)


def _permute(tracker: Tracker, node: Node) -> Dims:
    x = tracker.dims(node.args[0])
    order: Any = node.args[1]
    return tuple(x[int(d)] for d in order)


def _transpose(tracker: Tracker, node: Node) -> Dims:
    x = list(tracker.dims(node.args[0]))
    a, b = (int(str(d)) for d in node.args[1:3])
    x[a], x[b] = x[b], x[a]
    return tuple(x)


def _nothing(tracker: Tracker, node: Node) -> Dims:
    """Sizes and arithmetic on them carry no channels: a channel count is a plain number in the graph."""
    return ()


_ACTIVATIONS = "relu relu6 leaky_relu elu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus clamp"
_UNARY = [*_ACTIVATIONS.split(), "dropout", "neg", "abs", "contiguous", "clone", "alias", "detach"]
_BINARY = ["add", "sub", "mul", "div"]
_POOLS = ["max_pool", "avg_pool", "adaptive_avg_pool"]
_CONVOLUTIONS = ["conv1d", "conv2d", "conv3d"]


def _overloads(names: list[str], rule: Rule) -> dict[Any, Rule]:
    """Give one rule to all overloads of these operators and of their in-place forms (`relu_`)."""
    spellings = [spelling for name in names for spelling in (name, f"{name}_") if hasattr(aten, spelling)]
    packets = [getattr(aten, spelling) for spelling in spellings]
    return {getattr(packet, overload): rule for packet in packets for overload in packet.overloads()}


RULES: dict[Any, Rule] = {
    **_overloads(_UNARY, _same),
    **_overloads(_BINARY, _elementwise),
    **_overloads([f"{name}1d" for name in _POOLS], _pool_over(1)),
    **_overloads([f"{name}2d" for name in _POOLS], _pool_over(2)),
    **_overloads([f"{name}3d" for name in _POOLS], _pool_over(3)),
    **_overloads(_CONVOLUTIONS, _convolution),
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.cat.default: _concat,
    aten.mean.dim: _mean,
    aten.flatten.using_ints: _reshape,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.sym_size.int: _nothing,
    operator.mul: _nothing,
    operator.add: _nothing,
    operator.floordiv: _nothing,
    torch.sym_float: _nothing,
}
