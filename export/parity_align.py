"""Which tensor of one graph is which of another, and where a graph can be cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .parity_taps import Array, Feeds, Taps, Tensor

_AT_ONCE, _POINTS = 64, 128
_NEAR = 0.05
"""Relative distance of two sketches that are the same tensor: below what int8 costs, above what fp16 does."""


@dataclass(frozen=True)
class Cut:
    """A place that everything flows through.

    Attributes:
        after: the place of the last tensor before it.
        live: what is needed after it, by the candidate's names.
    """

    after: int
    live: tuple[str, ...]


def align(reference: Taps, candidate: Taps, feeds: Sequence[Feeds]) -> dict[str, str]:
    """Return the reference's name of the candidate's tensors that it has too.

    Files made from the same export share names. Where they do not, tensors are told by their values, and
    behind the first difference by their order and shape.

    Args:
        reference: what is right.
        candidate: what is in question.
        feeds: the examples by the names of each.
    """
    ends = dict(zip(candidate.inputs, reference.inputs, strict=True))
    named = _by_name(reference.tensors, candidate.tensors)
    found = named if named else _by_value(reference, candidate, feeds)
    return ends | found | dict(zip(candidate.outputs, reference.outputs, strict=True))


def cuts(tensors: Sequence[Tensor], known: Mapping[str, str], inputs: Sequence[str], outputs: Sequence[str]) -> list[Cut]:  # fmt: skip # noqa: E501
    """Return the places of a graph where all that is needed later is known to the reference, ends included."""
    last = {name: place for place, tensor in enumerate(tensors) for name in tensor.reads}
    last |= dict.fromkeys(outputs, len(tensors))
    valued = {tensor.name for tensor in tensors if tensor.valued}
    found, live = [Cut(-1, tuple(inputs))], [name for name in inputs if name in last]
    for place, tensor in enumerate(tensors[:-1]):
        live = [name for name in (*live, tensor.name) if last.get(name, -1) > place]
        needed = tuple(name for name in live if name in valued)
        if tensor.valued and tensor.name in needed and all(name in known for name in needed):
            found.append(Cut(place, needed))
    return [*found, Cut(len(tensors) - 1, tuple(outputs))]


def _by_name(reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> dict[str, str]:
    """Pair tensors of one name, or return nothing where names mean something else in each graph."""
    theirs = {tensor.name: (place, tensor) for place, tensor in enumerate(reference) if tensor.valued}
    pairs = [(theirs[tensor.name], tensor) for tensor in candidate if tensor.valued and tensor.name in theirs]
    few = len(pairs) < 0.3 * min(len(theirs), sum(tensor.valued for tensor in candidate))
    order = [place for (place, _), _ in pairs]
    turned = sum(a > b for a, b in pairwise(order))
    other = sum(a.operator != b.operator and "Cast" not in (a.operator, b.operator) for (_, a), b in pairs)
    if few or turned > 0.1 * len(pairs) or (other > 0.1 * len(pairs) and _kinds_tell(reference)):
        return {}
    return {tensor.name: tensor.name for _, tensor in pairs}


def _kinds_tell(reference: Sequence[Tensor]) -> bool:
    """Whether operators are ONNX's, which are written with a capital; ATen's have other names for the same."""
    return all(tensor.operator[:1].isupper() for tensor in reference)


def _by_value(reference: Taps, candidate: Taps, feeds: Sequence[Feeds]) -> dict[str, str]:
    theirs, ours = list(_sketches(reference, feeds[0])), list(_sketches(candidate, feeds[1]))
    found: dict[str, str] = {}
    start = 0
    for name, shape, sketch in ours:
        near = [(_distance(sketch, s), place) for place, (_, size, s) in enumerate(theirs) if size == shape]
        close = [(distance, abs(place - start), place) for distance, place in near if distance < _NEAR]
        if close:
            best = min(close)[2]
            found[name], start = theirs[best][0], best
    return found | _by_order(theirs, ours, found)


Sketch = tuple[str, tuple[int, ...], NDArray[np.float64]]


def _by_order(theirs: list[Sketch], ours: list[Sketch], found: dict[str, str]) -> dict[str, str]:
    """Pair what values did not, between the same neighbours, by shape."""
    taken = set(found.values())
    left = [one for one in theirs if one[0] not in taken]
    right = [one for one in ours if one[0] not in found]
    blocks = SequenceMatcher(None, [s for _, s, _ in left], [s for _, s, _ in right], autojunk=False)
    return {
        right[block.b + i][0]: left[block.a + i][0] for block in blocks.get_matching_blocks() for i in range(block.size)
    }


def _sketches(taps: Taps, feeds: Feeds) -> Iterator[Sketch]:
    """Yield name, shape and some values of every tensor, a few tensors at a time."""
    names = [tensor.name for tensor in taps.tensors if tensor.valued]
    for start in range(0, len(names), _AT_ONCE):
        for name, array in taps.take(names[start : start + _AT_ONCE], feeds).items():
            if array.size:
                places = np.linspace(0, array.size - 1, min(_POINTS, array.size)).astype(int)
                yield name, array.shape, array.reshape(-1)[places].astype(np.float64)


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.inf
    size = float(np.linalg.norm(a))
    return float(np.linalg.norm(a - b)) / size if size else float(np.linalg.norm(b) > 0)


__all__ = ["Array", "Cut", "align", "cuts"]
