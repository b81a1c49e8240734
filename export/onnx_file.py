"""Write a model as a typed ONNX file: the precision is in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from ..models.errors import BadInput, ToolFailed
from ..models.model import Model, Quantization
from ..models.quiet import quiet
from ..models.schemes import QUANTIZED, WEIGHTS_ALONE, Scheme, precision_of
from .artifact import OnnxArtifact, Precision, Target
from .int8 import Known, in_parts, settings_of
from .islands import KeepFp32, choose
from .onnx_clean import check
from .onnx_graph import OnnxGraph, size_of
from .onnx_metadata import Notes, tools, write_metadata
from .onnx_rewrites import hard_swish_apart, transposes_after_products
from .onnx_sparsity import write_sparsity
from .onnx_store import MOST_BYTES, store
from .opsets import OPSETS, chosen_opset
from .qat_scales import graph_with_grids
from .quant_schemes import quantized
from .quant_weights import LEAST_OPSET
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
    calibration: Tensor | tuple[Tensor, ...] | None = None,
    settings: OnnxSettings = OnnxSettings(),
) -> OnnxArtifact:
    """Export a model; the same model gives the same bytes.

    Weights above 2 GB go to a second file beside it, `<name>.<hash>.data`.

    Args:
        model: what to export.
        path: where to; written whole or not at all.
        precision: `fp32`; `fp16` or `bf16`, all that can be is of that type; `mixed`, fp16 with sums of many, norms,
            powers and exponentials in fp32; `int8`; or `int8-weights` or `int4-weights`, fp32 but for large weights of
            linear layers. None: that of its scheme for a model that went through the quantize pass, fp32 otherwise.
        target: of integers, the family of runtimes that the file is laid out for; the opset must be one that it reads.
        opset: 18 to 25; None: 20, and 22 for bf16. Weights alone in integers take 21 at least.
        calibration: examples `(count, ...)` of each input, or of the first: for int8 without the quantize pass, and
            for lower precisions to see which values they cannot hold.
        settings: what stays in fp32, and how the file is written.

    Returns:
        The file with its hash.

    Raises:
        BadInput: an unknown precision or target, an opset out of range or that the target does not read, a pattern
            that fits nothing, calibration for int8 that is missing or does not fit the model, or integers other than
            the model's quantize pass asks for.
        ToolFailed: the exporter or the ONNX checker refused the model.
    """
    precision = precision or _own_precision(model) or "fp32"
    _check_choices(precision, target)
    number = chosen_opset(opset, precision, target)
    given = () if calibration is None else calibration if isinstance(calibration, tuple) else (calibration,)
    asked = _asked(model, precision, given) if precision in QUANTIZED else None
    graph, known = graph_with_grids(model, max(number, LEAST_OPSET) if precision in WEIGHTS_ALONE else number)
    if asked is not None:
        graph = _in_integers(graph, asked, target, known)
    elif precision != "fp32":
        graph = _in_low(graph, precision, settings, _examples(model, given))
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


def _check_choices(precision: str, target: str) -> None:
    for what, given, known in (("precision", precision, get_args(Precision)), ("target", target, get_args(Target))):
        if given not in known:
            raise BadInput(f"{what} {given!r}: choose one of {', '.join(known)}")


def _own_precision(model: Model) -> Precision | None:
    """Return the precision that the quantize pass asks for."""
    return precision_of(cast(Scheme, model.quantization.scheme)) if model.quantization else None


def _asked(model: Model, precision: Precision, calibration: tuple[Tensor, ...]) -> Quantization:
    """Return how a model becomes integers: as its quantize pass says, with other examples if some are given."""
    own = _own_precision(model) or precision
    if own != precision:
        raise BadInput(f"precision {precision!r}: the model was quantized for {own}; leave the precision out")
    asked = model.quantization or Quantization(precision, "minmax", ())
    if calibration:
        asked = replace(asked, calibration=calibration)
    if asked.scheme == "int8":
        _check_examples(model, asked)
    return asked


def _check_examples(model: Model, asked: Quantization) -> None:
    if not asked.calibration:
        raise BadInput("int8 needs calibration: put the model through Quantize first, or give calibration=examples")
    shapes = [tuple(examples.shape) for examples in asked.calibration]
    wanted = [spec.shape for spec in model.inputs]
    if 0 in (shape[0] for shape in shapes) or len(shapes) != len(wanted) or not all(map(_fits, shapes, wanted)):
        raise BadInput(
            f"the calibration examples have shapes {shapes}, the model's inputs {wanted}; give some for each"
        )


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    """Whether examples are of a shape, apart from their number and dimensions that may vary."""
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(shape[1:], wanted[1:], strict=True)
    )


def _examples(model: Model, calibration: tuple[Tensor, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Return inputs that values are looked at on: those given, or the model's own, with noise for empty ones."""
    given = model.example_inputs
    if calibration:
        given = (*(x[:EXAMPLES] for x in calibration), *given[len(calibration) :])
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
    transposes_after_products(graph.proto.graph)
    with quiet():
        kept = choose(graph, low, settings.keep_fp32, examples, precision == "mixed")
        return replace(to_typed(graph, low, kept.nodes, settings.keep_io_types), fp32_nodes=kept.nodes)


def _in_integers(graph: OnnxGraph, asked: Quantization, target: Target, known: Known) -> OnnxGraph:
    total = sum(map(size_of, graph.proto.graph.initializer))
    if total > MOST_BYTES:
        raise BadInput(f"{asked.scheme} of {total / 1e9:.1f} GB of fp32 weights: at most 2 GB; choose fp16 or bf16")
    names = [value.name for value in graph.proto.graph.input]
    given = dict(zip(names, map(np.asarray, asked.calibration), strict=False))
    examples = in_parts(given) if given else None
    made = quantized(graph.filled(), examples, target, settings_of(asked), known=known)
    return OnnxGraph(made.proto)


__all__ = ["OPSETS", "OnnxSettings", "to_onnx", "write_onnx"]
