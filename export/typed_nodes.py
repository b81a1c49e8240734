"""What operators are to precision: which of their inputs and outputs can be of a type, and which are delicate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, defs

LOW: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""The half-precision types, by the names that users write."""

HALVES = frozenset(LOW.values())

_TYPE_TEXT: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}

_MOVES = """
    Identity Reshape Transpose Flatten Squeeze Unsqueeze Slice Split Concat Gather GatherND GatherElements Expand Tile
    Pad DepthToSpace SpaceToDepth Dropout Where Relu MaxPool GlobalMaxPool Neg Abs Max Min ReduceMax ReduceMin
    ScatterND ScatterElements Shape Size Trilu"""
MOVES = frozenset(_MOVES.split())
"""Operators that round nothing: each value that comes out went in."""

_CHEAP = "Add Sub Mul Div Clip Sigmoid Tanh Erf Sqrt Cast"
JOINS = MOVES | frozenset(_CHEAP.split())
"""Operators that are cheaper in fp32 between two others in fp32 than the casts around them."""

_SENSITIVE = """
    Softmax LogSoftmax LayerNormalization InstanceNormalization GroupNormalization RMSNormalization BatchNormalization
    LpNormalization MeanVarianceNormalization Exp Log Pow Sqrt Reciprocal Softplus CumSum ReduceSum ReduceMean
    ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp ReduceProd GlobalAveragePool"""
SENSITIVE = frozenset(_SENSITIVE.split())
"""Operators that overflow or lose digits in half precision: sums of many, powers and exponentials."""

TYPED_BY = {"Cast": "to", "RandomNormal": "dtype", "RandomUniform": "dtype", "EyeLike": "dtype", "ConstantOfShape": "value"}  # fmt: skip # noqa: E501
"""Operators whose result is of the type that an attribute names."""


@dataclass(frozen=True)
class Slots:
    """The positions of a node's inputs and outputs that can be of a low type."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


NONE = Slots((), ())


def slots(node: NodeProto, types: Mapping[str, int], low: int, opset: int) -> Slots:
    """Return what of a node's fp32 inputs and outputs can be of type `low` by the operator's definition.

    Args:
        node: of the default domain or another.
        types: element type of each value.
        low: an element type of `HALVES`.
        opset: of the default domain.
    """
    if node.domain not in ("", "ai.onnx") or subgraphs(node):
        return NONE
    schema = defs.get_schema(node.op_type, opset, "")
    allowed = {one.type_param_str: _TYPE_TEXT[low] in one.allowed_type_strs for one in schema.type_constraints}
    wanted = [_parameter(schema.inputs, at).type_str for at in range(len(node.input))]
    given = [_parameter(schema.outputs, at).type_str for at in range(len(node.output))]
    inputs = tuple(
        at
        for at, name in enumerate(node.input)
        if types.get(name) == TensorProto.FLOAT and allowed.get(wanted[at], False)
    )
    follows = {wanted[at] for at in inputs}
    if node.op_type in TYPED_BY:
        follows = set(given)
    outputs = tuple(
        at
        for at, name in enumerate(node.output)
        if types.get(name) == TensorProto.FLOAT and given[at] in follows and allowed.get(given[at], False)
    )
    bound = {given[at] for at, name in enumerate(node.output) if types.get(name) == TensorProto.FLOAT}
    if any(wanted[at] in bound and wanted[at] not in {given[o] for o in outputs} for at in inputs):
        return NONE
    return Slots(inputs, outputs)


def _parameter(parameters: Sequence[defs.OpSchema.FormalParameter], at: int) -> defs.OpSchema.FormalParameter:
    """Return the definition of the input or output at a position; the last one may stand for many."""
    return parameters[min(at, len(parameters) - 1)]


def subgraphs(node: NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node: bodies of loops and branches."""
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def captured(node: NodeProto) -> set[str]:
    """Return the names that a node's inner graphs use, from outside or their own."""
    names: set[str] = set()
    for graph in subgraphs(node):
        for inner in graph.node:
            names |= set(inner.input) | captured(inner)
        names |= {value.name for value in graph.output}
    return names
