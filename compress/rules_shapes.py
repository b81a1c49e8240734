"""How channels pass operators that only move or repeat what is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from ..models.graph import argument, shape_of, sizes_of
from .atoms import Atoms, merge, stacked, staying
from .channels import Dims, Tracker

LIKE = "takes the sizes of what stays"
RESHAPED = "is reshaped together with a dimension of unknown size"


def nothing(tracker: Tracker, node: Node) -> Dims:
    """Sizes and arithmetic on them carry no channels: a channel count is a plain number in the graph."""
    return ()


def constant(tracker: Tracker, node: Node) -> Dims:
    """A table whose positions have their own values: nothing of it can be removed."""
    return (None,) * len(shape_of(node) or ())


def created(tracker: Tracker, node: Node) -> Dims:
    """A tensor of one value everywhere may lose positions like those it is combined with."""
    return tuple(tracker.table.new(size) if size is not None and size > 1 else None for size in sizes_of(node))


def reshape(tracker: Tracker, node: Node) -> Dims | None:
    """Dimensions merge into products and split into factors, run by run."""
    source = node.args[0]
    assert isinstance(source, Node)
    old, new = shape_of(source), shape_of(node)
    if old is None or new is None:
        return None
    out: list[Atoms | None] = []
    x = tracker.dims(source)
    for (a, b), (c, d) in runs(old, new):
        out.extend(_reshaped(tracker, list(zip(x[a:b], old[a:b], strict=True)), list(new[c:d])))
    other = argument(node, "other")
    if other is not None:
        return tuple(tracker.link(mine, its, LIKE) for mine, its in zip(out, tracker.dims(other), strict=True))
    if sum(not isinstance(size, int) for size in new) > 1:
        for place, size in enumerate(new):
            if not isinstance(size, int) and out[place] is not None:
                tracker.table.freeze(out[place], RESHAPED)
    return tuple(out)


def _reshaped(tracker: Tracker, old: list[tuple[Atoms | None, Any]], new: list[Any]) -> list[Atoms | None]:
    """Return the dimensions that a run of old ones becomes."""
    old = [(atoms, size) for atoms, size in old if not _is(size, 1)]
    places = [i for i, size in enumerate(new) if not _is(size, 1)]
    out: list[Atoms | None] = [None] * len(new)
    if all(atoms is None for atoms, _ in old):
        return out
    if len(old) == len(places) == 1:
        out[places[0]] = old[0][0]
        return out
    unknown = [i for i, (_, size) in enumerate(old) if not isinstance(size, int)]
    unknown_new = [i for i, place in enumerate(places) if not isinstance(new[place], int)]
    if unknown not in ([], [0]) or unknown_new != unknown:
        for atoms, _ in old:
            tracker.table.freeze(atoms, RESHAPED)
        return out
    whole = merge([atoms for atoms, _ in old], [period(size) for _, size in old])
    assert whole is not None
    sizes = [period(new[place]) for place in places]
    if len(whole) != int(np.prod(sizes, dtype=int)):
        tracker.table.freeze(whole, RESHAPED)
        return out
    for place, atoms in zip(places, [whole] if len(places) == 1 else tracker.table.split(whole, sizes), strict=True):
        out[place] = atoms
    return out


def _is(size: Any, value: int) -> bool:
    return isinstance(size, int) and size == value


def period(size: int | torch.SymInt) -> int:
    """Return how many positions of a dimension can differ: 12 of batch x 12."""
    if isinstance(size, int):
        return size
    return int(size.node.expr.as_coeff_Mul()[0])


def runs(old: tuple[Any, ...], new: tuple[Any, ...]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the shortest runs of old and new dimensions that hold the same positions, as places from and to."""
    found: list[tuple[tuple[int, int], tuple[int, int]]] = []
    a = c = 0
    while a < len(old) or c < len(new):
        b, d = min(a + 1, len(old)), min(c + 1, len(new))
        while not _equal(old[a:b], new[c:d]):
            left, right = _hint(old[a:b]), _hint(new[c:d])
            if b < len(old) and (left <= right or d == len(new)):
                b += 1
            elif d < len(new):
                d += 1
            else:
                return [*found, ((a, len(old)), (c, len(new)))]
        found.append(((a, b), (c, d)))
        a, c = b, d
    return found


def _equal(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    """Compare products of sizes as they are written, without adding a guard on a symbol."""
    return bool(_product(left) == _product(right))


def _product(sizes: tuple[Any, ...]) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * (size if isinstance(size, int) else size.node.expr)
    return total


def _hint(sizes: tuple[Any, ...]) -> int:
    return int(np.prod([size if isinstance(size, int) else size.node.hint or 2 for size in sizes], dtype=int))


def unsqueeze(tracker: Tracker, node: Node) -> Dims:
    """A new dimension of size one."""
    x = tracker.dims(node.args[0])
    dim = int(argument(node, "dim")) % (len(x) + 1)
    return (*x[:dim], None, *x[dim:])


def squeeze(tracker: Tracker, node: Node) -> Dims:
    """Dimensions of size one go."""
    x, sizes = tracker.dims(node.args[0]), sizes_of(node.args[0])
    dim = argument(node, "dim")
    named = (
        range(len(x)) if dim is None else [int(d) % len(x) for d in (dim if isinstance(dim, list | tuple) else [dim])]
    )
    return tuple(atoms for i, atoms in enumerate(x) if not (i in named and sizes[i] == 1))


def expand(tracker: Tracker, node: Node) -> Dims:
    """What is repeated along a dimension may be repeated less often."""
    x, old, new = tracker.dims(node.args[0]), sizes_of(node.args[0]), sizes_of(node)
    x, old = (None,) * (len(new) - len(x)) + x, [1] * (len(new) - len(old)) + old
    other = argument(node, "other")
    if other is not None:
        pairs = zip(x, old, tracker.dims(other), strict=True)
        return tuple(its if before == 1 else tracker.link(atoms, its, LIKE) for atoms, before, its in pairs)
    return tuple(
        tracker.table.new(after) if before == 1 and after is not None and after > 1 else atoms
        for atoms, before, after in zip(x, old, new, strict=True)
    )


def repeat(tracker: Tracker, node: Node) -> Dims:
    """Every dimension is laid end to end so many times."""
    x, old, new = tracker.dims(node.args[0]), sizes_of(node.args[0]), sizes_of(node)
    x, old = (None,) * (len(new) - len(x)) + x, [1] * (len(new) - len(old)) + old
    out: list[Atoms | None] = []
    for atoms, before, after in zip(x, old, new, strict=True):
        if atoms is not None and (before is None or after is None):
            tracker.table.freeze(atoms, "is repeated an unknown number of times")
            atoms = None
        out.append(atoms if atoms is None else np.tile(atoms, ((after or 0) // len(atoms), 1)))
    return tuple(out)


def repeat_interleave(tracker: Tracker, node: Node) -> Dims | None:
    """Every position is repeated so many times."""
    x, times, dim = list(tracker.dims(node.args[0])), argument(node, "repeats"), argument(node, "dim")
    if not isinstance(times, int) or dim is None:
        return None
    atoms = x[dim]
    x[dim] = None if atoms is None else np.repeat(atoms, times, axis=0)
    return tuple(x)


def permute(tracker: Tracker, node: Node) -> Dims:
    """Dimensions in another order."""
    x = tracker.dims(node.args[0])
    order: Any = node.args[1]
    return tuple(x[int(d)] for d in order)


def transpose(tracker: Tracker, node: Node) -> Dims:
    """Two dimensions change places: those named, or the last two, or all of them."""
    x = list(tracker.dims(node.args[0]))
    if len(node.args) == 1:
        return tuple(reversed(x)) if len(x) <= 2 else (*x[:-2], x[-1], x[-2])
    a, b = (int(str(d)) for d in node.args[1:3])
    x[a], x[b] = x[b], x[a]
    return tuple(x)


def moved(tracker: Tracker, node: Node) -> Dims:
    """Dimensions move to other places."""
    x = tracker.dims(node.args[0])
    froms, tos = ([v] if isinstance(v, int) else list(v) for v in (argument(node, "source"), argument(node, "destination")))  # fmt: skip # noqa: E501
    rest = iter(atoms for i, atoms in enumerate(x) if i not in {f % len(x) for f in froms})
    places = {to % len(x): x[f] for f, to in zip(froms, tos, strict=True)}
    return tuple(places[i] if i in places else next(rest) for i in range(len(x)))


# --- looking up and moving within a dimension


def index(tracker: Tracker, node: Node) -> Dims | None:
    """Dimensions that are looked up stay; those beside pass, behind or after the looked-up ones."""
    x, indices = tracker.dims(node.args[0]), list(argument(node, "indices"))
    if any(isinstance(i, Node) and _is_mask(i) for i in indices):
        return None
    indices += [None] * (len(x) - len(indices))
    named = [place for place, one in enumerate(indices) if one is not None]
    for place in named:
        tracker.table.freeze(x[place], "is looked up by number")
    looked_up = [one for one in indices if one is not None]
    for one in looked_up:
        for atoms in tracker.dims(one):
            tracker.table.freeze(atoms, "is a list of numbers to look up")
    rank = max(len(shape_of(one) or ()) for one in looked_up)
    rest = [atoms for place, atoms in enumerate(x) if place not in named]
    start = named[0] if named == list(range(named[0], named[-1] + 1)) else 0
    return (*rest[:start], *(None,) * rank, *rest[start:])


def _is_mask(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


def index_select(tracker: Tracker, node: Node) -> Dims:
    """The dimension that is looked up stays."""
    x = tracker.dims(node.args[0])
    dim = int(argument(node, "dim")) % len(x)
    tracker.table.freeze(x[dim], "is looked up by number")
    for atoms in tracker.dims(argument(node, "index")):
        tracker.table.freeze(atoms, "is a list of numbers to look up")
    return (*x[:dim], None, *x[dim + 1 :])


def moved_within(tracker: Tracker, node: Node) -> Dims:
    """Rolled, flipped or cut off along some dimensions, which stay."""
    x = tracker.dims(node.args[0])
    dims = argument(node, "dims")
    named = {int(d) % len(x) for d in dims} if dims else {len(x) - 2, len(x) - 1}
    if not dims and "roll" in str(node.target):
        named = set(range(len(x)))
    for place in named:
        tracker.table.freeze(x[place], f"is moved within by {node.target}")
    return tuple(None if place in named else atoms for place, atoms in enumerate(x))


def pad(tracker: Tracker, node: Node) -> Dims:
    """Zeros beside a dimension are positions that stay; padding made of what is there keeps all of it."""
    x, amounts = list(tracker.dims(node.args[0])), list(argument(node, "pad"))
    plain = argument(node, "mode", "constant") == "constant"
    for i in range(0, len(amounts), 2):
        place, around = len(x) - 1 - i // 2, amounts[i : i + 2]
        atoms = x[place]
        if around == [0, 0] or atoms is None:
            continue
        known = sizes_of(node.args[0])[place] is not None and all(isinstance(n, int) and n >= 0 for n in around)
        if plain and known:
            x[place] = stacked([staying(around[0]), atoms, staying(around[1])])
        else:
            tracker.table.freeze(atoms, f"is padded by {node.target}")
            x[place] = None
    return tuple(x)


def pixel_shuffle(tracker: Tracker, node: Node) -> Dims:
    """Runs of `factor` squared channels become the pixels of one."""
    *batch, channels, rows, columns = tracker.dims(node.args[0])
    for pixels in (rows, columns):
        tracker.table.freeze(pixels, "is what pixels are shuffled into")
    if channels is None:
        return (*batch, None, None, None)
    area = int(argument(node, "upscale_factor")) ** 2
    kept, inside = tracker.table.split(channels, [len(channels) // area, area])
    tracker.table.freeze(inside, "becomes pixels")
    return (*batch, kept, None, None)


def pixel_unshuffle(tracker: Tracker, node: Node) -> Dims:
    """Every channel becomes `factor` squared ones."""
    *batch, channels, rows, columns = tracker.dims(node.args[0])
    for pixels in (rows, columns):
        tracker.table.freeze(pixels, "is what pixels are taken from")
    area = int(argument(node, "downscale_factor")) ** 2
    return (*batch, None if channels is None else np.repeat(channels, area, axis=0), None, None)


def channel_shuffle(tracker: Tracker, node: Node) -> Dims:
    """Channels of all groups take turns; the number of groups stays."""
    x = tracker.dims(node.args[0])
    if x[1] is None:
        return x
    groups = int(argument(node, "groups"))
    first, second = tracker.table.split(x[1], [groups, len(x[1]) // groups])
    tracker.table.freeze(first, "are groups that are shuffled")
    return (x[0], merge([second, first], [len(x[1]) // groups, groups]), *x[2:])


def unfold(tracker: Tracker, node: Node) -> Dims | None:
    """Every channel becomes as many as its window has pixels."""
    if "im2col" not in str(node.target) or len(tracker.dims(node.args[0])) != 4:
        return None
    x, window = tracker.dims(node.args[0]), argument(node, "kernel_size")
    for pixels in x[2:]:
        tracker.table.freeze(pixels, "is what a window moves over")
    area = int(np.prod(window))
    return (x[0], None if x[1] is None else np.repeat(x[1], area, axis=0), None)
