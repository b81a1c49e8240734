"""Compute a low-precision graph as a GPU does, where the CPU would not: operators in fp32, each result rounded.

ONNX Runtime computes much of fp16 in fp32 on a CPU and leaves the casts between out: 300 * 300 / 300 gives 300 there,
and infinity on a GPU. It has next to no bf16. Written out, roundings are taken on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .onnx_graph import OnnxGraph, Weight, size_of, stub
from .onnx_store import MOST_BYTES
from .typed import FLOAT, value_types
from .typed_nodes import MOVES, TYPED_BY

Array = NDArray[Any]
_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def with_roundings(graph: OnnxGraph) -> OnnxGraph:
    """Return a graph in fp32 that gives what one in fp16 or bf16 does, on hardware that sums in fp32.

    Every value that is low in the given graph is rounded to that type; names stay.
    """
    types = value_types(graph)
    made = ModelProto()
    made.CopyFrom(graph.proto)
    weights = dict(graph.weights)
    del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    for held in graph.proto.graph.initializer:
        made.graph.initializer.append(_widened(graph, held, weights))
    for value in (*made.graph.input, *made.graph.output):
        if value.type.tensor_type.elem_type in _LOW:
            value.type.tensor_type.elem_type = FLOAT
    for node in graph.proto.graph.node:
        made.graph.node.extend(_rounded_node(node, types))
    return OnnxGraph(made, weights)


def _rounded_node(source: NodeProto, types: Mapping[str, int]) -> list[NodeProto]:
    node = NodeProto()
    node.CopyFrom(source)
    for attribute in node.attribute:
        if TYPED_BY.get(node.op_type) == attribute.name and attribute.i in _LOW:
            attribute.i = FLOAT
        if TYPED_BY.get(node.op_type) == attribute.name and attribute.t.data_type in _LOW:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    added: list[NodeProto] = []
    for at, name in enumerate(source.output):
        kind = types.get(name)
        if kind in _LOW and node.op_type not in MOVES:
            node.output[at] = f"{name}__exact"
            added.append(helper.make_node("Cast", [f"{name}__exact"], [f"{name}__low"], to=kind))
            added.append(helper.make_node("Cast", [f"{name}__low"], [name], to=FLOAT))
    return [node, *added]


def _widened(graph: OnnxGraph, held: TensorProto, weights: dict[str, Weight]) -> TensorProto:
    if held.data_type not in _LOW:
        return held
    if held.name not in graph.weights:
        return numpy_helper.from_array(numpy_helper.to_array(held).astype(np.float32), held.name)
    weights[held.name] = partial(_in_fp32, graph.weights[held.name])
    return stub(held.name, FLOAT, held.dims)


def _in_fp32(read: Weight) -> Array:
    return read().astype(np.float32)


def run(graph: OnnxGraph, feeds: Mapping[str, Array], wanted: Sequence[str] = ()) -> dict[str, Array]:
    """Run an fp32 graph in ONNX Runtime on the CPU and return its outputs, or those asked for, by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Weights of a graph that is too large for protobuf are given as inputs.
    small = sum(map(size_of, graph.proto.graph.initializer)) <= MOST_BYTES
    proto = graph.filled() if small else graph.light()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(wanted) or [output.name for output in session.get_outputs()]
    given = {i.name: feeds[i.name] if i.name in feeds else graph.weights[i.name]() for i in session.get_inputs()}
    return dict(zip(names, map(np.asarray, session.run(names, given)), strict=True))
