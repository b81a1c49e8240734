"""The first layer that is not what it was: the graph is halved, each half fed with the reference's own tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from ..models.schemes import QUANTIZED
from .parity_align import Cut, align, cuts
from .parity_noise import TOLERANCE, NoisyTaps, distance, tolerance
from .parity_taps import Array, Feeds, Taps, Tensor

_PLACES = 48
_DULL = frozenset({"Cast", "Identity", "QuantizeLinear", "DequantizeLinear", "Shape", "Gather", "Concat", "Reshape",
                   "Unsqueeze", "Squeeze", "Slice", "Constant", "Transpose"})  # fmt: skip


@dataclass(frozen=True)
class BadLayer:
    """The layer that made the difference.

    Attributes:
        name: the path of the user's module where it is known, else the operator's name in the file.
        operator: what it computes; several where a layer is several operators.
        tensor: its result in the candidate's graph.
        kind: `first` is the first layer that alone breaks its tolerance; `largest` is the one that errs most where none
            does and the differences add up.
        before: relative difference of what goes into it, in the candidate as it runs.
        after: relative difference of what comes out of it, in the same run.
        own: relative difference that it makes of the reference's own inputs. Infinite where it gives no numbers.
        tolerance: what `own` may be.
        runs: how often the candidate or a part of it ran to find it.
    """

    name: str
    operator: str
    tensor: str
    kind: Literal["first", "largest"]
    before: float
    after: float
    own: float
    tolerance: float
    runs: int


@dataclass(frozen=True)
class Place:
    """Between which cuts of the candidate a layer lies: what it takes and gives, by the candidate's names."""

    start: Cut
    end: Cut


@dataclass
class Search:
    """A search for the layer, with what every step of it needs.

    Attributes:
        reference: what is right.
        noisy: the reference in another rounding.
        candidate: what is in question.
        precision: of the candidate.
        feeds: a few examples, by the reference's names of the inputs.
        runs: of parts of the candidate so far.
    """

    reference: Taps
    noisy: NoisyTaps
    candidate: Taps
    precision: str
    feeds: Feeds
    known: Mapping[str, str] = field(init=False)
    cuts: list[Cut] = field(init=False)
    runs: int = 0

    def __post_init__(self) -> None:
        self._inputs = dict(zip(self.candidate.inputs, (self.feeds[n] for n in self.reference.inputs), strict=True))
        self.known = align(self.reference, self.candidate, (self.feeds, self._inputs))
        self.cuts = cuts(self.candidate.tensors, self.known, self.candidate.inputs, self.candidate.outputs)

    def find(self) -> tuple[BadLayer, Place]:
        """Return the layer and where it lies; what is computed grows with the logarithm of the number of layers."""
        low, high, right = 0, len(self.cuts) - 1, dict(self._inputs)
        while high - low > 1:
            middle = (low + high) // 2
            there = self.true(self.cuts[middle].live)
            if self._worst(self.errors(right, there)):
                high = middle
            else:
                low, right = middle, there
        place = Place(self.cuts[low], self.cuts[high])
        bad = self._worst(self.errors(right, self.true(self._inside(place))))
        return (self._layer(place, *bad, "first"), place) if bad else self.largest()

    def largest(self) -> tuple[BadLayer, Place]:
        """Return the layer that errs most of the reference's own inputs: of some parts the worst, then inside it."""
        low, high = 0, len(self.cuts) - 1
        while True:
            steps = np.unique(np.linspace(low, high, min(_PLACES, high - low) + 1).astype(int))
            found = [self._part(a, b) for a, b in pairwise(steps)]
            best = max(range(len(found)), key=lambda i: found[i][1])
            low, high = int(steps[best]), int(steps[best + 1])
            if high - low == 1:
                place = Place(self.cuts[low], self.cuts[high])
                return self._layer(place, *found[best], "largest"), place

    def _part(self, low: int, high: int) -> tuple[str, float, float]:
        errors = self.errors(self.true(self.cuts[low].live), self.true(self.cuts[high].live))
        name = max(errors, key=lambda one: errors[one])
        return name, errors[name], self._tolerances([name])[name]

    def true(self, live: Sequence[str]) -> dict[str, Array]:
        """Return the reference's tensors at a place, by the candidate's names."""
        found = self.reference.take([self.known[name] for name in live], self.feeds)
        return {name: found[self.known[name]] for name in live}

    def errors(self, given: Feeds, wanted: Feeds) -> dict[str, float]:
        """Return how far the candidate is off at a place when it is given the reference's tensors at an earlier one."""
        self.runs += 1
        found = self.candidate.take(list(wanted), {**self._inputs, **given})
        return {name: distance(array, found[name]) for name, array in wanted.items()}

    def _worst(self, errors: Mapping[str, float]) -> tuple[str, float, float] | None:
        """Return the first tensor that is off by more than its tolerance, with both."""
        allowed = self._tolerances(errors)
        return next(((name, off, allowed[name]) for name, off in errors.items() if not off <= allowed[name]), None)

    def _tolerances(self, names: Iterable[str]) -> dict[str, float]:
        there = {name: self.known[name] for name in names}
        if self.precision in QUANTIZED:
            return dict.fromkeys(there, TOLERANCE[self.precision])
        right, noisy = (taps.take(list(there.values()), self.feeds) for taps in (self.reference, self.noisy))
        return {name: tolerance(self.precision, distance(right[one], noisy[one])) for name, one in there.items()}

    def _layer(self, place: Place, tensor: str, own: float, allowed: float, kind: Literal["first", "largest"]) -> BadLayer:  # fmt: skip # noqa: E501
        self.runs += 1
        parts = self._parts(place, tensor)
        sources = dict.fromkeys(
            n for part in parts for n in part.reads if n in {*self._inside(place), *place.start.live}
        )
        names = [*(name for name in sources if name != tensor), tensor]
        free, right = self.candidate.take(names, self._inputs), self.true(names)
        off = {name: distance(right[name], free[name]) for name in names}
        before = max((off[name] for name in names[:-1]), default=0.0)
        return BadLayer(self._name(tensor, parts), _operators(tensor, parts), tensor, kind, before, off[tensor], own, allowed, self.runs)  # fmt: skip # noqa: E501

    def _inside(self, place: Place) -> list[str]:
        """Return what both sides have between two cuts, the end included, in order."""
        between = self.candidate.tensors[place.start.after + 1 : place.end.after + 1]
        made = [one.name for one in between if one.valued and one.name in self.known]
        return list(dict.fromkeys((*made, *(name for name in place.end.live if name not in place.start.live))))

    def _parts(self, place: Place, tensor: str) -> list[Tensor]:
        """Return the operators that make a tensor of others that both sides have."""
        needed, parts = {tensor}, []
        for one in reversed(self.candidate.tensors[place.start.after + 1 : place.end.after + 1]):
            if one.name in needed and (one.name == tensor or not one.valued or one.name not in self.known):
                parts.append(one)
                needed.update(one.reads)
        return parts[::-1]

    def _name(self, tensor: str, parts: Sequence[Tensor]) -> str:
        """Return the path of the module: that of the weights where they are one module's, else the reference's."""
        modules = {one.name: one.layer for one in self.reference.tensors}
        held = {part.layer for part in parts} & {layer for layer in modules.values() if layer}
        own = next((part.layer for part in parts if part.name == tensor), tensor)
        dotted = next((part.layer for part in parts if "." in part.layer), own)
        theirs = modules.get(self.known.get(tensor, ""), "")
        # A node without a name tells less than the candidate's own.
        return held.pop() if len(held) == 1 else theirs if theirs and " of " not in theirs else dotted


def _operators(tensor: str, parts: Sequence[Tensor]) -> str:
    """Return what a layer computes, without what only moves data unless that is all."""
    kinds = [part.operator for part in parts]
    telling = [kind for kind in kinds if kind not in _DULL]
    last = next((part.operator for part in parts if part.name == tensor), "")
    return " + ".join(dict.fromkeys(telling)) or last or " + ".join(dict.fromkeys(kinds))


__all__ = ["BadLayer", "Place", "Search"]
