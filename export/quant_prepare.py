"""Bring an fp32 graph of any origin into the form that integers are written into."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper, version_converter

from ..models.errors import BadInput
from .as_written import holds_halves, nodes_of
from .onnx_shapes import constant_of
from .quant_plan import Wiring, inner_names
from .typed import opset_of

LEAST_OPSET = 13
"""The first in which a DequantizeLinear has a scale for each channel."""

_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"})  # fmt: skip # noqa: E501

_MOVES = frozenset({"Transpose", "Cast", "Identity"})


def prepared(proto: ModelProto) -> ModelProto:
    """Return the same function with constants as initializers, norms folded into convolutions, and every node named.

    Files from before operator set 13 are converted by onnx; norms are folded by ONNX Runtime; weights that a file turns
    or casts before products read them are held as they are read.

    Raises:
        BadInput: it is quantized already or of half precision, or its operator set cannot be converted.
    """
    _check_floats(proto)
    made = ModelProto()
    made.CopyFrom(proto)
    _lift(made)
    if opset_of(made) < LEAST_OPSET:
        made = in_opset(made, LEAST_OPSET, "int8", "scales by channel", "export the model anew with a later one")
        _lift(made)
    if any(node.op_type == "BatchNormalization" for node in made.graph.node):
        made = _folded(made)
        _lift(made)
    _take_moved(made)
    _name_nodes(made)
    return made


def wiring_of(proto: ModelProto) -> Wiring:
    """Return who makes and reads what in a prepared graph.

    Raises:
        BadInput: the types of its values cannot be inferred.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception as fault:
        raise BadInput(f"int8: shape inference fails on the graph: {str(fault).splitlines()[0]}") from fault
    values = (*graph.value_info, *graph.input, *graph.output)
    floats = {one.name for one in values if one.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {one.name for one in proto.graph.initializer if one.data_type == TensorProto.FLOAT}
    return Wiring(proto.graph, floats)


def _check_floats(proto: ModelProto) -> None:
    done = next((node for node in nodes_of(proto.graph) if node.op_type in _QUANTIZED), None)
    if done is not None:
        raise BadInput(f"int8: the file is quantized already ({done.op_type} {done.name or done.output[0]!r}); give the fp32 file it was made of")  # fmt: skip # noqa: E501
    if holds_halves(proto):
        raise BadInput("int8: the file is of half precision; quantize the fp32 file it was made of")


def _lift(proto: ModelProto) -> None:
    """Make initializers of constants that are nodes, and of weights no inputs, in place."""
    graph = proto.graph
    nodes: list[NodeProto] = []
    for node in graph.node:
        tensor = constant_of(node)
        if tensor is None:
            nodes.append(node)
        else:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
    del graph.node[:]
    graph.node.extend(nodes)
    known = {one.name for one in graph.initializer}
    inputs = [value for value in graph.input if value.name not in known]
    del graph.input[:]
    graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, 7)


def _take_moved(proto: ModelProto) -> None:
    """Hold weights as products read them, in place, where a file turns or casts them first, once for every run."""
    graph = proto.graph
    held = {one.name: one for one in graph.initializer}
    read = {node.input[1] for node in graph.node if node.op_type in ("MatMul", "Gemm") and len(node.input) > 1}
    outputs = {value.name for value in graph.output}
    made: dict[str, TensorProto] = {}
    for node in graph.node:
        tensor = held.get(node.input[0]) if node.op_type in _MOVES and node.domain in ("", "ai.onnx") else None
        if tensor is not None and node.output[0] not in outputs:
            held[node.output[0]] = made[node.output[0]] = _moved(node, tensor)
    wanted = [node for node in graph.node if node.output[0] in made and node.output[0] in read]
    for node in wanted:
        graph.node.remove(node)
        graph.initializer.add().CopyFrom(made[node.output[0]])
    for node in [node for node in reversed(graph.node) if node.output[0] in made]:
        if not any(node.output[0] in (*other.input, *inner_names(other)) for other in graph.node):
            graph.node.remove(node)


def _moved(node: NodeProto, tensor: TensorProto) -> TensorProto:
    from onnx.reference import ReferenceEvaluator

    (values,) = ReferenceEvaluator(node).run(None, {node.input[0]: numpy_helper.to_array(tensor)})
    return numpy_helper.from_array(np.ascontiguousarray(values), node.output[0])


def in_opset(proto: ModelProto, opset: int, scheme: str, scales: str, remedy: str) -> ModelProto:
    """Return the graph in a later operator set.

    Args:
        proto: the graph.
        opset: that it is to have.
        scheme: that wants it, for the message.
        scales: what of the scheme it is that needs it.
        remedy: what the user may do.

    Raises:
        BadInput: onnx cannot convert it.
    """
    try:
        made: ModelProto = version_converter.convert_version(proto, opset)
    except Exception as fault:
        said = next((line for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        raise BadInput(
            f"{scheme}: operator set {opset_of(proto)} cannot be brought to {opset}, which {scales} need: {said}; "
            f"{remedy}"
        ) from fault
    return made


def _folded(proto: ModelProto) -> ModelProto:
    """Let ONNX Runtime fold what it folds without leaving ONNX's own operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "given.onnx"), Path(folder, "folded.onnx")
        onnx.save(proto, source)
        options.optimized_model_filepath = str(made)
        try:
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as fault:
            raise BadInput(f"int8: ONNX Runtime cannot open the file: {str(fault).splitlines()[0]}") from fault
        found = onnx.load(made)
    used = {node.domain for node in nodes_of(found.graph)} | {"", "ai.onnx"}
    kept = [one for one in found.opset_import if one.domain in used]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    del found.graph.value_info[:]
    return found


def _name_nodes(proto: ModelProto) -> None:
    seen: set[str] = set()
    for index, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
            while node.name in seen:
                node.name += "_"
        seen.add(node.name)
