"""Faults of ONNX Runtime that would end this process, found before a file is opened."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import BadPlan
from .ort_graph import Node, read_graph
from .ort_session import Device

_X86 = ("x86_64", "AMD64")
_HALF = frozenset({"float16", "bfloat16"})


def refuse_crash(ort: Any, path: Path, device: Device) -> None:
    """Refuse what ONNX Runtime up to 1.32 dies of on an x86 CPU (microsoft/onnxruntime, issue 28392).

    That is a half-precision value whose first dimension is moved to the last two and that goes into a product with a
    matrix, directly or through a cast: a null pointer in the fusion of transposes into products.

    Raises:
        BadPlan: the file has such a product.
    """
    if device.on_gpu or platform.machine() not in _X86:
        return
    try:
        graph = read_graph(path)
    except Exception:  # damaged, or not in ONNX's format: whoever opens it says so, or can read it
        return
    product = crashing_product(graph.main) if graph else None
    if product is not None:
        raise BadPlan(
            f"{path}: ONNX Runtime {ort.__version__} dies when it opens this file on an x86 CPU: the product "
            f"{product!r} reads a half-precision value whose batch was transposed (its issue 28392); give the fp32 "
            "file to CPUs, or export the model anew with shipworthy, which writes the transposition after the product"
        )


def crashing_product(nodes: Sequence[Node]) -> str | None:
    """Return the name of the first product that ONNX Runtime's optimizer dies of."""
    constants = nodes[0].constants if nodes else {}
    matrices = {name for name, held in constants.items() if len(held.shape) == 2}
    moved: set[str] = set()
    half = any(held.dtype in _HALF for held in constants.values())
    for node in nodes if half else ():
        if (node.operator == "Transpose" and _moves_batch(node)) or (
            node.operator == "Cast" and node.inputs[0] in moved
        ):
            moved.add(node.outputs[0])
        reads = set(node.inputs)
        if node.operator == "MatMul" and reads & moved and reads & matrices:
            return node.name or node.outputs[0]
    return None


def _moves_batch(node: Node) -> bool:
    """Whether the first of three or more dimensions goes to the last two, and the others keep their order."""
    order = list(node.attributes.get("perm", ()))
    rest = [axis for axis in order if axis]
    return len(order) > 2 and 0 in order[-2:] and rest == sorted(rest)
