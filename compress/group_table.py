"""What can be pruned, as a table: every group of channels with its share of the model's parameters and MACs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from torch.fx import Node

from ..models.model import Model
from ..models.operator_macs import macs_of, product
from .atoms import STAYS, Atoms
from .channels import ALL_THERE_IS, Channels, Dims, Group, Member, Part, find_channels
from .costs import left, sizes_without
from .rules_layers import KERNEL
from .rules_parts import APART, BY_NUMBER

GroupKind = Part | Literal["channels", "inputs", "factor", "no channels"]
Owner = TypeVar("Owner")

NOT_CHANNELS = (APART, BY_NUMBER, ALL_THERE_IS)
"""Why a part of a product stays that nobody would prune: queries, keys and values, or a part of one position."""


@dataclass(frozen=True)
class GroupRow:
    """One group of channels.

    Attributes:
        name: that of the group: a layer that makes them, and the kind unless it is channels. Of inputs, a reader.
        width: how many there are.
        kind: `channels`; `heads` and the `head size` of each; `groups` of a convolution and the channels `in a group`;
            `inputs`, which no layer makes; `factor`, a part of a product that must stay; `no channels`: what kernels
            move over, positions, and parts of a product that the code takes one by one (queries, keys and values).
        members: the dimensions of parameters and buffers that they are part of.
        frozen: why none may go (None: they can be pruned).
        params_share: the share of the model's parameters, 0 to 1, that would go with all of them: what is in their
            rows and columns. Groups overlap: a weight is in the group that it reads and in the one that it makes.
        macs_share: the share of the model's MACs that would go with all of them.
    """

    name: str
    width: int
    kind: GroupKind
    members: tuple[Member, ...]
    frozen: str | None
    params_share: float
    macs_share: float

    @property
    def share(self) -> float:
        """The larger of both shares."""
        return max(self.params_share, self.macs_share)


@dataclass(frozen=True)
class GroupTable:
    """All groups of a model, in the order of its graph, and the operators without a rule that froze some of them."""

    rows: tuple[GroupRow, ...]
    unknown: tuple[str, ...]


def describe_groups(model: Model) -> GroupTable:
    """Return the groups that pruning sees, each with its share; nothing is changed."""
    channels = find_channels(model, frozen=True)
    place = _places(model)
    made, starts = _made(model, channels), [min(place[m.tensor] for m in group.members) for group in channels.groups]
    params, macs = _params_shares(model, channels), _macs_shares(model, channels)
    order = sorted(range(len(starts)), key=lambda i: (starts[i], i in made))  # a layer's inputs before its outputs
    return GroupTable(tuple(_row(channels, made, i, (params[i], macs[i])) for i in order), channels.unknown)


def _row(channels: Channels, made: set[int], place: int, shares: tuple[float, float]) -> GroupRow:
    group = channels.groups[place]
    kind = _kind(channels, group, place in made, shares[1])
    name = group.name if group.frozen is None else group.name.partition(" #")[0]
    name = name if group.part or kind == "channels" else f"{name} [{kind}]"
    return GroupRow(name, len(group.channels), kind, group.members, group.frozen, *shares)


def _kind(channels: Channels, group: Group, made: bool, macs_share: float) -> GroupKind:
    if group.frozen is None:
        return group.part or "channels"
    weighs = any(member.dim < 2 and "weight" in member.tensor.rpartition(".")[2] for member in group.members)
    if not weighs and (group.frozen == KERNEL or macs_share == 0):
        return "no channels"
    if _is_factor(channels, group):
        return "no channels" if group.frozen in NOT_CHANNELS else "factor"
    return "channels" if made else "inputs"


def _is_factor(channels: Channels, group: Group) -> bool:
    """Whether the positions of these channels are those of other channels, too."""
    first = group.members[0]
    atoms = channels.tensors[first.tensor][first.dim]
    assert atoms is not None  # a member has atoms
    rows = atoms[(atoms == group.channels[0]).any(1)]
    return bool(((rows != STAYS).sum(1) > 1).all())


# --- shares


def _params_shares(model: Model, channels: Channels) -> list[float]:
    """Return for every group the share of parameters in its rows and columns."""
    named = dict(model.module.named_parameters())
    held = {name: dims for name, dims in channels.tensors.items() if name in named}
    total = sum(value.numel() for value in named.values()) or 1
    shares = []
    for group, tensors in zip(channels.groups, _owners(channels, held), strict=True):
        lost = channels.lost(group.channels)
        gone = (named[n].numel() - product(left(list(named[n].shape), held[n], lost)) for n in tensors)
        shares.append(sum(gone) / total)
    return shares


def _macs_shares(model: Model, channels: Channels) -> list[float]:
    """Return for every group the share of MACs that need it."""
    whole = sizes_without(channels, channels.lost(()))
    macs = {node: found for node in model.module.graph.nodes if (found := macs_of(node, whole))}
    around = {node: _dims_around(channels, node) for node in macs}
    total = sum(macs.values()) or 1
    shares = []
    for group, nodes in zip(channels.groups, _owners(channels, around), strict=True):
        sizes = sizes_without(channels, channels.lost(group.channels))
        shares.append(sum(macs[node] - macs_of(node, sizes) for node in nodes) / total)
    return shares


def _dims_around(channels: Channels, node: Node) -> Dims:
    """Return the dimensions of what an operator reads and makes."""
    return tuple(atoms for near in (node, *node.all_input_nodes) for atoms in channels.nodes[near.name])


def _owners(channels: Channels, dims_of: Mapping[Owner, Dims]) -> list[list[Owner]]:
    """Return for every group the tensors, or operators, that have any of its channels."""
    home = _homes(channels)
    found: list[list[Owner]] = [[] for _ in channels.groups]
    for owner, dims in dims_of.items():
        for place in _groups_in(home, dims):
            found[place].append(owner)
    return found


def _homes(channels: Channels) -> Atoms:
    """Return for every atom the place of its group, and STAYS for those that have none."""
    home = np.full(channels.atoms + 1, STAYS, np.int64)
    for place, group in enumerate(channels.groups):
        home[list(group.channels)] = place
    return home


def _groups_in(home: Atoms, dims: Dims) -> list[int]:
    seen = np.zeros(int(home.max()) + 2, np.bool_)  # the last place is that of STAYS
    for atoms in dims:
        if atoms is not None:
            seen[home[atoms]] = True
    return [int(place) for place in np.flatnonzero(seen[:-1])]


# --- where groups are


def _made(model: Model, channels: Channels) -> set[int]:
    """Return the places of the groups that are in the result of an operator, not in parameters alone."""
    home = _homes(channels)
    made = (node for node in model.module.graph.nodes if node.op == "call_function")
    return {place for node in made for place in _groups_in(home, channels.nodes[node.name])}


def _places(model: Model) -> dict[str, int]:
    """Return where in the graph each parameter or buffer is first used."""
    order = {node: place for place, node in enumerate(model.module.graph.nodes)}
    found: dict[str, int] = {}
    for node in order:
        if node.op == "get_attr":
            used = min((order[user] for user in node.users), default=len(order))
            found[str(node.target)] = min(used, found.get(str(node.target), used))
    return found
