"""`export`: a model as a typed ONNX file."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ..models.errors import BadInput
from .cli_models import Output, Source, load_source, spec_text, written
from .cli_output import Answer, Debug, Input, Json, Weights, command

if TYPE_CHECKING:
    from ..models.model import Model


class Precision(StrEnum):
    """Number formats that an ONNX file can hold."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Target(StrEnum):
    """Families that an int8 file is written for."""

    CPU = "cpu"
    TENSORRT = "tensorrt"


Opset = Annotated[int, typer.Option(min=18, max=23, help="ONNX operator set.")]
Data = Annotated[str | None, typer.Option("--data", help="Data that calibrates int8.")]
Calibration = Annotated[int, typer.Option(min=1, help="Training examples that calibrate int8.")]


@command
def export(  # noqa: PLR0913 (the parameters of a command are its options)
    source: Source,
    output: Output,
    precision: Annotated[Precision, typer.Option(help="int8 needs --data.")] = Precision.FP32,
    target: Annotated[Target, typer.Option(help="What an int8 file is for.")] = Target.CPU,
    opset: Opset = 20,
    data: Data = None,
    calibration: Calibration = 512,
    weights: Weights = None,
    input: Input = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write a model as a typed ONNX file."""
    if precision is Precision.INT8 and data is None:
        raise BadInput("--precision int8 needs examples to calibrate with; add --data SOURCE")
    from .cli_progress import showing

    with showing() as progress:
        progress.stage("load")
        model = load_source(source, weights, input)
        if precision is Precision.INT8:
            progress.stage("calibrate")
            model = _quantized(model, str(data), calibration)
        progress.stage("export")
        from ..export.onnx_file import to_onnx

        made = to_onnx(model, output, precision=precision.value, target=target.value, opset=opset)
    lines = [
        written(made),
        f"opset   {made.opset}, {made.precision} for {made.target}",
        *(f"input   {spec_text(spec)}" for spec in made.inputs),
        *(f"output  {spec_text(spec)}" for spec in made.outputs),
    ]
    return Answer("\n".join(lines), made)


def _quantized(model: Model, source: str, examples: int) -> Model:
    from ..compress.quantize import Quantize
    from ..models.data import open_data

    return Quantize(calibration=examples)(model, data=open_data(source)).model
