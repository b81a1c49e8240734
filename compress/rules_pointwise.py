"""How channels pass operators that work position by position, broadcast, pool or reduce."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Node

from ..models.graph import argument, aten, shape_of, sizes_of
from .atoms import Atoms
from .channels import Dims, Tracker

MEETS = "is combined with a dimension that stays"


def same(tracker: Tracker, node: Node) -> Dims:
    """The output has the dimensions of the first input."""
    return tracker.dims(node.args[0])


def broadcast(tracker: Tracker, node: Node) -> Dims:
    """Broadcast from the right: dimensions of one size are linked, a dimension of size one gives way."""
    sides = [a for a in node.all_input_nodes if shape_of(a) is not None]
    return together(tracker, sides)


def together(tracker: Tracker, sides: list[Node]) -> Dims:
    """Return the dimensions of what these tensors broadcast to."""
    rank = max((len(shape_of(side) or ()) for side in sides), default=0)
    return tuple(_broadcast_one(tracker, sides, place) for place in range(-rank, 0))


def _broadcast_one(tracker: Tracker, sides: list[Node], place: int) -> Atoms | None:
    entries = [tracker.dims(s)[place] for s in sides if len(sizes_of(s)) >= -place and sizes_of(s)[place] != 1]
    if not entries:
        return None
    found = entries[0]
    for other in entries[1:]:
        found = tracker.link(found, other, MEETS)
    return found


def staying_along(tracker: Tracker, node: Node) -> Dims:
    """What is computed along a dimension from all of it (softmax, cumulated sums): that dimension stays."""
    x = tracker.dims(node.args[0])
    dim = argument(node, "dim")
    gone = range(len(x)) if dim is None else [int(dim) % max(len(x), 1)]
    for place in gone:
        tracker.table.freeze(x[place], f"is what {_name(node)} runs along")
    return tuple(None if i in gone else atoms for i, atoms in enumerate(x))


def sums(tracker: Tracker, node: Node) -> Dims:
    """A sum over what is left is the sum over all, where nothing is given by what is gone."""
    return _without(node, tracker.dims(node.args[0]))


def norms(tracker: Tracker, node: Node) -> Dims:
    """A vector norm is a sum too, unless it counts or takes the largest."""
    order = argument(node, "ord", argument(node, "p", 2))
    if order is not None and not (isinstance(order, int | float) and 0 < order < math.inf):
        return reduced(tracker, node)
    return _without(node, tracker.dims(node.args[0]))


def reduced(tracker: Tracker, node: Node) -> Dims:
    """A maximum, a product or a mean depends on how many there are: the dimensions it runs over stay."""
    if len(node.args) > 1 and isinstance(node.args[1], Node):
        return broadcast(tracker, node)
    x = tracker.dims(node.args[0])
    for place in _places(node, len(x)):
        tracker.table.freeze(x[place], f"is reduced by {_name(node)}")
    return _results(tracker, node, _without(node, x))


def statistics(tracker: Tracker, node: Node) -> Dims:
    """Means and variances of a normalization are taken over what is left; others keep what they run over."""
    x = tracker.dims(node.args[0])
    if not _normalizes(node):
        for place in _places(node, len(x)):
            tracker.table.freeze(x[place], f"is averaged over by {_name(node)}")
    return _results(tracker, node, _without(node, x))


def _normalizes(node: Node) -> bool:
    """Whether a statistic is used to centre or scale: subtracted from its source, or divided by."""
    if node.target not in _MEANS:
        return True
    ahead, seen = list(node.users), set[Node]()
    while ahead:
        user = ahead.pop()
        if user in seen:
            continue
        seen.add(user)
        if user.target in _ADDS or user.target in _PASSES:
            ahead.extend(user.users)
        elif user.target not in _SCALES and not _is_second(user, node, seen):
            return False
    return True


def _is_second(user: Node, node: Node, seen: set[Node]) -> bool:
    """Whether a node is subtracted from what it was taken of, or divides something."""
    if len(user.args) < 2 or user.args[1] not in {node, *seen}:
        return False
    return user.target in _DIVISIONS or (user.target in _DIFFERENCES and user.args[0] is node.args[0])


_MEANS = {aten.mean.dim, aten.mean.default}
_ADDS = {aten.add.Tensor, aten.add.Scalar, aten.add_.Tensor, aten.clamp.default, aten.clamp_min.default}
_PASSES = {aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.expand.default}
_SCALES = {aten.rsqrt.default, aten.sqrt.default, aten.reciprocal.default, aten.rsqrt_.default, aten.sqrt_.default}
_DIVISIONS = {aten.div.Tensor, aten.div_.Tensor}
_DIFFERENCES = {aten.sub.Tensor, aten.sub_.Tensor}


def _places(node: Node, rank: int) -> list[int]:
    dim = argument(node, "dim")
    if dim is None or dim == []:
        return list(range(rank))
    return [int(d) % max(rank, 1) for d in (dim if isinstance(dim, list | tuple) else [dim])]


def _without(node: Node, x: Dims) -> Dims:
    gone = _places(node, len(x))
    if argument(node, "keepdim", False):
        return tuple(None if i in gone else atoms for i, atoms in enumerate(x))
    return tuple(atoms for i, atoms in enumerate(x) if i not in gone)


def _results(tracker: Tracker, node: Node, dims: Dims) -> Dims:
    """Remember the dimensions of each of several results, or return those of the only one."""
    value = node.meta.get("val")
    if value is None or isinstance(value, Tensor):
        return dims
    tracker.parts[node] = [dims for _ in value]
    return ()


def pool_over(pixels: int) -> Callable[[Tracker, Node], Dims]:
    """Pooling or resizing the last dimensions keeps those before."""

    def rule(tracker: Tracker, node: Node) -> Dims:
        x = tracker.dims(node.args[0])
        for atoms in x[-pixels:]:
            tracker.table.freeze(atoms, f"is pooled over by {_name(node)}")
        return _results(tracker, node, (*x[:-pixels], *(None for _ in range(pixels))))

    return rule


def gated(tracker: Tracker, node: Node) -> Dims:
    """One half of a dimension gates the other, position by position."""
    x = list(tracker.dims(node.args[0]))
    dim = int(argument(node, "dim"))
    atoms = x[dim]
    if atoms is not None:
        half = len(atoms) // 2
        x[dim] = tracker.link(atoms[:half], atoms[half:])
    return tuple(x)


def _name(node: Node) -> str:
    target: Any = node.target
    return str(target) if not isinstance(target, str) else operator.attrgetter("__name__")(target)
