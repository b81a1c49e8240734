"""`export`: a model as a typed ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..models.errors import BadInput, first_few
from .cli_models import Output, Source, load_source, spec_text, written
from .cli_output import Answer, Debug, Input, Json, Weights, command

if TYPE_CHECKING:
    from ..export.artifact import OnnxArtifact
    from ..models.model import Model


class Precision(StrEnum):
    """Number formats that an ONNX file can hold."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    MIXED = "mixed"
    INT8 = "int8"
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"


_LOW = (Precision.FP16, Precision.BF16, Precision.MIXED)


class Target(StrEnum):
    """Families that an int8 file is written for."""

    CPU = "cpu"
    TENSORRT = "tensorrt"


Opset = Annotated[int | None, typer.Option(min=18, max=25, help="ONNX operator set (default: 20, for bf16 22).")]
Data = Annotated[str | None, typer.Option("--data", help="Data that calibrates int8 and shows the range of values.")]
Calibration = Annotated[int, typer.Option(min=1, help="Training examples that calibrate int8.")]
KeepFp32 = Annotated[
    list[str] | None,
    typer.Option(
        help="What stays in fp32 in fp16, bf16 and mixed: auto (default), none, or a pattern of operator types, "
        "module paths or nodes; may be given several times."
    ),
]
LowIo = Annotated[bool, typer.Option("--low-io", help="Inputs and outputs are of the lower type as well.")]


@command
def export(  # noqa: PLR0913 (the parameters of a command are its options)
    source: Source,
    output: Output,
    precision: Annotated[
        Precision,
        typer.Option(
            help="mixed is fp16 with delicate operators in fp32; int8 needs --data; int8-weights and int4-weights "
            "are of large linear layers alone."
        ),
    ] = Precision.FP32,
    target: Annotated[Target, typer.Option(help="What an int8 file is for, and what must read it.")] = Target.CPU,
    opset: Opset = None,
    data: Data = None,
    calibration: Calibration = 512,
    keep_fp32: KeepFp32 = None,
    low_io: LowIo = False,
    weights: Weights = None,
    input: Input = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write a model as a typed ONNX file."""
    if precision is Precision.INT8 and data is None:
        raise BadInput("--precision int8 needs examples to calibrate with; add --data SOURCE")
    if precision not in _LOW and (keep_fp32 or low_io):
        raise BadInput(
            f"--keep-fp32 and --low-io are for fp16, bf16 and mixed, not for {precision.value}; leave them out"
        )
    kept = _kept(keep_fp32 or ["auto"])
    from ..export.opsets import chosen_opset
    from .cli_progress import showing

    chosen_opset(opset, precision.value, target.value)

    with showing() as progress:
        progress.stage("load")
        model = load_source(source, weights, input)
        progress.stage("export")
        made = _written(model, output, _Asked(precision, target, opset, data, calibration, kept, low_io))
    held = f"fp32    {len(made.fp32_nodes)} nodes: {first_few(made.fp32_nodes)}"
    lines = [
        written(made),
        f"opset   {made.opset}, {made.precision}"
        + (f" for {made.target}" if precision not in (*_LOW, Precision.FP32) else ""),
        *([held] if made.fp32_nodes else []),
        *(f"input   {spec_text(spec)}" for spec in made.inputs),
        *(f"output  {spec_text(spec)}" for spec in made.outputs),
    ]
    return Answer("\n".join(lines), made)


@dataclass(frozen=True)
class _Asked:
    """The options as plain values."""

    precision: Precision
    target: Target
    opset: int | None
    data: str | None
    calibration: int
    keep_fp32: Literal["auto", "none"] | tuple[str, ...]
    low_io: bool


def _kept(asked: list[str]) -> Literal["auto", "none"] | tuple[str, ...]:
    if asked == ["auto"]:
        return "auto"
    if asked == ["none"]:
        return "none"
    if {"auto", "none"} & set(asked):
        raise BadInput("--keep-fp32 auto and none stand alone; leave the patterns out, or them")
    return tuple(asked)


def _written(model: Model, output: Path, asked: _Asked) -> OnnxArtifact:
    from ..export.onnx_file import EXAMPLES, OnnxSettings, to_onnx
    from ..export.onnx_metadata import Notes, notes_of
    from ..models.data import open_data

    held = open_data(asked.data) if asked.data else None
    examples = None
    if held and asked.precision is Precision.INT8:
        from ..compress.quantize import Quantize

        model = Quantize(calibration=asked.calibration)(model, data=held).model
    elif held and asked.precision in _LOW:
        examples = held.inputs(held.train, held.sample(EXAMPLES, 0))
    settings = OnnxSettings(asked.keep_fp32, not asked.low_io, notes=notes_of(held) if held else Notes())
    return to_onnx(model, output, asked.precision.value, asked.target.value, asked.opset, examples, settings)
