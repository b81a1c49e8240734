"""How many channels each group loses, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

from .atoms import STAYS, Atoms, kept
from .channels import Channels, Group
from .patterns import matching
from .prune import Prune


def choose(settings: Prune, channels: Channels, scores: Mapping[int, float], ratio: float) -> set[int]:
    """Return the channels (roots) to remove: of every free group those of the lowest score.

    Args:
        settings: what the user wants.
        channels: the analysis.
        scores: of every channel; higher is more important.
        ratio: the share to remove where the settings give none of its own; over all groups if they are ranked together.
    """
    lefts = widths_left(settings, channels, ratio)
    if settings.scope == "global":
        lefts = _widths_by_rank(settings, lefts, scores)
    gone: set[int] = set()
    for group, left in lefts.items():
        ranked = sorted(group.channels, key=lambda root: (scores[root], root))
        gone.update(ranked[: len(ranked) - left])
    return _none_empty(channels, scores, gone)


def widths_left(settings: Prune, channels: Channels, ratio: float) -> dict[Group, int]:
    """Return the width after pruning of every group that loses channels."""
    wanted = {group: ratio_of(settings, group, ratio) for group in channels.groups if group.frozen is None}
    lefts = {group: width_left(group, share, settings) for group, share in wanted.items() if share > 0}
    return {group: left for group, left in lefts.items() if left < len(group.channels)}


def width_left(group: Group, ratio: float, settings: Prune) -> int:
    """Return the width after pruning: a whole number of steps next to `width * (1 - ratio)`, or the old width.

    It is at least `min_channels`, and at least one step; a group no wider than that keeps its width.
    """
    step, least = steps_of(group, settings)
    width = len(group.channels)
    return min(width, max(least, round(width * (1 - ratio) / step)) * step)


def steps_of(group: Group, settings: Prune) -> tuple[int, int]:
    """Return by how many channels a group shrinks, and how many such steps are the fewest it may have.

    Heads that are 64 channels wide leave a multiple of 8 whatever their number.
    """
    inner = group.inner if group.factor == "outer" else 1
    step = settings.step_width // math.gcd(settings.step_width, inner)
    return step, math.ceil(settings.min_channels / (inner * step))


def ratio_of(settings: Prune, group: Group, ratio: float) -> float:
    """Return the ratio of one group: its own by pattern (the first that matches), nothing if ignored."""
    layers = layers_of(group)
    if any(fnmatchcase(layer, pattern) for pattern in settings.ignore for layer in layers):
        return 0.0
    if group.factor == "inner":
        return settings.head_size
    for pattern, own in settings.layers.items():
        if any(fnmatchcase(layer, pattern) for layer in layers):
            return own
    return ratio if group.factor != "outer" or settings.heads is None else settings.heads


def layers_of(group: Group) -> list[str]:
    """Return the names of the layers whose outputs the group is."""
    return sorted({m.tensor.rpartition(".")[0] or m.tensor for m in group.members if m.dim == 0})


def check_patterns(settings: Prune, channels: Channels) -> None:
    """Refuse a pattern that matches no layer.

    Raises:
        BadInput: naming the pattern and some layers there are.
    """
    layers = sorted({layer for group in channels.groups for layer in layers_of(group)})
    matching((*settings.ignore, *settings.layers), layers, "layer")


def _widths_by_rank(settings: Prune, lefts: Mapping[Group, int], scores: Mapping[int, float]) -> dict[Group, int]:
    """Return widths that lose as many channels in all, but where scores, in units of their group's mean, are lowest.

    Channels go step by step: the next step of each group is worth the mean of its scores.
    """
    budget = sum(len(group.channels) - left for group, left in lefts.items())
    offers: list[tuple[float, int, Group]] = []
    for group in lefts:
        step, least = steps_of(group, settings)
        ranked = sorted(scores[root] for root in group.channels)
        mean = sum(ranked) / len(ranked) or 1.0
        floor = least * step
        first = (len(ranked) - floor) % step or step
        taken, worth = 0, -math.inf
        while len(ranked) - taken > floor:
            many = first if taken == 0 else step
            worth = max(worth, sum(ranked[taken : taken + many]) / (many * mean))  # in their order
            offers.append((worth, many, group))
            taken += many
    widths = {group: len(group.channels) for group in lefts}
    for _, many, group in sorted(offers, key=lambda offer: offer[0]):
        if many <= budget:
            widths[group] -= many
            budget -= many
    return {group: width for group, width in widths.items() if width < len(group.channels)}


def _none_empty(channels: Channels, scores: Mapping[int, float], gone: set[int]) -> set[int]:
    """Return what may go of `gone`, such that every dimension of every tensor keeps a position: the best one it has."""
    seen: set[bytes] = set()
    lost = channels.lost(gone)
    for dims in (*channels.tensors.values(), *channels.nodes.values()):
        for atoms in dims:
            if atoms is None or atoms.tobytes() in seen:
                continue
            seen.add(atoms.tobytes())
            if not kept(atoms, lost).any():
                gone = gone - _best(atoms, scores)
                lost = channels.lost(gone)
    return gone


def _best(atoms: Atoms, scores: Mapping[int, float]) -> set[int]:
    rows = ({int(atom) for atom in row if atom != STAYS} for row in atoms)
    return max(rows, key=lambda row: min(scores.get(root, 0.0) for root in row))
