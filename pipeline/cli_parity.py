"""`parity`: whether two forms of a model are the same function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models.errors import BadInput
from .cli_models import Samples, load_source
from .cli_output import Answer, Debug, Json, check_file, columns, command, read_npz
from .cli_profile import Fallback
from .input_shapes import Shapes, plan_shapes, random_samples

if TYPE_CHECKING:
    from ..export.parity import OutputParity, Parity

EXAMPLES = 64

Runtime = Annotated[
    str | None, typer.Option(help="ort-cpu, ort-cuda, ort-tensorrt; rtx or tensorrt for an engine.", show_default=False)
]
Precision = Annotated[
    str | None,
    typer.Option(help="Judge by fp32, tf32, fp16, mixed, bf16 or int8; by default the file's.", show_default=False),
]
Layers = Annotated[bool, typer.Option("--layers/--no-layers", help="On a breach, look for the layer that made it.")]
Labels = Annotated[str | None, typer.Option(help="Array of the samples with the right classes.", show_default=False)]


@command
def parity(  # noqa: PLR0913 (the parameters of a command are its options)
    reference: Annotated[str, typer.Argument(help="An ONNX file, an engine or a model source.", show_default=False)],
    candidate: Annotated[Path, typer.Argument(help="The ONNX file or engine to check.", show_default=False)],
    samples: Samples = None,
    shape: Shapes = None,
    runtime: Runtime = None,
    precision: Precision = None,
    layers: Layers = True,
    labels: Labels = None,
    allow_fallback: Fallback = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Compare the outputs of two files, or of a model and a file; exit code 1 when they differ too much."""
    check_file(candidate, "an ONNX file or an engine")
    shapes = plan_shapes(shape, samples, "ort-")
    given = read_npz(samples) if samples else None
    right = _labels(given, labels)
    from ..export.parity import Comparing
    from .parity_runtimes import OnRuntime, is_engine, parity_on

    truth: Any = reference
    if is_engine(reference) or reference.endswith(".onnx"):
        truth = check_file(Path(reference), "an ONNX file or an engine")
    else:
        truth = load_source(reference)
    if shapes:
        given = random_samples(candidate, EXAMPLES, dict(shapes))
    where = OnRuntime(runtime or _usual(candidate), allow_fallback)
    found = parity_on(truth, candidate, where, given, precision, Comparing(right, layers))
    return Answer(_text(found), found, 0 if found.passed else 1)


def _labels(samples: dict[str, Any] | None, key: str | None) -> Any:
    """Take the labels out of the samples.

    Raises:
        BadInput: there are no samples, or they hold no such array.
    """
    if key is None:
        return None
    if samples is None or key not in samples:
        raise BadInput(f"--labels: {key!r} is no array of the samples; got {[*(samples or {})]}, give it in --samples")
    return samples.pop(key)


def _usual(candidate: Path) -> str:
    from .parity_runtimes import is_engine

    if not is_engine(candidate):
        return "ort-cpu"
    from ..export.engine_manifest import read_manifest

    return str(read_manifest(candidate)["flavour"])


def _text(found: Parity) -> str:
    head = ("output", "max abs", "relative", "noise", "cosine", "top-1 agreement", "tolerance", "verdict")
    lines = [columns([head, *map(_cells, found.outputs)]), ""]
    if found.layer:
        from ..export.parity_text import layer_text

        lines.append(layer_text(found.layer, found.cost))
    lines += [f"note: {note}" for note in found.notes]
    lines.append(f"parity ({found.precision}): {'passed' if found.passed else 'BREACHED'}")
    return "\n".join(lines)


def _cells(row: OutputParity) -> tuple[str, ...]:
    noise = "unknown" if row.noise is None else f"{row.noise:.3g}"
    share = "" if row.top1_agreement is None else f"{row.top1_agreement:.2%}"
    return (
        row.name, f"{row.max_abs:.3g}", f"{row.relative:.3g}", noise, f"{row.cosine:.6f}", share,
        f"{row.tolerance:.3g}", "passed" if row.passed else "BREACHED",
    )  # fmt: skip
