"""Write a model as a typed ONNX file: the precision is in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from ..models.errors import BadInput, ToolFailed
from ..models.graph import argument, aten, shape_of
from ..models.model import Model, Quantization
from ..models.quiet import quiet
from .artifact import OnnxArtifact, Precision, Target
from .constants import fold_constants
from .islands import KeepFp32, choose
from .onnx_clean import check, clean
from .onnx_graph import OnnxGraph, from_exporter, size_of
from .onnx_metadata import Notes, tools, write_metadata
from .onnx_rewrites import hard_swish_apart
from .onnx_sparsity import write_sparsity
from .onnx_store import MOST_BYTES, store
from .opsets import OPSETS, chosen_opset
from .typed import Low, opset_of, to_typed

EXAMPLES = 16
"""So many of the calibration examples show which values a low precision cannot hold."""


@dataclass(frozen=True)
class OnnxSettings:
    """How a file is written, beyond its precision.

    Attributes:
        keep_fp32: what stays in fp32 in a file of lower precision. `auto` compares with the model in fp32 and keeps
            what it must; patterns (`Softmax`, `encoder.layers.*`, `Add_12`) name operator types, module paths or
            nodes; `none` keeps only what takes constants that the type cannot hold.
        keep_io_types: inputs and outputs stay fp32; otherwise they are of the lower type.
        most_bytes: above this the weights go to a second file.
        notes: what is said of the file in its properties.
    """

    keep_fp32: KeepFp32 = "auto"
    keep_io_types: bool = True
    most_bytes: int = MOST_BYTES
    notes: Notes = Notes()  # noqa: RUF009 (frozen)


def to_onnx(  # noqa: PLR0913 (each is given by its name)
    model: Model,
    path: str | Path,
    precision: Precision | None = None,
    target: Target = "cpu",
    opset: int | None = None,
    calibration: Tensor | None = None,
    settings: OnnxSettings = OnnxSettings(),
) -> OnnxArtifact:
    """Export a model; the same model gives the same bytes.

    Weights above 2 GB go to a second file beside it, `<name>.<hash>.data`.

    Args:
        model: what to export.
        path: where to; written whole or not at all.
        precision: `fp32`; `fp16` or `bf16`, all that can be is of that type; `mixed`, fp16 with sums of many, norms,
            powers and exponentials in fp32; or `int8`. None: int8 for a model that went through the quantize pass,
            fp32 otherwise.
        target: for int8, the family of runtimes that the file is laid out for; the opset must be one that it reads.
        opset: 18 to 25; None: 20, and 22 for bf16.
        calibration: examples of the first input, `(count, ...)`: for int8 without the quantize pass, and for lower
            precisions to see which values they cannot hold.
        settings: what stays in fp32, and how the file is written.

    Returns:
        The file with its hash.

    Raises:
        BadInput: an unknown precision or target, an opset out of range or that the target does not read, a pattern
            that fits nothing, or calibration for int8 that is missing or does not fit the model.
        ToolFailed: the exporter or the ONNX checker refused the model.
    """
    precision = precision or ("int8" if model.quantization else "fp32")
    _check_choices(precision, target)
    number = chosen_opset(opset, precision, target)
    quantization = _calibrated(model, calibration) if precision == "int8" else None
    graph = float_graph(model, number)
    if quantization is not None:
        graph = _in_int8(graph, quantization, target)
    elif precision != "fp32":
        graph = _in_low(graph, precision, settings, _examples(model, calibration))
    return write_onnx(graph, Path(path), model, precision, target, settings)


def write_onnx(
    graph: OnnxGraph | ModelProto,
    path: Path,
    model: Model,
    precision: Precision,
    target: Target,
    settings: OnnxSettings = OnnxSettings(),
) -> OnnxArtifact:
    """Check a finished graph and write it, with what is known of it in its properties.

    Raises:
        ToolFailed: the ONNX checker refuses the graph.
        BadInput: the file cannot be written.
    """
    graph = graph if isinstance(graph, OnnxGraph) else OnnxGraph(graph)
    write_sparsity(graph.proto, model.sparsity)
    write_metadata(graph, model, precision, target, settings.notes)
    try:
        check(graph.light())
    except Exception as fault:
        raise ToolFailed(f"the ONNX checker refuses the exported graph: {fault}") from fault
    stored = store(graph, path, settings.most_bytes)
    return OnnxArtifact(
        path, stored.sha256, stored.bytes, opset_of(graph.proto), precision, target, model.inputs, model.outputs,
        tools(), tuple(sorted(graph.fp32_nodes)),
    )  # fmt: skip


def float_graph(model: Model, opset: int) -> OnnxGraph:
    """Return the model as a clean graph in fp32.

    Raises:
        ToolFailed: the exporter refused it.
    """
    names: dict[str, Any] = {
        "input_names": [spec.name for spec in model.inputs],
        "output_names": [spec.name for spec in model.outputs],
    }
    try:
        with quiet():
            program = torch.onnx.export(
                for_exporter(fold_constants(model)).export(), dynamo=True, opset_version=opset, verbose=False, **names
            )
    except Exception as fault:
        raise ToolFailed(f"the ONNX exporter failed: {str(fault).splitlines()[0]}") from fault
    if program is None:
        raise ToolFailed("the ONNX exporter gave no program")
    graph = from_exporter(program.model)
    clean(graph.proto, model.inputs, model.outputs)
    return graph


def for_exporter(model: Model) -> Model:
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


def _check_choices(precision: str, target: str) -> None:
    for what, given, known in (("precision", precision, get_args(Precision)), ("target", target, get_args(Target))):
        if given not in known:
            raise BadInput(f"{what} {given!r}: choose one of {', '.join(known)}")


def _calibrated(model: Model, calibration: Tensor | None) -> Quantization:
    given = model.quantization or Quantization("int8", "minmax", ())
    if calibration is not None:
        given = replace(given, calibration=(calibration,))
    if not given.calibration:
        raise BadInput("int8 needs calibration: put the model through Quantize first, or give calibration=examples")
    shapes = [tuple(examples.shape) for examples in given.calibration]
    wanted = [spec.shape for spec in model.inputs]
    if 0 in (shape[0] for shape in shapes) or len(shapes) != len(wanted) or not all(map(_fits, shapes, wanted)):
        raise BadInput(
            f"the calibration examples have shapes {shapes}, the model's inputs {wanted}; give some for each"
        )
    return given


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    """Whether examples are of a shape, apart from their number and dimensions that may vary."""
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(shape[1:], wanted[1:], strict=True)
    )


def _examples(model: Model, calibration: Tensor | None) -> dict[str, np.ndarray[Any, Any]]:
    """Return inputs that values are looked at on: those given, or the model's own, with noise for empty ones."""
    given = model.example_inputs
    if calibration is not None:
        given = (calibration[:EXAMPLES], *given[1:])
    elif model.quantization is not None and model.quantization.calibration:
        given = tuple(x[:EXAMPLES] for x in model.quantization.calibration)
    draw = torch.Generator().manual_seed(0)
    shown = [
        torch.randn(x.shape, generator=draw).to(x.dtype) if x.is_floating_point() and not x.any() else x for x in given
    ]
    return {spec.name: x.detach().cpu().numpy() for spec, x in zip(model.inputs, shown, strict=True)}


def _in_low(
    graph: OnnxGraph, precision: Precision, settings: OnnxSettings, examples: Mapping[str, np.ndarray[Any, Any]]
) -> OnnxGraph:
    low: Low = "bf16" if precision == "bf16" else "fp16"
    if low == "bf16":
        hard_swish_apart(graph.proto.graph)
    with quiet():
        kept = choose(graph, low, settings.keep_fp32, examples, precision == "mixed")
        return replace(to_typed(graph, low, kept.nodes, settings.keep_io_types), fp32_nodes=kept.nodes)


def _in_int8(graph: OnnxGraph, quantization: Quantization, target: Target) -> OnnxGraph:
    total = sum(map(size_of, graph.proto.graph.initializer))
    if total > MOST_BYTES:
        raise BadInput(f"int8 of {total / 1e9:.1f} GB of fp32 weights: at most 2 GB; choose fp16 or bf16")
    from .int8 import to_int8

    return OnnxGraph(to_int8(graph.filled(), quantization, target))


__all__ = ["OPSETS", "OnnxSettings", "float_graph", "to_onnx", "write_onnx"]
