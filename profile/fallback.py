"""Why ONNX Runtime left an operator in float: by the Q/DQ nodes around it in the optimized graph. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .ort_graph import Graph, Node

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
EDGES = (QUANTIZE, DEQUANTIZE)

_FUSED = frozenset({"Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "NhwcConv", "NhwcFusedConv"})
"""What ONNX Runtime has an integer operator for, if the pairs around it are right; convolutions need them behind."""

_LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
_ZERO_POINT = 2


@dataclass(frozen=True)
class Surroundings:
    """The nodes of a graph by the values that they make and take."""

    makers: Mapping[str, Node]
    users: Mapping[str, Sequence[Node]]

    @classmethod
    def of(cls, graph: Graph) -> Surroundings:
        """Look at all nodes, those inside others too."""
        nodes = (*graph.main, *graph.inner)
        users: dict[str, list[Node]] = {}
        for node in nodes:
            for name in filter(None, node.inputs):
                users.setdefault(name, []).append(node)
        return cls({name: node for node in nodes for name in node.outputs}, users)

    def maker(self, name: str) -> Node | None:
        """Return what makes a value, behind changes of its layout."""
        node = self.makers.get(name)
        while node is not None and node.operator in _LAYOUT:
            node = self.makers.get(node.inputs[0])
        return node

    def takers(self, name: str) -> list[Node]:
        """Return what takes a value, behind changes of its layout; nothing for an output of the graph."""
        found = []
        for node in self.users.get(name, ()):
            found += self.takers(node.outputs[0]) if node.operator in _LAYOUT else [node]
        return found

    def edges(self, nodes: Sequence[Node]) -> int:
        """Count the pairs' halves that turn the graph's own inputs and outputs from and to float."""
        return sum(
            (node.operator == QUANTIZE and self.maker(node.inputs[0]) is None)
            or (node.operator == DEQUANTIZE and not self.users.get(node.outputs[0]))
            for node in nodes
        )


def reason(node: Node | None, around: Surroundings) -> str:
    """Say why a product stayed in float; the first cause that holds.

    Args:
        node: of the optimized graph; None where the trace could not be matched with it.
        around: of that graph.
    """
    if node is None:
        return "its place in the graph is not known"
    if node.operator not in _FUSED:
        return f"ONNX Runtime has no integer operator for {node.operator} between Q/DQ pairs"
    return _inputs(node, around) or _outputs(node, around) or _types(node, around) or _left(node)


def unfused(nodes: Sequence[Node], around: Surroundings) -> tuple[str, ...]:
    """Return the operators in float that have a DequantizeLinear before and a QuantizeLinear behind them."""
    return tuple(
        f"{node.operator} {node.name}".strip()
        for node in nodes
        if node.operator not in EDGES
        and any(_is(around.maker(name), DEQUANTIZE) for name in node.inputs if name)
        and any(_is(user, QUANTIZE) for name in node.outputs for user in around.takers(name))
    )


def _inputs(node: Node, around: Surroundings) -> str:
    for name in node.inputs[:2]:
        maker = around.maker(name)
        if _is(maker, DEQUANTIZE):
            continue
        if name in node.constants:
            return "its weight is not quantized"
        return f"no Q/DQ at its input{f', which {maker.operator} makes' if maker else ''}"
    return ""


def _outputs(node: Node, around: Surroundings) -> str:
    if not node.operator.endswith("Conv"):
        return ""
    users = around.takers(node.outputs[0])
    other = next((user for user in users if user.operator != QUANTIZE), None)
    if other is not None:
        return f"its output is not quantized before {other.operator}"
    return "" if users else "its output is not quantized"


def _types(node: Node, around: Surroundings) -> str:
    """Compare the integers before and behind: ONNX Runtime fuses only equal ones."""
    maker = around.maker(node.inputs[0])
    users = around.takers(node.outputs[0])
    before, behind = (_zero_point(one) for one in (maker, users[0] if users else None))
    if before and behind and before != behind:
        return f"its input is {before} and its output {behind}, where ONNX Runtime wants one type"
    return ""


def _left(node: Node) -> str:
    return f"ONNX Runtime did not fuse the Q/DQ pairs around this {node.operator}"


def _zero_point(node: Node | None) -> str:
    """Return the integer type of a Q or a DQ by its zero point, an empty text where it is not known."""
    if node is None or node.operator not in EDGES or len(node.inputs) <= _ZERO_POINT:
        return ""
    constant = node.constants.get(node.inputs[_ZERO_POINT])
    return constant.dtype if constant else ""


def _is(node: Node | None, operator: str) -> bool:
    return node is not None and node.operator == operator
