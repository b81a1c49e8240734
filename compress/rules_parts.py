"""How channels pass operators that join tensors, or take parts of one."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..models.graph import argument, shape_of, sizes_of
from .atoms import Atoms, stacked, staying
from .channels import Dims, Tracker

BESIDE = "is concatenated beside a dimension that stays"
APART = "is taken apart, position by position"
BY_NUMBER = "is taken by its number"


def item(tracker: Tracker, node: Node) -> Dims:
    """One of several results."""
    source, place = node.args
    assert isinstance(source, Node)
    parts = tracker.parts.get(source)
    if parts is None or not isinstance(place, int):
        tracker.freeze_all(node, f"reaches {source.target}")
        return (None,) * len(shape_of(node) or ())
    return parts[place]


def concat(tracker: Tracker, node: Node) -> Dims:
    """Dimensions stand one after the other along one axis, and are one along the others."""
    parts: Any = [part for part in argument(node, "tensors") if shape_of(part) != (0,)]
    return _joined(tracker, parts, [tracker.dims(part) for part in parts], int(argument(node, "dim")))


def _joined(tracker: Tracker, parts: list[Node], values: list[Dims], dim: int) -> Dims:
    axis = dim % len(values[0])
    out: list[Atoms | None] = []
    for place in range(len(values[0])):
        entries = [value[place] for value in values]
        if place == axis:
            out.append(_side_by_side(tracker, parts, entries, axis))
            continue
        joined = entries[0]
        for entry in entries[1:]:
            joined = tracker.link(joined, entry, BESIDE)
        out.append(joined)
    return tuple(out)


def _side_by_side(tracker: Tracker, parts: list[Node], entries: list[Atoms | None], axis: int) -> Atoms | None:
    sizes = [sizes_of(part)[axis] for part in parts]
    if all(atoms is None for atoms in entries):
        return None
    if None in sizes:
        for atoms in entries:
            tracker.table.freeze(atoms, "is concatenated with a dimension of unknown size")
        return None
    return stacked([staying(size or 0) if a is None else a for a, size in zip(entries, sizes, strict=True)])


def stack(tracker: Tracker, node: Node) -> Dims:
    """As a concatenation along a new axis."""
    parts: Any = node.args[0]
    dim = int(argument(node, "dim")) % (len(tracker.dims(parts[0])) + 1)
    rest = list(tracker.dims(parts[0]))
    for part in parts[1:]:
        rest = [tracker.link(mine, its, BESIDE) for mine, its in zip(rest, tracker.dims(part), strict=True)]
    return (*rest[:dim], None, *rest[dim:])


def split(tracker: Tracker, node: Node) -> Dims:
    """Each part has its own stretch of the dimension."""
    x = tracker.dims(node.args[0])
    dim = int(argument(node, "dim")) % len(x)
    start = 0
    parts: list[Dims] = []
    for value in node.meta["val"]:
        size = value.shape[dim]
        atoms = x[dim]
        if atoms is not None and not isinstance(size, int):
            tracker.table.freeze(atoms, "is split into parts of unknown size")
            atoms = None
        elif atoms is not None:
            atoms = atoms[start : start + size]
            start += size
        parts.append((*x[:dim], atoms, *x[dim + 1 :]))
    tracker.parts[node] = parts
    return ()


def unbind(tracker: Tracker, node: Node) -> Dims:
    """Each position becomes a tensor: all of them stay."""
    x = tracker.dims(node.args[0])
    dim = int(argument(node, "dim")) % len(x)
    tracker.table.freeze(x[dim], APART)
    tracker.parts[node] = [(*x[:dim], *x[dim + 1 :])] * len(node.meta["val"])
    return ()


def select(tracker: Tracker, node: Node) -> Dims:
    """The position that is taken stays."""
    x = tracker.dims(node.args[0])
    dim, index = int(argument(node, "dim")) % len(x), argument(node, "index")
    atoms = x[dim]
    if atoms is not None:
        known = isinstance(index, int) and sizes_of(node.args[0])[dim] is not None
        tracker.table.freeze(atoms[index : index + 1 or None] if known else atoms, BY_NUMBER)
    return (*x[:dim], *x[dim + 1 :])


def narrow(tracker: Tracker, node: Node) -> Dims | None:
    """A stretch of a dimension; of every second position the others are theirs, so that it stays every second."""
    x, size = tracker.dims(node.args[0]), sizes_of(node)
    dim = int(argument(node, "dim")) % len(x)
    atoms = x[dim]
    if atoms is None:
        return x
    start, step = argument(node, "start") or 0, argument(node, "step", 1)
    known = isinstance(start, int) and size[dim] is not None and len(atoms) % step == 0
    if not known:
        return None
    for other in range(1, step):
        tracker.table.unite(atoms[0::step], atoms[other::step], "is a stride apart from a dimension that stays")
    start = start + len(atoms) if start < 0 else start
    taken = atoms[start::step][: size[dim]]
    return (*x[:dim], taken, *x[dim + 1 :])
