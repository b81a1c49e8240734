"""Give an fp32 graph a lower precision: values, weights and operators of that type, with casts at borders only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .onnx_graph import DTYPES, INLINE_BYTES, OnnxGraph, Weight, size_of, stub
from .typed_nodes import JOINS, LOW, NONE, TYPED_BY, Slots, captured, slots, subgraphs

Array = NDArray[Any]
Low = Literal["fp16", "bf16"]

FLOAT = TensorProto.FLOAT


def to_typed(graph: OnnxGraph, low: Low, keep: Collection[str] = (), keep_io_types: bool = True) -> OnnxGraph:
    """Return the graph in a low type.

    Every operator that is defined for the type computes in it, unless it is kept. What lies between kept operators and
    costs less in fp32 than two casts stays in fp32 with them.

    Args:
        graph: in fp32.
        low: the type.
        keep: names of nodes that compute in fp32.
        keep_io_types: inputs and outputs of the graph stay fp32; otherwise they are of the low type.

    Returns:
        A graph in the order of its dependencies.
    """
    return _Typing(lifted(graph), LOW[low], keep, keep_io_types).result()


def lifted(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph with constants that are nodes as initializers."""
    if not any(_tensor_of(node) for node in graph.proto.graph.node):
        return graph
    made = ModelProto()
    made.CopyFrom(graph.proto)
    del made.graph.node[:]
    for node in graph.proto.graph.node:
        value = _tensor_of(node)
        if value is None:
            made.graph.node.append(node)
            continue
        held = made.graph.initializer.add()
        held.CopyFrom(value)
        held.name = node.output[0]
    return OnnxGraph(made, graph.weights)


def _tensor_of(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    value = helper.get_attribute_value(node.attribute[0])
    if isinstance(value, TensorProto):
        return value
    return (
        numpy_helper.from_array(np.asarray(value)) if node.attribute[0].name in ("value_float", "value_int") else None
    )


def value_types(graph: OnnxGraph) -> dict[str, int]:
    """Return the element type of every value."""
    inferred = onnx.shape_inference.infer_shapes(graph.light(), data_prop=True).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    return found | {i.name: i.data_type for i in graph.proto.graph.initializer}


def opset_of(proto: ModelProto) -> int:
    """Return the version of the default domain."""
    return next(int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx"))


def placed(graph: OnnxGraph, low: int, keep: Collection[str]) -> list[Slots]:
    """Return for each node what of it becomes low; nothing for what is kept, and for what joins the kept ones."""
    nodes, types, opset = list(graph.proto.graph.node), value_types(graph), opset_of(graph.proto)
    held = {name for node in nodes for name in captured(node)}
    found = [slots(node, types, low, opset) for node in nodes]
    kept = [node.name in keep or not held.isdisjoint(node.output) for node in nodes]
    high = [k or not s.outputs for k, s in zip(kept, found, strict=True)]
    joined = _joined(nodes, types, kept, high)
    return [NONE if k or j else s for k, j, s in zip(kept, joined, found, strict=True)]


def _joined(nodes: list[NodeProto], types: Mapping[str, int], kept: list[bool], high: list[bool]) -> list[bool]:
    """Whether each node may join others in fp32: all floats it takes come from fp32, and all it gives goes there."""
    after: dict[str, bool] = {}
    for node, alone in zip(nodes, high, strict=True):
        takes = [after[name] for name in node.input if name in after and types.get(name) == FLOAT]
        comes = alone or (node.op_type in JOINS and bool(takes) and all(takes))
        after |= dict.fromkeys(node.output, comes)
    before: dict[str, list[bool]] = {}
    joined = []
    for node, alone in zip(reversed(nodes), reversed(kept), strict=True):
        gives = [use for name in node.output for use in before.get(name, ())]
        goes = alone or (node.op_type in JOINS and bool(gives) and all(gives))
        for name in node.input:
            before.setdefault(name, []).append(goes)
        joined.append(goes and bool(node.output) and all(after[name] for name in node.output))
    return joined[::-1]


@dataclass
class _Typing:
    """The graph under construction: which types of each value there are, under which names."""

    graph: OnnxGraph
    low: int
    keep: Collection[str]
    keep_io: bool
    nodes: list[NodeProto] = field(default_factory=list)
    names: dict[tuple[str, int], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def result(self) -> OnnxGraph:
        """Type the graph."""
        source = self.graph.proto.graph
        self.plan = placed(self.graph, self.low, self.keep)
        self.types = value_types(self.graph)
        self.outputs = {value.name for value in source.output}
        self.taken = set(self.types)
        initializers, weights = self._initializers()
        for value in source.input:
            if self.types[value.name] == FLOAT:
                self.names[value.name, FLOAT if self.keep_io else self.low] = value.name
        for node, slot in zip(source.node, self.plan, strict=True):
            self._add(node, slot)
        self._finish()
        made = ModelProto()
        made.CopyFrom(self.graph.proto)
        for part, content in ((made.graph.node, self.nodes), (made.graph.initializer, initializers)):
            del part[:]
            part.extend(content)
        del made.graph.value_info[:]
        if not self.keep_io:
            _retype((*made.graph.input, *made.graph.output), self.low)
        return OnnxGraph(made, weights)

    def _initializers(self) -> tuple[list[TensorProto], dict[str, Weight]]:
        """Store each constant in the types that it is used in."""
        asked = self._asked()
        made: list[TensorProto] = []
        weights = dict(self.graph.weights)
        for held in self.graph.proto.graph.initializer:
            uses = asked.get(held.name, set()) if held.data_type == FLOAT else set()
            if held.data_type != FLOAT or FLOAT in uses or not uses:
                self.names[held.name, held.data_type] = held.name
                made.append(held)
            if self.low in uses:
                name = held.name if FLOAT not in uses else self._new(held.name, self.low)
                self.names[held.name, self.low] = name
                made.append(_lowered(self.graph, held, self.low, name, weights))
        return made, weights

    def _asked(self) -> dict[str, set[int]]:
        asked: dict[str, set[int]] = {}
        for node, slot in zip(self.graph.proto.graph.node, self.plan, strict=True):
            for at, name in enumerate(node.input):
                asked.setdefault(name, set()).add(self.low if at in slot.inputs else FLOAT)
            for name in captured(node):
                asked.setdefault(name, set()).add(FLOAT)
        return asked

    def _new(self, name: str, kind: int) -> str:
        made = f"{name}_{TensorProto.DataType.Name(kind).lower()}"
        while made in self.taken:
            made += "_"
        self.taken.add(made)
        return made

    def _typed(self, name: str, kind: int) -> str:
        """Return the name of a value in a type, with a cast where there is none yet."""
        if (name, kind) not in self.names:
            held = next((k for k in (FLOAT, self.low) if (name, k) in self.names), None)
            if held is None:
                return name
            made = self._new(name, kind)
            self.nodes.append(helper.make_node("Cast", [self.names[name, held]], [made], f"Cast_{made}", to=kind))
            self.names[name, kind] = made
        return self.names[name, kind]

    def _add(self, source: NodeProto, slot: Slots) -> None:
        node = NodeProto()
        node.CopyFrom(source)
        for at, name in enumerate(source.input):
            if self.types.get(name) == FLOAT:
                node.input[at] = self._typed(name, self.low if at in slot.inputs else FLOAT)
        if node.op_type == "Cast" and slot.outputs and self._is_there(source):
            return
        for at, name in enumerate(source.output):
            kind = self.low if at in slot.outputs else FLOAT
            if self.types.get(name) == FLOAT:
                other = name in self.outputs and (kind == FLOAT) != self.keep_io
                node.output[at] = self._new(name, kind) if other else name
                self.names[name, kind] = node.output[at]
        if slot.outputs and node.op_type in TYPED_BY:
            _set_type(node, self.low)
        self.nodes.append(node)

    def _is_there(self, cast: NodeProto) -> bool:
        """Whether a cast gives what is there already: its input, in the low type."""
        name = cast.input[0]
        if cast.output[0] in self.outputs or self.types.get(name) not in (FLOAT, self.low):
            return False
        self.names[cast.output[0], self.low] = self._typed(name, self.low) if self.types[name] == FLOAT else name
        return True

    def _finish(self) -> None:
        """Give the graph's outputs their types under their own names."""
        kind = FLOAT if self.keep_io else self.low
        for name in sorted(self.outputs):
            if self.types[name] == FLOAT and (name, kind) not in self.names:
                held = self.names[name, self.low if kind == FLOAT else FLOAT]
                self.nodes.append(helper.make_node("Cast", [held], [name], f"Cast_{name}", to=kind))


def _lowered(graph: OnnxGraph, held: TensorProto, low: int, name: str, weights: dict[str, Weight]) -> TensorProto:
    """Return a constant in the low type; a large one stays a stub whose values are rounded when they are read."""
    if held.name not in graph.weights and size_of(held) <= INLINE_BYTES:
        return numpy_helper.from_array(rounded(numpy_helper.to_array(held), low), name)
    read = graph.weights.get(held.name) or (lambda: numpy_helper.to_array(held))
    weights[name] = lambda: rounded(read(), low)
    return stub(name, low, held.dims)


def rounded(values: Array, low: int) -> Array:
    """Return values in the low type, rounded to nearest; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(DTYPES[low])


def _set_type(node: NodeProto, low: int) -> None:
    """Let an operator's attribute name the low type; left out, it means fp32."""
    name = TYPED_BY[node.op_type]
    given = next((attribute for attribute in node.attribute if attribute.name == name), None)
    if node.op_type != "ConstantOfShape":
        value: Any = low
    else:
        value = numpy_helper.from_array(rounded(numpy_helper.to_array(given.t) if given else np.zeros(1), low))
    if given:
        node.attribute.remove(given)
    node.attribute.append(helper.make_attribute(name, value))


def _retype(values: Iterable[onnx.ValueInfoProto], low: int) -> None:
    for value in values:
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = low


__all__ = ["Low", "captured", "lifted", "opset_of", "placed", "rounded", "subgraphs", "to_typed", "value_types"]
