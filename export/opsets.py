"""Which operator sets can be written, and which a target reads; torch-free."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..models.errors import BadInput

if TYPE_CHECKING:
    from .artifact import Precision, Target

OPSETS = range(18, 26)
"""The exporter writes 18 and converts upwards; above 25 onnx's own converter would, which knows fewer operators."""
USUAL_OPSET = 20
LEAST: dict[str, int] = {"bf16": 22}
"""Convolution and pooling take bf16 from opset 22 on."""
MOST_IN_TENSORRT = 25
"""Of TensorRT 11.5 and TensorRT for RTX 1.7: NVIDIA's ONNX opset guide."""


def chosen_opset(opset: int | None, precision: Precision, target: Target) -> int:
    """Return the opset to write: the one asked for, or the usual one of a precision.

    Raises:
        BadInput: it cannot be written, lacks the precision, or the target does not read it.
    """
    least = LEAST.get(precision, OPSETS.start)
    if opset is None:
        return max(USUAL_OPSET, least)
    if opset not in OPSETS:
        raise BadInput(f"opset {opset}: choose {OPSETS.start} to {OPSETS.stop - 1}")
    if opset < least:
        raise BadInput(f"opset {opset}: {precision} needs {least} or more, as convolutions take it from there on")
    most = MOST_IN_TENSORRT if target == "tensorrt" else most_in_onnxruntime()
    if opset > most:
        reader = "TensorRT" if target == "tensorrt" else "the installed ONNX Runtime"
        raise BadInput(f"opset {opset}: {reader} reads up to {most}; choose one of {least} to {most}")
    return opset


@cache
def most_in_onnxruntime() -> int:
    """Return the largest opset that the installed ONNX Runtime reads, found by giving it an empty model of each."""
    return max((opset for opset in OPSETS if _is_read(opset)), default=0)


def _is_read(opset: int) -> bool:
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime's own, which has no public class: it reads no such opset
        return False
    return True


__all__ = ["OPSETS", "chosen_opset", "most_in_onnxruntime"]
