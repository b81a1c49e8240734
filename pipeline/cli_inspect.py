"""`inspect`: what a model is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models.errors import BadInput
from .cli_models import Source, load_source, shape_text, spec_text
from .cli_output import Answer, Debug, Input, Json, Weights, columns, command
from .input_shapes import Shapes, read_shapes

if TYPE_CHECKING:
    from ..models.model import Model
    from ..models.summary import Summary


@command
def inspect(  # noqa: PLR0913 (the parameters of a command are its options)
    source: Source,
    groups: Annotated[bool, typer.Option("--groups", help="Add what can be pruned and trimmed, and why not.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the groups of channels into this .svg file.")] = None,
    weights: Weights = None,
    input: Input = None,
    shape: Shapes = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show a model's or an ONNX file's parameters, MACs, layers, inputs and outputs, or what an engine is tied to."""
    others = {"--groups": groups, "--picture": picture, "--weights": weights, "--input": input}
    if source.endswith(".onnx"):
        _refuse(others, f"{source} is an ONNX file")
        return _of_file(Path(source), shape)
    if source.endswith(".engine"):
        _refuse({**others, "--shape": shape}, f"{source} is an engine")
        from .engine_text import inspect_engine_file

        return inspect_engine_file(Path(source))
    if shape:
        raise BadInput("--shape: gives the shape of an ONNX file's input; for a model give --input")
    if picture:
        from .group_picture import check_picture

        check_picture(picture)
    model = load_source(source, weights, input)
    from ..models.summary import summarize

    found = summarize(model)
    answer = Answer(_summary_text(found), found)
    return _with_groups(answer, model, groups, picture) if groups or picture else answer


def _refuse(options: Mapping[str, object], what: str) -> None:
    wrong = [name for name, value in options.items() if value]
    if wrong:
        raise BadInput(f"{wrong[0]}: is for models that can be captured; {what}")


def _of_file(path: Path, shape: list[str] | None) -> Answer:
    from .foreign_summary import summarize_onnx
    from .foreign_text import onnx_text

    found = summarize_onnx(path, read_shapes(shape))
    return Answer(onnx_text(found), found)


def _summary_text(found: Summary) -> str:
    from .report_numbers import count

    head = [
        f"model   {found.source}",
        f"params  {count(found.params)} ({found.params:,})",
        f"MACs    {count(found.macs)} an example",
        *(f"input   {spec_text(spec)}" for spec in found.inputs),
        *(f"output  {spec_text(spec)}" for spec in found.outputs),
    ]
    rows = [
        (row.name, row.kind, shape_text(row.output_shape), f"{row.params:,}", f"{row.macs:,}") for row in found.layers
    ]
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
