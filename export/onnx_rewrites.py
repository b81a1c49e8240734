"""Write what a target's parser refuses in a form that all take."""

from __future__ import annotations

import string
from collections.abc import Sequence

from onnx import GraphProto, NodeProto, helper

from .typed_nodes import captured


def lower_case_einsums(graph: GraphProto) -> None:
    """Write labels of sums in lower case, in place: TensorRT's parser knows no others.

    A label in upper case becomes a free one in lower case; more than 26 labels stay as they are.
    """
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Einsum" and attribute.name == "equation":
                attribute.s = _lower(attribute.s.decode()).encode()


def _lower(equation: str) -> str:
    used = {letter for letter in equation if letter.isalpha()}
    free = [letter for letter in string.ascii_lowercase if letter not in used]
    upper = sorted(letter for letter in used if letter.isupper())
    if len(upper) > len(free):
        return equation
    return equation.translate({ord(old): new for old, new in zip(upper, free, strict=False)})


def hard_swish_apart(graph: GraphProto) -> None:
    """Write HardSwish as a product with HardSigmoid, in place: TensorRT takes no bf16 in the former."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "HardSwish":
            gate = f"{node.output[0]}_gate"
            nodes.append(helper.make_node("HardSigmoid", [node.input[0]], [gate], f"{node.name}_gate", alpha=1 / 6))
            nodes.append(helper.make_node("Mul", [node.input[0], gate], [node.output[0]], node.name))
            for made in nodes[-2:]:
                made.metadata_props.extend(node.metadata_props)
        else:
            nodes.append(node)
    _replace(graph, nodes)


def transposes_after_products(graph: GraphProto) -> None:
    """Multiply by a matrix of weights first and swap dimensions after it, in place; the values are the same.

    ONNX Runtime up to 1.32 dies of a null pointer on an x86 CPU when a half-precision value whose first dimension was
    moved to the last but one goes into a product with a matrix (microsoft/onnxruntime, issue 28392).
    """
    matrices = {one.name for one in graph.initializer if len(one.dims) == 2}
    made = {node.output[0]: node for node in graph.node if node.op_type == "Transpose"}
    nodes: list[NodeProto] = []
    for node in graph.node:
        before = made.get(node.input[0]) if node.op_type == "MatMul" and node.input[1] in matrices else None
        order = list(before.attribute[0].ints) if before is not None and before.attribute else []
        if before is None or not moves_batch(order) or order[-1] != len(order) - 1:
            nodes.append(node)
            continue
        product = f"{node.output[0]}_before_transpose"
        nodes.append(helper.make_node("MatMul", [before.input[0], node.input[1]], [product], node.name))
        nodes.append(helper.make_node("Transpose", [product], node.output, f"{node.name}_transpose", perm=order))
        for new in nodes[-2:]:
            new.metadata_props.extend(node.metadata_props)
    _replace(graph, nodes)


def moves_batch(order: Sequence[int]) -> bool:
    """Whether a transposition takes the first of three or more dimensions to the last two and keeps the others."""
    rest = [axis for axis in order if axis]
    return len(order) > 2 and 0 in order[-2:] and rest == sorted(rest)


def _replace(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Put nodes in place of all, without transpositions that nobody reads any more."""
    read = {name for node in nodes for name in (*node.input, *captured(node))}
    read.update(value.name for value in graph.output)
    kept = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
