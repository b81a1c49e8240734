"""How many channels each group loses, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

from ..models.errors import BadInput, first_few
from .channels import Channels, Group
from .prune import Prune


def choose(settings: Prune, channels: Channels, scores: Mapping[int, float]) -> set[int]:
    """Return the channels (roots) to remove: in every free group those of the lowest score."""
    gone: set[int] = set()
    for group, left in widths_left(settings, channels).items():
        ranked = sorted(group.channels, key=lambda root: (scores[root], root))
        gone.update(ranked[: len(ranked) - left])
    return gone


def widths_left(settings: Prune, channels: Channels) -> dict[Group, int]:
    """Return the width after pruning of every group that loses channels."""
    wanted = {group: ratio_of(settings, group) for group in channels.groups if group.frozen is None}
    lefts = {group: width_left(len(group.channels), ratio, settings) for group, ratio in wanted.items() if ratio > 0}
    return {group: left for group, left in lefts.items() if left < len(group.channels)}


def width_left(width: int, ratio: float, settings: Prune) -> int:
    """Return the width after pruning: the multiple of `round_to` next to `width * (1 - ratio)`, or the old width.

    It is at least `min_channels`, and at least one step; a group no wider than that keeps its width.
    """
    step = settings.round_to
    least = math.ceil(settings.min_channels / step)
    return min(width, max(least, round(width * (1 - ratio) / step)) * step)


def ratio_of(settings: Prune, group: Group) -> float:
    """Return the ratio of one group: its own by pattern (the first that matches), nothing if ignored."""
    layers = layers_of(group)
    if any(fnmatchcase(layer, pattern) for pattern in settings.ignore for layer in layers):
        return 0.0
    for pattern, ratio in settings.layers.items():
        if any(fnmatchcase(layer, pattern) for layer in layers):
            return ratio
    return settings.ratio


def layers_of(group: Group) -> list[str]:
    """Return the names of the layers whose outputs the group is."""
    return sorted({m.tensor.rpartition(".")[0] for m in group.members if m.dim == 0})


def check_patterns(settings: Prune, channels: Channels) -> None:
    """Refuse a pattern that matches no layer: a misspelt name would silently do nothing.

    Raises:
        BadInput: naming the pattern and some layers there are.
    """
    layers = sorted({layer for group in channels.groups for layer in layers_of(group)})
    for pattern in (*settings.ignore, *settings.layers):
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise BadInput(f"the pattern {pattern!r} matches no layer; there are {first_few(layers)}")
