"""`engine`: a TensorRT engine of an ONNX file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from ..models.errors import BadInput
from .cli_models import OnnxFile, Output, written
from .cli_output import Answer, Debug, Json, check_file, command, numbers


class Flavour(StrEnum):
    """The two kinds of TensorRT."""

    RTX = "rtx"
    TENSORRT = "tensorrt"


@command
def engine(
    onnx: OnnxFile,
    output: Output,
    flavour: Annotated[Flavour, typer.Option(help="TensorRT for RTX, or TensorRT.")] = Flavour.RTX,
    batches: Annotated[str, typer.Option(help="Smallest, usual and largest batch.")] = "1,1,32",
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Build a TensorRT engine of an ONNX file."""
    sizes = numbers(batches, "--batches", "1,1,32") or ()
    if len(sizes) != 3 or list(sizes) != sorted(sizes):
        raise BadInput(f"--batches: got {batches}, wanted three numbers that do not fall, such as 1,1,32")
    check_file(onnx, "an ONNX file")
    from ..export.engine import to_engine
    from .cli_progress import showing

    with showing() as progress:
        progress.stage("build engine")
        made = to_engine(onnx, output, flavour=flavour.value, batches=(sizes[0], sizes[1], sizes[2]))
    return Answer(written(made), made)
