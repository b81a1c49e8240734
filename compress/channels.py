"""Which channels of a captured graph stand or fall together. Analysis only: nothing is changed here.

Every position of every parameter dimension is an *atom*. Operators make atoms one: a residual add makes channel i of
both sides the same atom, a batch norm's weight i is the atom of its input's channel i, a concatenation puts the atoms
of its inputs side by side, a view that splits a dimension makes each of its positions a product of one atom for each
part. What must be removed together is then one class of atoms, and an operator without a rule freezes the atoms that
reach it: less is pruned, nothing breaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from ..models.graph import same_memory
from ..models.model import Model
from .atoms import STAYS, Atoms, AtomTable, Lost

Dims = tuple[Atoms | None, ...]
"""One entry a dimension: the atoms of its positions `(positions, columns)`, or None where none can be removed.

Of a dimension whose size is unknown (batch x heads) the atoms are those of one period (heads).
"""

Factor = Literal["", "outer", "inner"]

Part = Literal["", "heads", "head size", "groups", "in a group"]

ALL_THERE_IS = "is all there is of a dimension"
FIXED = "is made by weights that are a buffer: nothing learnt them"
_WHOLE: Factor = ""
_OF_HEADS: Mapping[Factor, Part] = {"": "", "outer": "heads", "inner": "head size"}
_OF_KERNELS: Mapping[Factor, Part] = {"": "", "outer": "groups", "inner": "in a group"}


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that belongs to a group."""

    tensor: str
    dim: int


@dataclass(frozen=True)
class Group:
    """Channels that share their members: any of them may be removed, each from all members at once.

    Attributes:
        name: a layer that makes them, and which part of a product they are.
        members: the dimensions of parameters and buffers that they are part of.
        channels: the roots of their atom classes.
        frozen: why none may go (None: free).
        factor: "outer" for heads and groups of channels, "inner" for head sizes and channels in each group: a
            dimension is a product of both; else "".
        inner: of an outer factor, how many positions of a dimension go with one channel.
        part: the factor in words: of attention, or of convolutions.
    """

    name: str
    members: tuple[Member, ...]
    channels: tuple[int, ...]
    frozen: str | None
    factor: Factor = ""
    inner: int = 1
    part: Part = ""


@dataclass(frozen=True)
class Channels:
    """The result of the analysis: groups, and for every tensor and node the channels at each position."""

    groups: tuple[Group, ...]
    tensors: Mapping[str, Dims]
    nodes: Mapping[str, Dims]
    unknown: tuple[str, ...]
    """Operators without a rule that met a channel."""
    atoms: int
    """How many atoms there are."""

    def lost(self, gone: Collection[int]) -> Lost:
        """Return which atoms are removed with the channels `gone` (roots)."""
        lost = np.zeros(self.atoms + 1, np.bool_)
        lost[np.fromiter(gone, np.int64, len(gone))] = True
        return lost


@dataclass
class Tracker:
    """The state of one analysis: what is known so far of each node's dimensions."""

    model: Model
    table: AtomTable = field(default_factory=AtomTable)
    values: dict[Node, Dims] = field(default_factory=dict)
    parts: dict[Node, list[Dims]] = field(default_factory=dict)
    tensors: dict[str, Dims] = field(default_factory=dict)
    tied: dict[object, Dims] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    def dims(self, node: object) -> Dims:
        """Return the dimensions of a node's tensor; empty for anything else."""
        return self.values.get(node, ()) if isinstance(node, Node) else ()

    def link(self, left: Atoms | None, right: Atoms | None, reason: str = "meets a dimension that stays") -> Atoms | None:  # fmt: skip # noqa: E501
        """Make two dimensions one; where only one side has atoms, they must stay."""
        if left is None or right is None or len(left) != len(right):
            self.table.freeze(left, reason)
            self.table.freeze(right, reason)
            return None
        self.table.unite(left, right, reason)
        return left

    def freeze_all(self, node: Node, reason: str) -> None:
        """Forbid the removal of everything that enters a node."""
        for source in node.all_input_nodes:
            for dims in self.parts.get(source, [self.dims(source)]):
                for atoms in dims:
                    self.table.freeze(atoms, reason)

    def keep_fixed(self, weight: object, dim: int) -> None:
        """Forbid the removal of what a buffer makes as a matrix or as kernels: a transform, not learnt channels."""
        if isinstance(weight, Node) and weight.op == "get_attr" and len(self.dims(weight)) > 1:
            value = attrgetter(str(weight.target))(self.model.module)
            if not isinstance(value, nn.Parameter):
                self.table.freeze(self.dims(weight)[dim], FIXED)

    def tensor(self, name: str, value: Tensor) -> Dims:
        """Return the atoms of a parameter or buffer, made at its first use; tied ones share theirs."""
        if name not in self.tensors:
            made = tuple(self.table.new(size) if size > 1 else None for size in value.shape)
            self.tensors[name] = self.tied.setdefault(same_memory(value), made)
        return self.tensors[name]


def find_channels(model: Model, *, frozen: bool = False) -> Channels:
    """Follow every tensor dimension through the graph and group the channels that stand or fall together.

    With `frozen`, the dimensions of tensors and nodes hold channels that must stay, too: to show where they are.
    """
    from .channel_rules import follow

    tracker = Tracker(model)
    for node in model.module.graph.nodes:
        follow(tracker, node)
        for dims in tracker.parts.get(node, [tracker.values.get(node, ())]):
            _keep_from_emptying(tracker.table, dims)
    for dims in (*tracker.tensors.values(), *tracker.values.values()):
        _keep_from_emptying(tracker.table, dims)
    return _collect(tracker, frozen)


def _keep_from_emptying(table: AtomTable, dims: Dims) -> None:
    """Freeze an atom that all positions of a dimension have: without it nothing would be left there."""
    for atoms in dims:
        if atoms is not None:
            roots = table.resolve(atoms)
            table.freeze(roots[:1, (roots == roots[:1]).all(0)], ALL_THERE_IS)


def _collect(tracker: Tracker, frozen: bool) -> Channels:
    table = tracker.table
    tensors = {name: _resolved(table, dims, frozen) for name, dims in tracker.tensors.items()}
    nodes = {node.name: _resolved(table, dims, frozen) for node, dims in tracker.values.items()}
    groups = _groups(table, tracker.tensors)
    return Channels(groups, tensors, nodes, tuple(sorted(tracker.unknown)), len(table))


def _groups(table: AtomTable, tensors: Mapping[str, Dims]) -> tuple[Group, ...]:
    """Put together the classes of atoms that are at the same places, and free or kept for the same reason."""
    whole = {name: _resolved(table, dims, frozen=True) for name, dims in tensors.items()}
    places: list[Member] = []
    pairs: list[Atoms] = []
    for name, dims in whole.items():
        for dim, atoms in enumerate(dims):
            for column in () if atoms is None else atoms.T:
                roots = np.unique(column[column != STAYS])
                pairs.append(np.stack([roots, np.full(len(roots), len(places))], 1))
                places.append(Member(name, dim))
    if not pairs:
        return ()
    found = np.concatenate(pairs)
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    roots, starts = np.unique(found[:, 0], return_index=True)
    classes: dict[tuple[bytes, str | None], tuple[Atoms, list[int]]] = {}
    for root, where in zip(roots.tolist(), np.split(found[:, 1], starts[1:]), strict=True):
        classes.setdefault((where.tobytes(), table.reason(root)), (where, []))[1].append(root)
    members = ({places[place] for place in where} for where, _ in classes.values())
    groups = [_group(table, whole, m, same) for m, (_, same) in zip(members, classes.values(), strict=True)]
    return tuple(_names_apart(groups))


def _resolved(table: AtomTable, dims: Dims, frozen: bool) -> Dims:
    return tuple(None if atoms is None else table.resolve(atoms, frozen=frozen) for atoms in dims)


def _names_apart(groups: list[Group]) -> list[Group]:
    """Number the groups of one name, the free ones first: one layer may make several."""
    seen, named = Counter[str](), list(groups)
    for place in sorted(range(len(groups)), key=lambda place: groups[place].frozen is not None):
        name = groups[place].name
        seen[name] += 1
        if seen[name] > 1:
            named[place] = replace(groups[place], name=f"{name} #{seen[name]}")
    return named


def _group(table: AtomTable, tensors: Mapping[str, Dims], members: set[Member], roots: list[int]) -> Group:
    ordered = tuple(sorted(members, key=lambda m: (m.tensor, m.dim)))
    frozen = table.reason(roots[0])
    factor, inner = (_WHOLE, 1) if frozen else _factor(table, tensors, ordered, roots[0])
    kernels = any(len(tensors[member.tensor]) > 3 for member in ordered)
    part = (_OF_KERNELS if kernels else _OF_HEADS)[factor]
    name = _maker(ordered, tensors) + (f" [{part}]" if part else "")
    return Group(name, ordered, tuple(roots), frozen, factor, inner, part)


def _maker(members: tuple[Member, ...], tensors: Mapping[str, Dims]) -> str:
    """Return the first layer whose outputs these channels are, or the first norm of them."""
    made = [m.tensor for m in members if m.dim == 0 and "weight" in m.tensor.rpartition(".")[2]]
    layers = [tensor for tensor in made if len(tensors[tensor]) > 1]
    name = (layers or made or [members[0].tensor])[0]
    return name.rpartition("weight")[0].rstrip("._") or name


def _factor(
    table: AtomTable, tensors: Mapping[str, Dims], members: tuple[Member, ...], root: int
) -> tuple[Factor, int]:
    """Return which part of a product a channel is, and how many positions it takes where it is the outer one."""
    for member in members:
        atoms = tensors[member.tensor][member.dim]
        assert atoms is not None
        rows = table.resolve(atoms[(atoms == root).any(1)])
        if (rows != STAYS).all(1).all() and rows.shape[1] > 1:
            return ("outer", len(rows)) if (rows[:, 0] == root).all() else ("inner", 1)
    return _WHOLE, 1
