"""What the commands on models and files share: their arguments, how a MODEL is loaded, and lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_output import numbers

if TYPE_CHECKING:
    from ..models.model import Model, TensorSpec

Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="reference:NAME, torchvision:NAME, file.py:factory, a .pt2 file; to inspect, an .onnx file too.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)]
OnnxFile = Annotated[Path, typer.Argument(metavar="ONNX", help="An ONNX file.", show_default=False)]
Samples = Annotated[Path | None, typer.Option(help="Inputs by name in an .npz file; random ones by default.")]


def load_source(source: str, weights: Path | None = None, shape: str | None = None) -> Model:
    """Load and capture what a MODEL argument names."""
    example = numbers(shape, "--input", "3,224,224")
    from ..models.sources import load

    return load(source, weights=weights, input_shape=example)


def written(made: Any) -> str:
    """Return the lines that tell of a file that was made."""
    from .report_numbers import size

    return f"wrote   {made.path} ({size(made.bytes)})\nsha256  {made.sha256}"


def spec_text(spec: TensorSpec) -> str:
    """Return a name, type and shape."""
    return f"{spec.name}: {spec.dtype} {shape_text(spec.shape)}"


def shape_text(shape: Sequence[int | str]) -> str:
    """Return sizes and names in brackets."""
    return f"[{', '.join(map(str, shape))}]"
