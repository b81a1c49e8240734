"""Make an exported ONNX graph portable and reproducible: what users see is the function, not how it was traced."""

from __future__ import annotations

import ast

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from ..models.model import TensorSpec
from .onnx_rewrites import lower_case_einsums

MODULE = "module"
"""The property of a node that names the module it is of."""
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(proto: ModelProto, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> ModelProto:
    """Drop traces, name dimensions and nodes plainly, and write pooling as pooling, in place.

    Stack traces and source paths leave the file: they tell about the machine that made it, and change its bytes. The
    path of each node's module (`layer1.0.conv1`) stays, as its property `module`.
    """
    graph = proto.graph
    for node in graph.node:
        _keep_module(node)
    for holder in (proto, graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    lower_case_einsums(graph)
    for function in proto.functions:
        del function.metadata_props[:]
    _pool_means(graph)
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
    _name_dimensions(graph, inputs, outputs)
    del graph.value_info[:]
    graph.name = "shipworthy"
    proto.producer_name, proto.producer_version = "shipworthy", ""
    return proto


def _keep_module(node: NodeProto) -> None:
    """Keep of a node's properties the path of the module that it is of, in place."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    path = next(reversed(ast.literal_eval(scopes)[:-1]), "")
    del node.metadata_props[:]
    node.doc_string = ""
    if path:
        node.metadata_props.add(key=MODULE, value=path)


def _name_dimensions(graph: GraphProto, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    for values, specs in ((graph.input, inputs), (graph.output, outputs)):
        for value, spec in zip(values, specs, strict=True):
            for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
                if isinstance(size, str):
                    dim.dim_param = size
                else:
                    dim.dim_value = size


def _pool_means(graph: GraphProto) -> None:
    """Write a mean over all pixels as GlobalAveragePool, which runtimes have integer kernels for."""
    constants = {i.name: i for i in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input)}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
            continue
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        axes = {int(a) for a in np.atleast_1d(numpy_helper.to_array(constants[node.input[1]]))}
        rank = ranks.get(node.input[0], 0)
        if keep and rank >= 3 and {a % rank for a in axes} == set(range(2, rank)):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
            del node.input[1:]
    used = {name for node in graph.node for name in node.input}
    left = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(left)


def check(proto: ModelProto) -> None:
    """Run the ONNX checker with strict, data-propagating shape inference; raises what onnx raises."""
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
