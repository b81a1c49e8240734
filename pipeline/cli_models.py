"""`inspect`, `export`, `engine` and `parity`: one stage of a build on its own."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models.errors import BadInput
from .cli_output import Answer, Debug, Input, Json, Weights, check_file, columns, command, numbers, read_npz

if TYPE_CHECKING:
    from ..models.model import Model, TensorSpec
    from ..models.summary import Summary


class Precision(StrEnum):
    """Number formats that an ONNX file can hold."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Target(StrEnum):
    """Families that an int8 file is written for."""

    CPU = "cpu"
    TENSORRT = "tensorrt"


class Flavour(StrEnum):
    """The two kinds of TensorRT."""

    RTX = "rtx"
    TENSORRT = "tensorrt"


Source = Annotated[
    str, typer.Argument(metavar="MODEL", help="reference:NAME, torchvision:NAME, file.py:factory or a .pt2 file.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)]
Opset = Annotated[int, typer.Option(min=18, max=23, help="ONNX operator set.")]
Data = Annotated[str | None, typer.Option("--data", help="Data that calibrates int8.")]
Calibration = Annotated[int, typer.Option(min=1, help="Training examples that calibrate int8.")]
OnnxFile = Annotated[Path, typer.Argument(metavar="ONNX", help="An ONNX file.", show_default=False)]
Samples = Annotated[Path | None, typer.Option(help="Inputs by name in an .npz file; random ones by default.")]


@command
def inspect(  # noqa: PLR0913 (the parameters of a command are its options)
    source: Source,
    groups: Annotated[bool, typer.Option("--groups", help="Add what can be pruned and trimmed, and why not.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the groups of channels into this .svg file.")] = None,
    weights: Weights = None,
    input: Input = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show a model's parameters, MACs, layers, inputs and outputs."""
    if picture:
        from .group_picture import check_picture

        check_picture(picture)
    model = load_source(source, weights, input)
    from ..models.summary import summarize

    found = summarize(model)
    answer = Answer(_summary_text(found), found)
    return _with_groups(answer, model, groups, picture) if groups or picture else answer


def _summary_text(found: Summary) -> str:
    from .report_numbers import count

    head = [
        f"model   {found.source}",
        f"params  {count(found.params)} ({found.params:,})",
        f"MACs    {count(found.macs)} an example",
        *(f"input   {_spec(spec)}" for spec in found.inputs),
        *(f"output  {_spec(spec)}" for spec in found.outputs),
    ]
    rows = [(row.name, row.kind, _shape(row.output_shape), f"{row.params:,}", f"{row.macs:,}") for row in found.layers]
    table = columns([("layer", "kind", "output", "params", "MACs"), *rows], frozenset((3, 4)))
    return "\n".join(head) + "\n\n" + table


def _with_groups(answer: Answer, model: Model, groups: bool, picture: Path | None) -> Answer:
    """Add what pruning and trimming see, as text if it is wanted and as a picture."""
    from ..compress.group_table import describe_groups
    from .group_view import find_removable, groups_data, groups_text

    table, removable = describe_groups(model), find_removable(model, answer.data)
    data = {**vars(answer.data), **groups_data(table, removable)}
    texts = [answer.text, groups_text(table, removable) if groups else ""]
    if picture:
        from .group_picture import write_picture

        write_picture(table, model.source, picture)
        texts.append(f"wrote   {picture}")
        data["picture"] = picture
    return Answer("\n\n".join(filter(None, texts)), data)


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
        _written(made),
        f"opset   {made.opset}, {made.precision} for {made.target}",
        *(f"input   {_spec(spec)}" for spec in made.inputs),
        *(f"output  {_spec(spec)}" for spec in made.outputs),
    ]
    return Answer("\n".join(lines), made)


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
    return Answer(_written(made), made)


@command
def parity(
    reference: Annotated[str, typer.Argument(help="An ONNX file or a model source.", show_default=False)],
    candidate: Annotated[Path, typer.Argument(help="The ONNX file to check.", show_default=False)],
    samples: Samples = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Compare the outputs of two files, or of a model and a file; exit code 1 when they differ too much."""
    check_file(candidate, "an ONNX file")
    if samples:
        check_file(samples, "an .npz file of inputs")
    from ..export.parity import parity as compare_outputs

    truth: Any = check_file(Path(reference), "an ONNX file") if reference.endswith(".onnx") else load_source(reference)
    found = compare_outputs(truth, candidate, samples=read_npz(samples) if samples else None)
    head = ("output", "max abs", "relative", "cosine", "top-1 agreement", "tolerance", "verdict")
    rows = [
        (o.name, f"{o.max_abs:.3g}", f"{o.relative:.3g}", f"{o.cosine:.6f}", _share(o.top1_agreement),
         f"{o.tolerance:.3g}", "passed" if o.passed else "BREACHED")
        for o in found.outputs
    ]  # fmt: skip
    end = "parity: passed" if found.passed else "parity: BREACHED"
    return Answer(columns([head, *rows]) + f"\n\n{end}", found, 0 if found.passed else 1)


def load_source(source: str, weights: Path | None = None, shape: str | None = None) -> Model:
    """Load and capture what a MODEL argument names."""
    example = numbers(shape, "--input", "3,224,224")
    from ..models.sources import load

    return load(source, weights=weights, input_shape=example)


def _quantized(model: Model, source: str, examples: int) -> Model:
    from ..compress.quantize import Quantize
    from ..models.data import open_data

    return Quantize(calibration=examples)(model, data=open_data(source)).model


def _written(made: Any) -> str:
    from .report_numbers import size

    return f"wrote   {made.path} ({size(made.bytes)})\nsha256  {made.sha256}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} {_shape(spec.shape)}"


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
