"""One graph with any choice of its layers in integers: calibrated once, written as often as it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from glob import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from .artifact import Target
from .calibration import Calibrating, observe
from .int8 import Examples, Int8Settings, Known, rescaled, to_int8
from .islands import named
from .onnx_clean import MODULE
from .parity_taps import open_graph
from .quant_grid import Range
from .quant_place import Grids, place
from .quant_plan import QuantPlan, plan
from .quant_prepare import prepared, wiring_of
from .quant_stem import stems_in_blocks
from .quant_stream import Feeds
from .session import OnnxSession

Array = NDArray[Any]

_LEAST_SHARE = 1e-12
COMPARED = 256
"""Examples that the cost of each layer is taken on."""


class QuantLayers:
    """A graph whose layers can be quantized one by one.

    Attributes:
        layers: names of the nodes with MACs that can be integers, in the graph's order.
        graph: in fp32, as the integers are written into it.
    """

    def __init__(
        self,
        proto: ModelProto,
        examples: Examples,
        target: Target,
        settings: Int8Settings,
        known: Known | None = None,
    ) -> None:
        """Prepare the graph; examples are looked at when the first file is asked for.

        Raises:
            BadInput: see `int8.to_int8`.
        """
        self._source, graph = proto, prepared(proto)
        self.graph = rescaled(graph, examples, settings)
        self._wiring, self._target, self._settings = wiring_of(self.graph), target, settings
        self._examples = examples
        self._always = frozenset(named(self.graph.graph.node, settings.keep_float, "keep_float"))
        self.layers = plan(self._wiring, target, self._always).products
        known = known or Known()
        self._ranges: dict[str, Range] = dict(known.ranges)
        self._scales = known.weight_scales

    def with_float(self, keep: Collection[str]) -> ModelProto:
        """Return the graph with these layers in fp32 and all others in integers; with all kept, the fp32 graph."""
        chosen = plan(self._wiring, self._target, self._always.union(keep))
        if not chosen.products:
            return self.graph
        self._observe(chosen)
        grids = Grids(self._ranges, self._scales, self._settings.weight_bits, self._settings.weights_by_error)
        made = place(self.graph, self._wiring, chosen, grids, self._target)
        return stems_in_blocks(made) if self._target == "cpu" else made

    def shipped(self, keep: Collection[str]) -> ModelProto:
        """Return what `to_int8` makes with these layers in fp32: the same, and what it does beside writing pairs."""
        settings, known = self.settings_with(keep), Known()
        if not (settings.equalize or settings.correct_bias or settings.smooth is not None):
            self._observe(plan(self._wiring, self._target, self._always.union(keep)))
            known = Known(self._ranges, self._scales)
        return to_int8(self._source, self._examples, self._target, settings, known).proto

    def _observe(self, chosen: QuantPlan) -> None:
        """Find the ranges that are not known yet."""
        if missing := [name for name in chosen.observed if name not in self._ranges]:
            how = Calibrating(self._settings.method, self._target)
            self._ranges |= observe(self.graph, missing, self._examples(), how)

    def module(self, layer: str) -> str:
        """Return the path of the user's module that a layer is of, empty where the file does not tell."""
        node = next(node for node in self.graph.graph.node if node.name == layer)
        dotted = [name.rpartition(".")[0] for name in node.input[1:] if "." in name and not name.startswith("/")]
        told = (entry.value for entry in node.metadata_props if entry.key == MODULE)
        return next((path for path in (*dotted, *told) if path), "")

    def alone(self, layer: str) -> ModelProto:
        """Return the graph with this layer alone in integers."""
        return self.with_float([name for name in self.layers if name != layer])

    def settings_with(self, keep: Collection[str]) -> Int8Settings:
        """Return the settings that make the same file of the same graph."""
        exactly = (escape(name) for name in sorted(keep))
        return replace(self._settings, keep_float=(*self._settings.keep_float, *exactly))


def sensitivities(
    layers: QuantLayers, examples: Examples, told: Callable[[int, int], object] = lambda done, total: None
) -> dict[str, float]:
    """Return what each layer costs when it alone is in integers.

    Args:
        layers: of the graph.
        examples: that outputs are compared on.
        told: called with the layers done and all of them.

    Returns:
        By layer: Kullback and Leibler's divergence of the classes' probabilities from fp32's in nats, the mean over
        examples, for outputs `(examples, scores)`; for others the squared error relative to the output's own square.
    """
    few = _first(examples)
    right = outputs_of(layers.graph, few)
    found = {}
    for place_, name in enumerate(layers.layers):
        found[name] = _cost(right, outputs_of(layers.alone(name), few))
        told(place_ + 1, len(layers.layers))
    return found


def outputs_of(proto: ModelProto, examples: Examples) -> list[Array]:
    """Return every output of a graph for all examples."""
    session = open_graph(proto, OnnxSession)
    parts = [session.run(feeds) for feeds in examples()]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _first(examples: Examples) -> Examples:
    """Return the first of the examples alone: a divergence tells more of each than right or wrong does."""

    def few() -> Iterator[Feeds]:
        left = COMPARED
        for feeds in examples():
            yield {name: array[:left] for name, array in feeds.items()}
            left -= len(next(iter(feeds.values())))
            if left <= 0:
                return

    return few


def _cost(right: list[Array], found: list[Array]) -> float:
    costs = [_divergence(a, b) if _is_scores(a) else _error(a, b) for a, b in zip(right, found, strict=True)]
    return max(costs)


def _is_scores(output: Array) -> bool:
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


def _divergence(right: Array, found: Array) -> float:
    p, q = _log_shares(right), _log_shares(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_shares(scores: Array) -> NDArray[np.float64]:
    wide = scores.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def _error(right: Array, found: Array) -> float:
    a, b = right.astype(np.float64), found.astype(np.float64)
    return float(np.square(a - b).sum() / max(float(np.square(a).sum()), _LEAST_SHARE))
