"""The ranges that quantization-aware training starts from, and the grids that ranges give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from ..models.errors import BadInput
from ..models.model import Model
from .qat_places import Places

LEVELS = 255
"""Steps of an unsigned 8-bit grid."""

BATCH = 64
"""Examples that are looked at together: memory does not grow with their number."""

_BINS = 8192  # several to a step of the narrowest range that is tried
_TAIL = 5e-5
_LEAST_STEP = 1e-12
_CANDIDATES = torch.linspace(0.2, 1.0, 81)

Bounds = tuple[float, float]
Seen = Callable[[Node, Tensor], None]


@dataclass(frozen=True)
class Grid:
    """An activation's integers, 0 to 255: `value = (integer - zero) * step`; zero is exact."""

    step: float
    zero: int


def grid_of(low: float, high: float) -> Grid:
    """Return the grid that spans a range, and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max((high - low) / LEVELS, _LEAST_STEP)
    return Grid(step, min(LEVELS, max(0, round(-low / step))))


def start_ranges(model: Model, places: Places, examples: Sequence[Tensor], method: str) -> dict[Node, Bounds]:
    """Return the range of every origin over calibration examples; those that share a grid share their range.

    Args:
        model: the graph that the places are of.
        places: what is rounded.
        examples: of each input, `(count, ...)`.
        method: `minmax`: all values; `percentile`: but for one in 20,000 at either end; `entropy` and `mse`: the range
            with the least squared error of rounding and cutting off, as only a start is looked for.

    Raises:
        BadInput: a value is no number or infinite.
    """
    spans: dict[Node, Bounds] = {}

    def widen(node: Node, value: Tensor) -> None:
        low, high = spans.get(node, (0.0, 0.0))
        least, most = (float(one) for one in value.aminmax())
        spans[node] = min(low, least), max(high, most)
        if not (torch.isfinite(value.sum()) or torch.isfinite(value).all()):
            raise BadInput(f"calibration: {node.name} has values that are infinite or no numbers; look at the examples")

    _watch(model, places.origins, examples, widen)
    if method != "minmax":
        spans = _cut(model, spans, examples, _percentile if method == "percentile" else _least_error)
    return {
        node: (min(spans[one][0] for one in places.shared[node]), max(spans[one][1] for one in places.shared[node]))
        for node in places.origins
    }


def _cut(
    model: Model, spans: Mapping[Node, Bounds], examples: Sequence[Tensor], rule: Callable[[Tensor, Bounds], Bounds]
) -> dict[Node, Bounds]:
    """Return ranges by a second look at the values: rules see how often they fall into parts of their range."""
    counts = {node: torch.zeros(_BINS) for node in spans}

    def count(node: Node, value: Tensor) -> None:
        low, high = spans[node]
        if high > low:
            counts[node] += torch.histc(value.float(), _BINS, low, high)

    _watch(model, list(spans), examples, count)
    return {node: rule(counts[node], span) if span[1] > span[0] else span for node, span in spans.items()}


def _percentile(counts: Tensor, span: Bounds) -> Bounds:
    shares = counts.cumsum(0) / counts.sum()
    edges = torch.linspace(span[0], span[1], _BINS + 1)
    last = min(int((shares < 1 - _TAIL).sum()), _BINS - 1)
    return float(edges[int((shares <= _TAIL).sum())]), float(edges[last + 1])


def _least_error(counts: Tensor, span: Bounds) -> Bounds:
    middles = torch.linspace(span[0], span[1], 2 * _BINS + 1)[1::2]
    ends = _CANDIDATES[:, None] * torch.tensor(span)
    steps = (ends[:, 1:] - ends[:, :1]) / LEVELS
    rounded = (middles / steps).round() * steps
    errors = ((rounded.clamp(ends[:, :1], ends[:, 1:]) - middles).square() * counts).sum(1)
    low, high = ends[int(errors.argmin())].tolist()
    return low, high


def _watch(model: Model, nodes: Sequence[Node], examples: Sequence[Tensor], seen: Seen) -> None:
    size = BATCH if model.dynamic_batch else len(model.example_inputs[0])
    watcher = _Watcher(model, frozenset(nodes), seen)
    with torch.no_grad():
        for start in range(0, len(examples[0]) - (0 if model.dynamic_batch else size - 1), size):
            watcher.run(*(x[start : start + size] for x in examples))


class _Watcher(Interpreter):
    """Run a graph and show some of its values."""

    def __init__(self, model: Model, nodes: frozenset[Node], seen: Seen) -> None:
        super().__init__(model.module)
        self._nodes, self._seen = nodes, seen

    def run_node(self, n: Node) -> Any:
        """Run one operator."""
        value = super().run_node(n)
        if n in self._nodes:
            self._seen(n, value)
        return value


__all__ = ["BATCH", "LEVELS", "Bounds", "Grid", "grid_of", "start_ranges"]
