"""Write a model as a typed ONNX file: the precision is in the graph."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx_ir
import torch
from onnx import ModelProto
from onnx_ir.passes.common import TopologicalSortPass
from torch import Tensor

from ..models.errors import BadInput, ToolFailed
from ..models.files import replacing, sha256_of
from ..models.graph import argument, aten, shape_of
from ..models.model import Model, Quantization
from ..models.quiet import quiet
from .artifact import OnnxArtifact, Precision, Target
from .constants import fold_constants
from .onnx_clean import check, clean
from .onnx_sparsity import write_sparsity

OPSETS = range(18, 24)


def to_onnx(
    model: Model,
    path: str | Path,
    precision: Precision | None = None,
    target: Target = "cpu",
    opset: int = 20,
    calibration: Tensor | None = None,
) -> OnnxArtifact:
    """Export a model; the same model gives the same bytes.

    Args:
        model: what to export.
        path: where to; written whole or not at all.
        precision: `fp32`, `fp16` (inputs and outputs stay as they are) or `int8`. None: int8 for a model that went
            through the quantize pass, fp32 otherwise.
        target: for int8, the family of runtimes that the file is laid out for.
        opset: 18 to 23.
        calibration: for int8 without the quantize pass, examples of the first input, `(count, ...)`.

    Returns:
        The file with its hash.

    Raises:
        BadInput: an unknown precision or target, an opset out of range, or calibration for int8 that is missing or
            does not fit the model.
        ToolFailed: the exporter or the ONNX checker refused the model.
    """
    precision = precision or ("int8" if model.quantization else "fp32")
    _check_choices(precision, target, opset)
    quantization = _calibrated(model, calibration) if precision == "int8" else None
    proto = _in_precision(_float_proto(model, opset), precision, target, quantization)
    return write_onnx(proto, Path(path), model, precision, target)


def write_onnx(proto: ModelProto, path: Path, model: Model, precision: Precision, target: Target) -> OnnxArtifact:
    """Check a finished graph and write it; the patterns of sparse weights go into its metadata."""
    write_sparsity(proto, model.sparsity)
    try:
        check(proto)
    except Exception as fault:
        raise ToolFailed(f"the ONNX checker refuses the exported graph: {fault}") from fault
    with replacing(path) as beside:
        beside.write_bytes(proto.SerializeToString(deterministic=True))
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    tools = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    return OnnxArtifact(path, sha256_of(path), path.stat().st_size, opset, precision, target, model.inputs, model.outputs, tools)  # fmt: skip # noqa: E501


def _float_proto(model: Model, opset: int) -> ModelProto:
    names: dict[str, Any] = {
        "input_names": [spec.name for spec in model.inputs],
        "output_names": [spec.name for spec in model.outputs],
    }
    try:
        with quiet():
            program = torch.onnx.export(
                _for_exporter(fold_constants(model)).export(), dynamo=True, opset_version=opset, verbose=False, **names
            )
    except Exception as fault:
        raise ToolFailed(f"the ONNX exporter failed: {str(fault).splitlines()[0]}") from fault
    if program is None:
        raise ToolFailed("the ONNX exporter gave no program")
    return clean(program.model_proto, model.inputs, model.outputs)


def _for_exporter(model: Model) -> Model:
    """Return the model with attention as the exporter takes it: of four dimensions, its result laid out anew.

    The exporter takes attention apart, and its parts lay their result out otherwise: what could be viewed cannot.
    """
    attention = aten.scaled_dot_product_attention.default
    if not any(node.target is attention for node in model.module.graph.nodes):
        return model
    made = model.copy()
    graph = made.module.graph
    for node in [node for node in graph.nodes if node.target is attention]:
        shape = shape_of(node) or ()
        wide = len(shape) > 4 and argument(node, "attn_mask") is None
        if wide:
            with graph.inserting_before(node):
                flat = [graph.call_function(aten.flatten.using_ints, (x, 0, len(shape) - 4)) for x in node.args[:3]]
            node.args = (*flat, *node.args[3:])
        with graph.inserting_after(node):
            plain: dict[str, Any] = {"memory_format": torch.contiguous_format}
            anew = graph.call_function(aten.clone.default, (node,), plain)
        made_whole = anew
        if wide:
            with graph.inserting_after(anew):
                made_whole = graph.call_function(aten.reshape.default, (anew, [-1, *shape[1:]]))
        node.replace_all_uses_with(made_whole, delete_user_cb=lambda user, anew=anew: user is not anew)
    made.module.recompile()
    return made


def _check_choices(precision: str, target: str, opset: int) -> None:
    for what, given, known in (("precision", precision, get_args(Precision)), ("target", target, get_args(Target))):
        if given not in known:
            raise BadInput(f"{what} {given!r}: choose one of {', '.join(known)}")
    if opset not in OPSETS:
        raise BadInput(f"opset {opset}: choose {OPSETS.start} to {OPSETS.stop - 1}")


def _calibrated(model: Model, calibration: Tensor | None) -> Quantization:
    given = model.quantization or Quantization("int8", "minmax", ())
    if calibration is not None:
        given = replace(given, calibration=(calibration,))
    if not given.calibration:
        raise BadInput("int8 needs calibration: put the model through Quantize first, or give calibration=examples")
    shapes = [tuple(examples.shape) for examples in given.calibration]
    wanted = [spec.shape for spec in model.inputs]
    if 0 in (shape[0] for shape in shapes) or [shape[1:] for shape in shapes] != [shape[1:] for shape in wanted]:
        raise BadInput(
            f"the calibration examples have shapes {shapes}, the model's inputs {wanted}; give some for each"
        )
    return given


def _in_precision(
    proto: ModelProto, precision: Precision, target: Target, quantization: Quantization | None
) -> ModelProto:
    if precision == "fp32":
        return proto
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every weight too small for fp16, which parity judges
            half: ModelProto = convert_float_to_float16(onnx.shape_inference.infer_shapes(proto), keep_io_types=True)
        return _sorted(half)
    if quantization is None:
        raise ValueError("int8 without a quantization")
    from .int8 import to_int8

    return to_int8(proto, quantization, target)


def _sorted(proto: ModelProto) -> ModelProto:
    """Put nodes in the order of their dependencies: the fp16 converter appends its casts at the end."""
    graph = onnx_ir.from_proto(proto)
    TopologicalSortPass()(graph)
    made: ModelProto = onnx_ir.to_proto(graph)
    del made.graph.value_info[:]
    return made
