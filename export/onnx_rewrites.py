"""Write what a target's parser refuses in a form that all take."""

from __future__ import annotations

import string

from onnx import GraphProto, NodeProto, helper


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
    del graph.node[:]
    graph.node.extend(nodes)
