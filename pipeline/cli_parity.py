"""`parity`: whether two forms of a model are the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_models import Samples, load_source
from .cli_output import Answer, Debug, Json, check_file, columns, command, read_npz


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


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
