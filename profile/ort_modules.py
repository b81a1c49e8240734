"""Which module of the user's a node of ONNX Runtime's graph is: by the names of weights, which exporters keep."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .ort_graph import BLOCKED, BLOCKED_SUFFIX, Graph, Node

_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_FUSED = frozenset({"Add", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Tanh"})
_STEPS = 4


def producers(origin: Graph | None) -> dict[str, Node]:
    """Return the node of the user's own file that makes each value."""
    return {name: node for node in (origin.main if origin else ()) for name in node.outputs}


def module_of(node: Node | None, made_by: Mapping[str, Node]) -> str:
    """Return the path of the module whose weights a node has, such as `layer1.0.conv1`, or an empty text.

    A convolution in blocked layout has weights under new names; it is named after the value that it makes, and the file
    tells which convolution that value comes from, behind what has been fused.

    Args:
        node: of the optimized graph.
        made_by: see `producers`.
    """
    if node is None:
        return ""
    found = _path(node)
    if found or node.domain != BLOCKED or node.operator != "Conv":
        return found
    value = node.name.removesuffix(BLOCKED_SUFFIX)
    for _ in range(_STEPS):
        source = made_by.get(value)
        if source is None or _path(source) or source.operator not in _FUSED:
            return "" if source is None else _path(source)
        value = source.inputs[0]
    return ""


def _path(node: Node) -> str:
    weights = (name for name in node.inputs if name in node.constants and _PATH.fullmatch(name))
    return next(weights, "").rpartition(".")[0]
