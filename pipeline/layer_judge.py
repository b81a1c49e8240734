"""How much accuracy a file loses against the fp32 one: on all examples, or on as few as tell whether it is too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from ..export.int8 import Examples
from ..export.parity_taps import open_graph
from ..export.session import OnnxSession
from ..models.errors import BadInput

Array = NDArray[Any]

_PART = 64
"""Examples that are run at a time; where none of so many changes its class, those of which fp32 is surer do not."""
_HELD = 512
_HELD_BYTES = 2.5e8


@dataclass(frozen=True, eq=False)
class Judging:
    """What a file is judged on.

    Attributes:
        examples: inputs, in parts.
        labels: the right class of each, `(examples,)`; None judges by agreement with the fp32 file.
        max_drop: points of the metric that may be lost.
    """

    examples: Examples
    labels: Array | None
    max_drop: float


class Judge:
    """Judges files with the classes of the fp32 one at hand.

    A class changes where two scores are close. So the examples of which fp32 is least certain come first: what loses
    too much is known after few of them, and what changes none of 64 any more is taken to change none of the others.

    Attributes:
        examples: how many there are.
    """

    def __init__(self, graph: ModelProto, judging: Judging) -> None:
        """Run the fp32 graph.

        Raises:
            BadInput: its outputs are no scores of classes, or labels do not go with the examples.
        """
        self._judging = judging
        session = open_graph(graph, OnnxSession)
        self._fixed_batch = session.fixed_batch
        seen = [_sure(session.run(feeds)[0]) for feeds in judging.examples()]
        self._fp32 = np.concatenate([classes for classes, _ in seen])
        self.examples = len(self._fp32)
        self._truth = self._fp32 if judging.labels is None else np.asarray(judging.labels)
        if len(self._truth) != self.examples:
            raise BadInput(f"labels: got {len(self._truth)} for {self.examples} examples, wanted one for each")
        order = np.argsort(np.concatenate([margins for _, margins in seen]), kind="stable")
        self._doubtful = order[: _held(judging.examples)]
        self._feeds = _rows(judging.examples(), self._doubtful)

    def drop(self, proto: ModelProto) -> float:
        """Return the points of the metric that a file loses on all examples; below zero it gains."""
        session = open_graph(proto, OnnxSession)
        found = np.concatenate([_classes(session.run(feeds)[0]) for feeds in self._judging.examples()])
        return 100 * float((self._fp32 == self._truth).mean() - (found == self._truth).mean())

    def holds(self, proto: ModelProto) -> bool:
        """Whether a file loses no more than it may, by as few examples as tell.

        It ends where the others cannot make good what was lost, or are taken not to change.
        """
        session = open_graph(proto, OnnxSession)
        allowed = self._judging.max_drop / 100 * self.examples + 1e-9
        lost, to_regain = 0, int((self._fp32 != self._truth).sum())
        for start in range(0, len(self._doubtful), _PART):
            places = self._doubtful[start : start + _PART]
            feeds = {name: array[start : start + _PART] for name, array in self._feeds.items()}
            found, fp32, truth = _classes(session.run(feeds)[0]), self._fp32[places], self._truth[places]
            lost += int((fp32 == truth).sum()) - int((found == truth).sum())
            to_regain -= int((fp32 != truth).sum())
            if lost - to_regain > allowed:
                return False
            if (found == fp32).all():
                return lost <= allowed
        return lost <= allowed if len(self._doubtful) == self.examples else self.drop(proto) <= self._judging.max_drop

    def inputs(self, batch: int) -> dict[str, Array]:
        """Return the first examples as inputs to time: so many, or as many as the file takes at once."""
        count = self._fixed_batch or batch
        return {name: np.resize(array, (count, *array.shape[1:])) for name, array in self._feeds.items()}


def _held(examples: Examples) -> int:
    """Return how many examples are kept in memory."""
    first = next(iter(examples()))
    one = sum(array.nbytes for array in first.values()) / max(1, len(next(iter(first.values()))))
    return max(_PART, min(_HELD, int(_HELD_BYTES // max(one, 1))))


def _rows(examples: Iterable[Mapping[str, Array]], places: Array) -> dict[str, Array]:
    """Return examples by their places, in that order."""
    found: dict[str, list[Array]] = {}
    ranks, before = [], 0
    for feeds in examples:
        count = len(next(iter(feeds.values())))
        here = np.flatnonzero((places >= before) & (places < before + count))
        ranks.append(here)
        for name, array in feeds.items():
            found.setdefault(name, []).append(array[places[here] - before])
        before += count
    back = np.argsort(np.concatenate(ranks), kind="stable")
    return {name: np.concatenate(parts)[back] for name, parts in found.items()}


def _sure(scores: Array) -> tuple[Array, Array]:
    """Return the class of each example, and how far the second one is behind."""
    classes = _classes(scores)
    highest = np.partition(scores, -2, axis=1)
    return classes, highest[:, -1] - highest[:, -2]


def _classes(scores: Array) -> Array:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise BadInput(
            f"the search for layers judges by classes, and the first output has the shape {scores.shape}, wanted "
            "(examples, classes); name the layers to keep instead (keep_float)"
        )
    return np.asarray(scores.argmax(axis=1))
