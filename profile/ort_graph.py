"""What the graph that ONNX Runtime made tells of a node beyond its trace: attributes, and weights packed away."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .layer_costs import Operation, Tensor
from .ort_trace import Ran

BLOCKED = "com.microsoft.nchwc"
"""The domain of operators whose channels lie in blocks; they are named after what they make, with this suffix."""

BLOCKED_SUFFIX = "_nchwc"

_SUMMING = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})  # their fourth input is added to the result


@dataclass(frozen=True)
class Node:
    """One node of the optimized graph.

    Attributes:
        inputs: their names, empty for one that is left out.
        outputs: their names.
        attributes: without tensors and graphs.
        constants: the weights that it can see, by name.
    """

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: Mapping[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Graph:
    """The nodes of the main graph in the order of the file, and those of all graphs inside it."""

    main: tuple[Node, ...]
    inner: tuple[Node, ...]


def read_graph(path: Path) -> Graph | None:
    """Read an ONNX file without its external data; None where the onnx package or the file is not there."""
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError:
        return None
    if not path.is_file():
        return None
    model = onnx.load(str(path), load_external_data=False)
    inner: list[Node] = []
    main = _nodes(onnx, model.graph, {}, inner)
    return Graph(tuple(main), tuple(inner))


def match(graph: Graph | None, ran: Sequence[Ran]) -> list[Node | None]:
    """Find the node of the graph for each node of one inference.

    ONNX Runtime writes its graph in the order in which it runs it. Where that holds, places match; else names do.
    """
    if graph is None:
        return [None] * len(ran)
    by_name = {node.name: node for node in (*graph.inner, *graph.main) if node.name}
    outer = [one for one in ran if not one.inside]
    in_order = [one.operator for one in outer] == [node.operator for node in graph.main]
    places = iter(graph.main if in_order else ())
    return [next(places) if in_order and not one.inside else _named(by_name, one) for one in ran]


def operation(ran: Ran, node: Node | None) -> Operation:
    """Put together what the trace and the graph know of one node."""
    if node is None:
        return Operation(ran.operator, ran.inputs, ran.outputs, complete=False)
    inputs = align(node, ran.inputs)
    if inputs is None:
        return Operation(ran.operator, ran.inputs, ran.outputs, node.attributes, complete=False)
    return Operation(ran.operator, inputs, ran.outputs, node.attributes)


def align(node: Node, seen: Sequence[Tensor]) -> tuple[Tensor | None, ...] | None:
    """Put the inputs of a trace into a node's own places; weights that the trace lacks come from the graph.

    Returns:
        None where they do not fit.
    """
    left = list(seen)
    found: list[Tensor | None] = []
    for name in node.inputs:
        constant = node.constants.get(name)
        if not name:
            found.append(None)
        elif constant is not None:
            if left and (left[0].dtype, left[0].shape) == (constant.dtype, constant.shape):
                left.pop(0)
            found.append(constant)
        elif left:
            found.append(left.pop(0))
        else:
            return None
    return None if left else tuple(found)


def facts(ran: Ran, node: Node | None, inputs: Sequence[Tensor | None]) -> tuple[str, ...]:
    """Say what else is worth knowing of a node: fused activations and sums, reorders, the layout."""
    domain = node.domain if node is not None else BLOCKED if ran.name.endswith(BLOCKED_SUFFIX) else ""
    attributes = node.attributes if node is not None else {}
    activation = str(attributes.get("activation", ""))
    added = ran.operator in _SUMMING and any(tensor is not None for tensor in inputs[3:4])
    found = {
        f"fused: {' and '.join(['Add'] * added + [activation] * bool(activation))}": added or bool(activation),
        "reorder": ran.operator.startswith("Reorder"),
        "blocked layout": domain == BLOCKED,
        "channels last": bool(attributes.get("channels_last")) or ran.operator.startswith("Nhwc"),
        f"inside {ran.inside}": bool(ran.inside),
    }
    return tuple(text for text, holds in found.items() if holds)


def _named(by_name: Mapping[str, Node], ran: Ran) -> Node | None:
    node = by_name.get(ran.name)
    return node if node is not None and node.operator == ran.operator else None


def _nodes(onnx: Any, graph: Any, outer: Mapping[str, Tensor], inner: list[Node]) -> list[Node]:
    constants = {**outer, **{tensor.name: _tensor(onnx, tensor) for tensor in graph.initializer}}
    made = []
    for node in graph.node:
        for attribute in node.attribute:
            for part in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                inner.extend(_nodes(onnx, part, constants, inner))
        found = _attributes(onnx, node.attribute)
        names = tuple(node.input), tuple(node.output)
        made.append(Node(node.name, node.op_type, node.domain, *names, found, constants))
    return made


def _tensor(onnx: Any, tensor: Any) -> Tensor:
    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return Tensor({"float": "float32", "double": "float64"}.get(name, name), tuple(tensor.dims), constant=True)


def _attributes(onnx: Any, attributes: Iterable[Any]) -> dict[str, Any]:
    plain = (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.STRING, onnx.AttributeProto.INTS)
    values = {one.name: onnx.helper.get_attribute_value(one) for one in attributes if one.type in plain}
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value for name, value in values.items()
    }
