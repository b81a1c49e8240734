"""Which operators of a graph are to run in integers, and which tensors must be integers for that."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from .artifact import Target
from .quant_rules import CLAMPS, FIXED, RULES, Rules

_MASK = 1e4
"""Masks begin here: BERT's first code has -10000, others the least number of a type."""


@dataclass(frozen=True)
class QuantPlan:
    """What becomes integers.

    Attributes:
        products: names of the nodes with MACs that compute in integers.
        nodes: names of all nodes that do, those that only pass integers on among them.
        tensors: activations that go through a grid, in the graph's order.
        takes_over: tensors whose grid is another's, with the name of that one.
        fixed: ranges by definition.
        held: tensors that come out of an integer kernel: whoever reads them reads what went through the grid.
    """

    products: tuple[str, ...]
    nodes: frozenset[str]
    tensors: tuple[str, ...]
    takes_over: Mapping[str, str]
    fixed: Mapping[str, tuple[float, float]]
    held: frozenset[str]

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose range calibration must find."""
        return tuple(name for name in self.tensors if name not in self.takes_over and name not in self.fixed)


@dataclass(frozen=True, eq=False)
class Wiring:
    """Who makes and who reads each value of a graph.

    Attributes:
        graph: with constants as initializers and every node named.
        floats: names of the values of type fp32.
    """

    graph: GraphProto
    floats: Collection[str]
    makers: Mapping[str, NodeProto] = field(init=False)
    readers: Mapping[str, list[NodeProto]] = field(init=False)
    weights: Mapping[str, TensorProto] = field(init=False)

    def __post_init__(self) -> None:
        readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in dict.fromkeys(filter(None, (*node.input, *inner_names(node)))):
                readers[name].append(node)
        object.__setattr__(self, "readers", readers)
        object.__setattr__(self, "makers", {name: node for node in self.graph.node for name in node.output if name})
        object.__setattr__(self, "weights", {one.name: one for one in self.graph.initializer})

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The names of the graph's outputs."""
        return frozenset(value.name for value in self.graph.output)

    def activations(self, node: NodeProto) -> list[str]:
        """Return a node's inputs that are computed and of type fp32."""
        return [name for name in node.input if name and name not in self.weights and name in self.floats]

    def only_reader(self, name: str) -> NodeProto | None:
        """Return the one node that reads a value; None where there are more, or where it is an output."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def inner_names(node: NodeProto) -> Iterator[str]:
    """Yield what the subgraphs of a node, its branches or its body, may read from around it."""
    for held in node.attribute:
        for graph in (held.g, *held.graphs):
            yield from (value.name for value in graph.output)
            for inside in graph.node:
                yield from (*inside.input, *inner_names(inside))


def clamp_limits(node: NodeProto, weights: Mapping[str, TensorProto]) -> tuple[float, float] | None:
    """Return the least and the largest value that a clamp lets through.

    None where they are computed, or without zero between them: every grid holds zero.
    """
    if node.op_type == "Relu":
        return 0.0, math.inf
    ends = [-math.inf, math.inf]
    for place, name in enumerate(node.input[1:]):
        if name and name not in weights:
            return None
        ends[place] = numpy_helper.to_array(weights[name]).item() if name else ends[place]
    low, high = ends
    return (low, high) if low <= 0 <= high else None


def plan(wiring: Wiring, target: Target, keep: Collection[str] = ()) -> QuantPlan:
    """Choose what runs in integers.

    Products with weights are chosen first. What lies between them follows where the target has a kernel for it and
    integers come in and go on: alone between floating-point operators it would only cost conversions.

    Args:
        wiring: of an fp32 graph.
        target: the family of runtimes.
        keep: names of nodes that stay in fp32.
    """
    return _Planner(wiring, RULES[target], keep).result()


class _Planner:
    def __init__(self, wiring: Wiring, rules: Rules, keep: Collection[str]) -> None:
        self._wiring, self._rules, self._keep = wiring, rules, keep
        nodes = [node for node in wiring.graph.node if node.name not in keep and node.domain in ("", "ai.onnx")]
        self._products = {node.name: node for node in nodes if self._is_product(node)}
        others = {node.name: node for node in nodes if node.name not in self._products and self._may_follow(node)}
        self._chosen = {**self._products, **others}
        while lonely := [name for name in others if not self._is_between(others[name])]:
            for name in lonely:
                del others[name], self._chosen[name]

    def _is_product(self, node: NodeProto) -> bool:
        if node.op_type not in self._rules.products or node.input[0] not in self._wiring.floats:
            return False
        weight = self._wiring.weights.get(node.input[1])
        return weight is not None and node.input[0] not in self._wiring.weights and len(weight.dims) >= 2

    def _may_follow(self, node: NodeProto) -> bool:
        rules, given = self._rules, self._wiring.activations(node)
        if node.op_type in CLAMPS:
            return bool(rules.outputs) and len(given) == 1 and clamp_limits(node, self._wiring.weights) is not None
        if node.op_type in rules.moves:
            return len(given) == 1 and given[0] == node.input[0]
        return node.op_type in rules.joins and bool(given) and not self._adds_bias(node) and not self._masks(node)

    def _adds_bias(self, node: NodeProto) -> bool:
        """Whether a node adds a weight to a matrix product, which the product's own kernel does."""
        given = self._wiring.activations(node)
        maker = self._wiring.makers.get(given[0])
        return len(given) == 1 and node.op_type == "Add" and maker is not None and maker.op_type == "MatMul"

    def _masks(self, node: NodeProto) -> bool:
        """Whether a constant is so large that it only stands for minus infinity: no grid holds it beside numbers."""
        held = [self._wiring.weights[name] for name in node.input if name in self._wiring.weights]
        floats = [numpy_helper.to_array(one) for one in held if one.name in self._wiring.floats]
        return any(not (np.abs(values) < _MASK).all() for values in floats)

    def _is_between(self, node: NodeProto) -> bool:
        made = any(self._made_here(name) for name in self._wiring.activations(node))
        if node.op_type in CLAMPS:
            return made and self._ends_product(node)
        read = any(reader.name in self._chosen for name in node.output for reader in self._wiring.readers.get(name, []))
        return made and read

    def _ends_product(self, node: NodeProto) -> bool:
        """Whether a clamp is the only reader of what it clamps, so that the grid of its result does its work."""
        source = self._wiring.activations(node)[0]
        maker = self._wiring.makers.get(source)
        return maker is not None and maker.op_type not in CLAMPS and self._wiring.only_reader(source) is node

    def _made_here(self, name: str) -> bool:
        maker = self._wiring.makers.get(name)
        return maker is not None and maker.name in self._chosen

    def result(self) -> QuantPlan:
        over: dict[str, str] = {}
        fixed: dict[str, tuple[float, float]] = {}
        wanted = dict.fromkeys(self._tensors())
        for node in self._wiring.graph.node:
            if node.name in self._chosen and node.op_type in self._rules.moves and node.input[0] in wanted:
                over |= {name: over.get(node.input[0], node.input[0]) for name in node.output if name in wanted}
            elif node.op_type in FIXED:
                fixed |= {name: FIXED[node.op_type] for name in node.output if name in wanted}
        held = frozenset(name for name in wanted if self._is_held(name))
        return QuantPlan(tuple(self._products), frozenset(self._chosen), tuple(wanted), over, fixed, held)

    def _tensors(self) -> Iterator[str]:
        """Yield what goes through a grid, in the graph's order."""
        for node in self._wiring.graph.node:
            if node.name in self._chosen and node.op_type not in CLAMPS:
                yield from self._wiring.activations(node)
            if self._rules.shortcuts and node.op_type == "Add":
                yield from self._shortcut(node)
            yield from (name for name in node.output if self._is_held(name))

    def _is_held(self, name: str) -> bool:
        node = self._wiring.makers.get(name)
        if node is None or node.name not in self._chosen or name not in self._wiring.floats:
            return False
        if node.name in self._products:
            return node.op_type in self._rules.outputs and self._clamp(name) is None
        return self._clamp(name) is None

    def _clamp(self, name: str) -> NodeProto | None:
        """Return the chosen clamp that a value ends in."""
        reader = self._wiring.only_reader(name)
        return reader if reader is not None and reader.op_type in CLAMPS and reader.name in self._chosen else None

    def _shortcut(self, node: NodeProto) -> list[str]:
        given = self._wiring.activations(node)
        if len(given) != 2 or node.name in self._keep:
            return []
        ends = [name for name in given if self._is_branch(name)]
        if not ends:
            return []
        return [name for name in given if name != ends[-1]]

    def _is_branch(self, name: str) -> bool:
        """Whether a product that runs in integers ends in this value alone."""
        maker = self._wiring.makers.get(name)
        return maker is not None and maker.name in self._products and self._wiring.only_reader(name) is not None
