"""`quantize`: an ONNX file of any origin in 8 bits, and whether that pays."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models.errors import BadInput, first_few
from .cli_export import Target
from .cli_models import OnnxFile, Output, written
from .cli_output import Answer, Debug, Json, check_file, command

if TYPE_CHECKING:
    from ..export.npz_stream import NpzStream
    from ..export.quantize_file import QuantizedFile
    from .layer_choice import MixedPrecision
    from .quantizing import Paid


MOST_LAYERS = 12
"""Of a search, in the terminal."""


class Scheme(StrEnum):
    """What becomes integers."""

    INT8 = "int8"
    DYNAMIC = "dynamic"
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"


class Method(StrEnum):
    """How the range of an activation is found."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


Calibration = Annotated[
    Path | None,
    typer.Option(help="For int8: examples by input in an .npz file, one row each; read in parts.", show_default=False),
]
SchemeOption = Annotated[
    Scheme,
    typer.Option(
        "--scheme",
        help="int8: weights and activations, calibrated; dynamic: ranges found at run time, for transformers on CPUs; "
        "int8-weights and int4-weights: large weights alone.",
    ),
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        help="What stays in fp32: a pattern of operator types, module paths or nodes; may be given several times.",
        show_default=False,
    ),
]
WeightBits = Annotated[
    int | None,
    typer.Option(min=4, max=8, help="Of weights (default: 7 on CPUs, right without VNNI too; 8 for TensorRT)."),
]
ByError = Annotated[bool, typer.Option("--weights-by-error", help="Choose weights' scales by squared error.")]
Equalize = Annotated[bool, typer.Option("--equalize", help="Even out channels between layers that follow one another.")]
CorrectBias = Annotated[bool, typer.Option("--correct-bias", help="Make good in biases what rounding moves means by.")]
Smooth = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Move so much of norms' outliers into weights (SmoothQuant).", show_default=False),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        min=0, help="Points of accuracy that may be lost on the calibration examples; layers go back to fp32 for it.",
        show_default=False,
    ),
]  # fmt: skip
Labels = Annotated[
    str | None,
    typer.Option(help="Array of the calibration with the right classes; by default fp32's own.", show_default=False),
]
Measure = Annotated[bool, typer.Option("--measure/--no-measure", help="Compare latency with the fp32 file (CPU).")]
MethodOption = Annotated[Method, typer.Option("--method", help="How the range of an activation is found.")]


@command
def quantize(  # noqa: PLR0913 (the parameters of a command are its options)
    onnx: OnnxFile,
    output: Output,
    calibration: Calibration = None,
    scheme: SchemeOption = Scheme.INT8,
    target: Annotated[Target, typer.Option(help="What the file is for.")] = Target.CPU,
    method: MethodOption = Method.MINMAX,
    keep_float: KeepFloat = None,
    weight_bits: WeightBits = None,
    weights_by_error: ByError = False,
    equalize: Equalize = False,
    correct_bias: CorrectBias = False,
    smooth: Smooth = None,
    max_drop: MaxDrop = None,
    labels: Labels = None,
    measure: Measure = True,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write an ONNX file, ours or another's, with integers in place of fp32: weights and activations by default."""
    check_file(onnx, "an ONNX file")
    if calibration is not None:
        check_file(calibration, "an .npz file of examples")
    if output.suffix != ".onnx":
        raise BadInput(f"{output}: wanted a name that ends in .onnx")
    if max_drop is not None and (calibration is None or scheme is not Scheme.INT8):
        raise BadInput("--max-drop is for scheme int8 with --calibration; leave it out")
    from ..export.calibration_examples import fitting
    from ..export.int8 import Int8Settings
    from ..export.npz_stream import open_npz
    from ..export.quantize_file import quantize_onnx
    from ..export.session import OnnxSession
    from .cli_progress import showing
    from .layer_judge import Judging
    from .quantizing import choose_layers, without_labels

    keep = tuple(keep_float or ())
    settings = Int8Settings(
        method.value, keep, weight_bits, weights_by_error, equalize, correct_bias, smooth, scheme.value
    )
    given, right = without_labels(open_npz(calibration), labels) if calibration else (None, None)
    given = fitting(given, OnnxSession(onnx)) if given else None
    found, seen, unseen = None, None, ""
    with showing() as progress:
        if max_drop is not None and given is not None:
            progress.stage("choose layers")
            judging = Judging(given, right, max_drop)
            settings, found = choose_layers(
                onnx, judging, target.value, settings, lambda _, share: progress.advance(int(100 * share), 100)
            )
        progress.stage("quantize")
        made = quantize_onnx(onnx, output, given, target.value, settings, progress.advance)
        if measure and target is Target.CPU:
            progress.stage("measure")
            seen, unseen = _measured(onnx, output, given)
    parts = {"mixed_precision": found, "pays": seen}
    data = made.to_dict() | {name: part.to_dict() for name, part in parts.items() if part is not None}
    missed = (found is not None and not found.met) or (seen is not None and not seen.faster)
    return Answer(
        "\n".join([_text(made), *_chosen(found), *_paid(seen), *([unseen] if unseen else [])]), data, int(missed)
    )


def _measured(source: Path, made: Path, given: NpzStream | None) -> tuple[Paid | None, str]:
    """Return whether the file pays, or why that is not known: without examples open dimensions have no size."""
    from ..profile.errors import BadPlan
    from .quantizing import one_example, pays

    try:
        return pays(source, made, one_example(given, source) if given else None), ""
    except BadPlan as fault:
        if given is not None:
            raise
        return None, f"speed   not measured: {fault}"


def _chosen(found: MixedPrecision | None) -> list[str]:
    """Return what the search came to, and the layers that cost most or stay in fp32."""
    if found is None:
        return []
    from .cli_output import columns
    from .report_precision import precision_table

    table = precision_table(found, "", MOST_LAYERS)
    more = len(found.layers) - len(table.rows)
    left = [f"and {more} more layers, see --json"] if more else []
    return [f"layers  {found.line}", "", columns([table.head, *table.rows], table.numbers), *left, ""]


def _paid(seen: Paid | None) -> list[str]:
    if seen is None:
        return []
    found = seen.comparison
    ends = "" if found.low is None or found.high is None else f" ({found.low:.2f}-{found.high:.2f})"
    share = "" if seen.share.share is None else f", {seen.share.share:.1%} of MACs in integers"
    line = f"speed   {found.outcome}, {found.ratio:.2f}x{ends} on ort-cpu{share}"
    return [line, *(f"why     {one}" for one in seen.reasons)]


def _text(made: QuantizedFile) -> str:
    seen = f", by {made.examples} examples" if made.examples else ""
    kept = f", {len(made.kept)} in fp32: {first_few(made.kept)}" if made.kept else ""
    return "\n".join(
        [
            written(made),
            f"size    {made.source_bytes / made.bytes:.2f}x smaller",
            f"{made.scheme:7s} {made.products} operators for {made.target}{seen}{kept}",
        ]
    )
