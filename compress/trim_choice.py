"""Which blocks and layers to remove: those that do least harm for what they spare.

Removed parts change what the others are worth, so they are chosen one at a time, and the rest is judged anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal

from torch.fx import Graph

from ..models.errors import BadInput, first_few
from .bypass import inside, names_of, without
from .candidates import Candidate


@dataclass(frozen=True)
class Scales:
    """What candidates are weighed with.

    Attributes:
        graph: of the original.
        costs: of every operator by name, microseconds or MACs.
        harm: of a trimmed graph, from 0.
        measured: whether costs are times, of which two digits count, so that noise does not choose between equals.
        report: called as `report(done, total)` after each weighing, if given.
    """

    graph: Graph
    costs: Mapping[str, float]
    harm: Callable[[Graph], float]
    measured: bool = False
    report: Callable[[int, int], object] | None = None


@dataclass(frozen=True)
class Weighed:
    """A candidate, with those chosen before it removed.

    Attributes:
        candidate: which.
        harm: of the model without it and them.
        spared: what it costs in the model without them.
        score: the harm that it adds, for each unit spared; infinite where nothing is.
    """

    candidate: Candidate
    harm: float
    spared: float
    score: float


@dataclass(frozen=True)
class Choice:
    """The candidates to remove, in the order they were chosen, and every candidate as it was last weighed."""

    removed: tuple[Candidate, ...]
    weighed: tuple[Weighed, ...]


def choose(candidates: tuple[Candidate, ...], count: int, scales: Scales) -> Choice:
    """Choose candidates greedily: each time the one of the lowest score; among equals the first of the graph.

    What lies in a removed block is no candidate any more. A block around a removed layer still is; when it goes, the
    two count as one.

    Raises:
        BadInput: there are fewer.
    """
    if count > len(candidates):
        raise BadInput(f"wanted {count} blocks removed, {_there_are(candidates)}")
    removed: list[Candidate] = []
    weighed: dict[str, Weighed] = {}
    before, done = 0.0, 0
    while len(removed) < count:
        present = without(scales.graph, [candidate.block for candidate in removed])
        left = _left(candidates, present)
        if not left:
            raise BadInput(f"wanted {count} blocks removed, {_there_are(candidates)}, which lie in one another")
        for candidate in left:
            weighed[candidate.path] = _weigh(candidate, present, before, scales)
            done += 1
            _tell(scales, done, count * len(candidates))
        best = min((weighed[candidate.path] for candidate in left), key=lambda one: one.score)
        before = best.harm
        removed = [one for one in removed if not inside(one.block, best.candidate.erased)] + [best.candidate]
    return Choice(tuple(removed), tuple(weighed[candidate.path] for candidate in candidates))


def _left(candidates: Iterable[Candidate], present: Graph) -> list[Candidate]:
    names = names_of(present)
    return [one for one in candidates if any(name in names for name, _ in one.block.sums)]


def _weigh(candidate: Candidate, present: Graph, before: float, scales: Scales) -> Weighed:
    trimmed = without(present, (candidate.block,))
    spared = sum(scales.costs.get(name, 0) for name in sorted(names_of(present) - names_of(trimmed)))
    if scales.measured:
        spared = float(f"{spared:.2g}")
    harm = scales.harm(trimmed)
    return Weighed(candidate, harm, spared, max(harm - before, 0.0) / spared if spared else inf)


def _tell(scales: Scales, done: int, total: int) -> None:
    if scales.report:
        scales.report(done, total)


def _there_are(candidates: tuple[Candidate, ...]) -> str:
    if not candidates:
        return "and the model has none that keeps its input's shape"
    return f"and there are {len(candidates)}: {first_few([candidate.path for candidate in candidates])}"


def facts_of(choice: Choice, per: Literal["time", "macs"]) -> list[dict[str, Any]]:
    """Return what a report says of every candidate, in the order of the graph; None stands for what is infinite."""
    gone = {candidate.path for candidate in choice.removed}
    unit = "microseconds" if per == "time" else "macs"
    return [
        {
            "path": one.candidate.path,
            "kind": one.candidate.kind,
            "params": one.candidate.params,
            "harm": _plain(one.harm),
            unit: one.spared,
            "score": _plain(one.score),
            "removed": one.candidate.path in gone,
        }
        for one in choice.weighed
    ]


def _plain(value: float) -> float | None:
    return float(f"{value:.4g}") if isfinite(value) else None
