"""Which channels of a captured graph stand or fall together. Analysis only: nothing is changed here.

Every position of every parameter dimension is an *atom*. Operators make atoms one: a residual add makes channel i of
both sides the same atom, a batch norm's weight i is the atom of its input's channel i, a concatenation puts the atoms
of its inputs side by side, a flatten repeats each channel's atom for every pixel. What must be removed together is
then one class of atoms, and an operator without a rule freezes the atoms that reach it: less is pruned, nothing breaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from ..models.model import Model

Atoms = NDArray[np.int64]
Dims = tuple[Atoms | None, ...]
"""One entry a dimension: the atoms of its positions, or None where nothing can be removed (batch, pixels)."""


class AtomTable:
    """Union-find over atoms, with a reason for each class that must stay."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._frozen: dict[int, str] = {}

    def new(self, count: int) -> Atoms:
        """Make `count` fresh atoms."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def root(self, atom: int) -> int:
        """Return the representative of an atom's class."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def roots(self, atoms: Atoms) -> Atoms:
        """Return the representatives of many atoms."""
        return np.array([self.root(int(a)) for a in atoms], dtype=np.int64)

    def unite(self, left: Atoms, right: Atoms) -> None:
        """Make the atoms of two dimensions pairwise one."""
        for a, b in zip(left, right, strict=True):
            keep, gone = self.root(int(a)), self.root(int(b))
            if keep == gone:
                continue
            self._parent[gone] = keep
            if gone in self._frozen:
                self._frozen.setdefault(keep, self._frozen[gone])

    def freeze(self, atoms: Atoms | None, reason: str) -> None:
        """Forbid the removal of these atoms' classes."""
        for atom in () if atoms is None else atoms:
            self._frozen.setdefault(self.root(int(atom)), reason)

    def reason(self, root: int) -> str | None:
        """Return why a class must stay, or None when it may go."""
        return self._frozen.get(root)


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that belongs to a group."""

    tensor: str
    dim: int


@dataclass(frozen=True)
class Group:
    """Channels that share their members: any of them may be removed, each from all members at once.

    `channels` are the roots of their atom classes; `frozen` says why none may go (None: free).
    """

    name: str
    members: tuple[Member, ...]
    channels: tuple[int, ...]
    frozen: str | None


@dataclass(frozen=True)
class Channels:
    """The result of the analysis: groups, and for every tensor and node the channel at each position."""

    groups: tuple[Group, ...]
    tensors: Mapping[str, tuple[Atoms | None, ...]]
    nodes: Mapping[str, tuple[Atoms | None, ...]]
    unknown: tuple[str, ...]
    """Operators without a rule that met a channel."""


@dataclass
class Tracker:
    """The state of one analysis: what is known so far of each node's dimensions."""

    model: Model
    table: AtomTable = field(default_factory=AtomTable)
    values: dict[Node, Dims] = field(default_factory=dict)
    tensors: dict[str, Dims] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    def dims(self, node: object) -> Dims:
        """Return the dimensions of a node's tensor; empty for anything else."""
        return self.values.get(node, ()) if isinstance(node, Node) else ()

    def link(self, left: Atoms | None, right: Atoms | None, reason: str) -> Atoms | None:
        """Make two dimensions one; where only one side has atoms, they must stay."""
        if left is None or right is None:
            self.table.freeze(left, reason)
            self.table.freeze(right, reason)
            return None
        self.table.unite(left, right)
        return left

    def freeze_all(self, node: Node, reason: str) -> None:
        """Forbid the removal of everything that enters a node."""
        for source in node.all_input_nodes:
            for atoms in self.dims(source):
                self.table.freeze(atoms, reason)

    def tensor(self, name: str, shape: torch.Size) -> Dims:
        """Return the atoms of a parameter or buffer, made at its first use."""
        if name not in self.tensors:
            self.tensors[name] = tuple(self.table.new(size) if size > 1 else None for size in shape)
        return self.tensors[name]


def find_channels(model: Model) -> Channels:
    """Follow every tensor dimension through the graph and group the channels that stand or fall together."""
    from .channel_rules import follow

    tracker = Tracker(model)
    for node in model.module.graph.nodes:
        follow(tracker, node)
    return _collect(tracker)


def _collect(tracker: Tracker) -> Channels:
    table = tracker.table
    tensors = {name: _rooted(table, dims) for name, dims in tracker.tensors.items()}
    nodes = {node.name: _rooted(table, dims) for node, dims in tracker.values.items() if node.op != "get_attr"}
    places: dict[int, set[Member]] = {}
    for name, dims in tensors.items():
        for dim, atoms in enumerate(dims):
            for root in () if atoms is None else np.unique(atoms):
                places.setdefault(int(root), set()).add(Member(name, dim))
    classes: dict[tuple[frozenset[Member], str | None], list[int]] = {}
    for root in sorted(places):
        classes.setdefault((frozenset(places[root]), table.reason(root)), []).append(root)
    groups = tuple(_group(members, roots, frozen) for (members, frozen), roots in classes.items())
    return Channels(groups, tensors, nodes, tuple(sorted(tracker.unknown)))


def _rooted(table: AtomTable, dims: Dims) -> Dims:
    return tuple(None if atoms is None else table.roots(atoms) for atoms in dims)


def _group(members: frozenset[Member], roots: list[int], frozen: str | None) -> Group:
    ordered = tuple(sorted(members, key=lambda m: (m.tensor, m.dim)))
    producers = [m.tensor for m in ordered if m.dim == 0 and m.tensor.endswith(".weight")]
    name = (producers or [ordered[0].tensor])[0].removesuffix(".weight")
    return Group(name, ordered, tuple(roots), frozen)
