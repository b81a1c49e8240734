"""Half-precision files as they are written: every operator's result is rounded, whatever the machine computes in.

ONNX Runtime's CPU provider computes fp16 files in fp32 and drops the casts between operators, so that what overflows on
a GPU is right there; of bf16 it has few kernels at all. The graph made here holds fp32 values that went through the
file's own type after each operator, which ONNX Runtime keeps as it is: accumulation is fp32, as on tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .typed_nodes import HALVES, MOVES

_KEEPS = MOVES | {"Clip", "Sign", "Constant", "ConstantOfShape"}
"""Operators whose results are among their inputs, so that there is nothing to round."""


def holds_halves(proto: ModelProto) -> bool:
    """Whether any weight, constant, cast, input or output of the graph has a half-precision type."""
    ends = (*proto.graph.input, *proto.graph.output)
    return (
        any(value.type.tensor_type.elem_type in HALVES for value in ends)
        or any(_mentions_half(node) for node in nodes_of(proto.graph))
        or any(tensor.data_type in HALVES for graph in _graphs(proto.graph) for tensor in graph.initializer)
    )


def as_written(
    proto: ModelProto, typed: ModelProto | None = None, widen: Callable[[TensorProto], None] | None = None
) -> ModelProto:
    """Return the same function in fp32 values, each rounded to the type that the file has there.

    Inputs and outputs of half precision become fp32. A graph without half precision is returned as it is.

    Args:
        proto: the graph.
        typed: the same with inferred types, where it cannot be inferred from the graph itself.
        widen: turns a weight of half precision into fp32, in place; by default with its values.
    """
    if not holds_halves(proto):
        return proto
    typed = typed or onnx.shape_inference.infer_shapes(proto)
    made = ModelProto()
    made.CopyFrom(proto)
    for graph, types in zip(_graphs(made.graph), _graphs(typed.graph), strict=True):
        _widen(graph, _half_values(types), widen or widen_tensor)
    return made


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of the graphs inside it."""
    for one in _graphs(graph):
        yield from one.node


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _mentions_half(node: NodeProto) -> bool:
    return any((_is_type(node, a) and a.i in HALVES) or a.t.data_type in HALVES for a in node.attribute)


def _is_type(node: NodeProto, attribute: AttributeProto) -> bool:
    return attribute.name in ("to", "dtype", "output_dtype") and attribute.type == AttributeProto.INT


def _half_values(graph: GraphProto) -> dict[str, int]:
    """Return the half-precision values of a graph with inferred types, each with its type."""
    values = (*graph.value_info, *graph.input, *graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return {name: kind for name, kind in found.items() if kind in HALVES}


def _widen(graph: GraphProto, halves: dict[str, int], widen: Callable[[TensorProto], None]) -> None:
    for tensor in graph.initializer:
        widen(tensor)
    nodes = [made for node in graph.node for made in _rounded(node, halves)]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def widen_tensor(tensor: TensorProto) -> None:
    """Turn a weight of half precision into fp32, in place."""
    if tensor.data_type in HALVES:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def _rounded(node: NodeProto, halves: dict[str, int]) -> Iterator[NodeProto]:
    """Yield the node in fp32, and after it the roundings of its half-precision results."""
    for attribute in node.attribute:
        widen_tensor(attribute.t)
        if _is_type(node, attribute) and attribute.i in HALVES:
            attribute.i = TensorProto.FLOAT
    wide = [name for name in node.output if name in halves and node.op_type not in _KEEPS]
    for place, name in enumerate(node.output):
        if name in wide:
            node.output[place] = f"{name}/wide"
    yield node
    for name in wide:
        yield helper.make_node("Cast", [f"{name}/wide"], [f"{name}/half"], to=halves[name])
        yield helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT)


__all__ = ["as_written", "holds_halves", "nodes_of", "widen_tensor"]
