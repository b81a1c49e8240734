"""Where a captured graph is rounded in training: at the places where its int8 file for CPUs will be."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from torch import Tensor
from torch.fx import Node

from ..models.graph import argument, aten, module_path
from ..models.model import Model
from .folding import CONVOLUTIONS
from .qat_bounds import CLAMPS, bounds_of, is_gate

_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)

MOVES = frozenset(
    (
        *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int),
        *(aten.transpose.int, aten.permute.default, aten.t.default, aten.pixel_shuffle.default),
        *(aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims, aten.unsqueeze.default),
        *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
        *(aten.clone.default, aten.contiguous.default, aten.dropout.default, *_SPLITS),
    )
)
"""Operators whose results are among their first input's values: they keep its grid."""

JOINS = frozenset(
    (
        *(aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.sigmoid.default, aten.leaky_relu.default),
        *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
        *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
        aten.mean.dim,
    )
)

# Of each operator: which argument is its weight, and which dimension of that is the output channels.
_WEIGHTS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((*CONVOLUTIONS, aten.linear.default), (1, 0)),
    **dict.fromkeys((aten.matmul.default, aten.mm.default), (1, 1)),
    aten.addmm.default: (2, 1),
}


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight that is rounded for one operator: the operator, which argument it is, and its channels' dimension."""

    user: Node
    place: int
    axis: int

    @property
    def source(self) -> Node:
        """The constant."""
        return self.user.args[self.place]  # type: ignore[return-value]  # only nodes are taken


@dataclass(frozen=True, eq=False)
class Site:
    """A value that goes through a grid.

    Attributes:
        value: what is rounded.
        origin: whose values they are: operators that only move them keep the grid.
        readers: who reads the rounded value; none for all that read it.
    """

    value: Node
    origin: Node
    readers: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False)
class Places:
    """What is rounded.

    Attributes:
        weights: of operators that compute in integers.
        sites: activations, in the graph's order.
        shared: for each origin the origins that have one grid together, itself among them.
    """

    weights: tuple[Weight, ...]
    sites: tuple[Site, ...]
    shared: Mapping[Node, tuple[Node, ...]]

    @property
    def origins(self) -> tuple[Node, ...]:
        """The values whose range must be found, in the graph's order."""
        return tuple(dict.fromkeys(site.origin for site in self.sites if not is_gate(site.origin)))


def find_places(model: Model, keep: Collection[str] = ()) -> Places:
    """Return what is rounded in a prepared graph; nothing is changed.

    Products with weights come first. What lies between them follows where integers come in and go on; alone between
    floating-point operators it stays in floating point, and so it does in the file.

    Args:
        model: with norms folded, without in-place operators.
        keep: patterns of module paths and layers that stay in floating point.
    """
    nodes: Sequence[Node] = list(model.module.graph.nodes)
    chosen = _chosen(nodes, keep)
    weights = tuple(found for node in nodes if node in chosen and (found := weight_of(node)))
    held = {end: end for node in nodes if node in chosen and (end := _end(node, chosen))}
    sites = [Site(node, node) for node in nodes if node in held]
    read: dict[Node, list[Node]] = {}
    for node in nodes:
        if node in chosen and node.target not in CLAMPS | MOVES:
            for value in (one for one in _activations(node) if origin_of(one) not in held):
                read.setdefault(value, []).append(node)
    sites += [Site(value, origin_of(value), tuple(readers)) for value, readers in read.items()]
    order = {node: place for place, node in enumerate(nodes)}
    sites.sort(key=lambda site: order[site.value])
    return Places(weights, tuple(sites), _shared(nodes, chosen, {site.origin for site in sites}))


def weight_of(node: Node) -> Weight | None:
    """Return the constant that an operator multiplies its input with; None where there is none of two dimensions."""
    place, axis = _WEIGHTS.get(node.target, (0, 0))
    source = node.args[place] if place else None
    if not isinstance(source, Node) or source.op != "get_attr" or not _is_float(source):
        return None
    rank = source.meta["val"].ndim
    return Weight(node, place, axis) if rank >= 2 and (axis == 0 or rank == 2) else None


def origin_of(value: Node) -> Node:
    """Return whose values these are: of a chain of operators that only move them, what goes in."""
    while value.target in MOVES or _is_part(value):
        value = value.all_input_nodes[0]
    return value


def _is_part(value: Node) -> bool:
    """Whether this is an item of what a split gives."""
    return value.target is operator.getitem and value.all_input_nodes[0].target in _SPLITS


def _chosen(nodes: Sequence[Node], keep: Collection[str]) -> set[Node]:
    """Return the operators that compute in integers or pass them on."""
    free = [node for node in nodes if node.op == "call_function" and not _is_kept(node, keep)]
    products = {node for node in free if weight_of(node) and _activations(node)}
    others = {node for node in free if node not in products and _may_follow(node)}
    while lonely := {node for node in others if not _is_between(node, products | others)}:
        others -= lonely
    return products | others


def _is_kept(node: Node, keep: Collection[str]) -> bool:
    found = weight_of(node)
    names = {module_path(node), node.name, str(found.source.target).removesuffix(".weight") if found else ""} - {""}
    return any(fnmatchcase(name, pattern) for pattern in keep for name in names)


def _may_follow(node: Node) -> bool:
    if node.target is operator.getitem:
        return _is_part(node)
    if node.target == aten.mean.dim:
        rank = node.args[0].meta["val"].ndim  # type: ignore[union-attr]  # a node
        axes: Any = node.args[1]
        whole = rank >= 3 and {axis % rank for axis in axes or ()} == set(range(2, rank))
        return whole and bool(argument(node, "keepdim"))
    return node.target in MOVES | CLAMPS | JOINS and bool(_activations(node))


def _is_between(node: Node, chosen: Collection[Node]) -> bool:
    made = any(source in chosen for source in node.all_input_nodes)
    if node.target in CLAMPS:
        source = node.args[0]
        return made and isinstance(source, Node) and source.target not in CLAMPS and len(source.users) == 1
    return made and any(user in chosen for user in node.users)


def _end(node: Node, chosen: Collection[Node]) -> Node | None:
    """Return where the result of an integer kernel is rounded; None for products that give floating point."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    ends = user is not None and user.target in CLAMPS and user in chosen
    if node.target in MOVES or node.target in CLAMPS or node.target is operator.getitem:
        return None
    if ends:
        return user
    return node if node.target in CONVOLUTIONS or node.target in JOINS else None


def _activations(node: Node) -> list[Node]:
    return [one for one in node.all_input_nodes if one.op != "get_attr" and _is_float(one)]


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _shared(
    nodes: Sequence[Node], chosen: Collection[Node], origins: Collection[Node]
) -> Mapping[Node, tuple[Node, ...]]:
    """Return the origins that have one grid: what a concatenation joins, and its result.

    Only values within the same bounds do: in the file a grid does the work of the clamp before it.
    """
    group: dict[Node, tuple[Node, ...]] = {origin: (origin,) for origin in origins}
    bounds: dict[Node, tuple[float, float]] = {}
    for node in nodes:
        if node not in chosen or node.target != aten.cat.default:
            continue
        joined = [one for value in _activations(node) if (one := origin_of(value)) in group and not is_gate(one)]
        within = [bounds.get(one, bounds_of(one)) for one in joined]
        bounds[node] = within[0] if len(set(within)) == 1 else bounds_of(node)
        members = [group[one] for one, where in zip(joined, within, strict=True) if where == bounds[node]]
        together = tuple(dict.fromkeys(chain(*members, group.get(node, ()))))
        group.update((one, together) for one in together)
    return group


__all__ = ["JOINS", "MOVES", "Places", "Site", "Weight", "find_places", "origin_of", "weight_of"]
