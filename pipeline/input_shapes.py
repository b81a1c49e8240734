"""The option `--shape`: sizes of inputs whose dynamic dimensions are not the batch alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any

import typer

from ..models.errors import BadInput

Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=SIZES", help="Shape of a dynamic input, such as ids=batch,128; repeatable."),
]
ShapeTable = Mapping[str, tuple[int | None, ...]]
"""Whole shapes by input; None stands for the batch."""

BATCH = "batch"

_DECLARING = ("ort-", "tensorrt", "rtx")
"""How runtimes begin whose files declare their inputs."""


def read_shapes(texts: Sequence[str] | None, option: str = "--shape") -> dict[str, tuple[int | None, ...]]:
    """Read `NAME=SIZES`, sizes being whole numbers with commas between, or `batch`; a name may hold `=` and `:`.

    Raises:
        BadInput: one is anything else, or a name comes twice.
    """
    found: dict[str, tuple[int | None, ...]] = {}
    for text in texts or ():
        name, _, sizes = text.rpartition("=")
        parts = [part.strip() for part in sizes.split(",")] if sizes.strip() else []
        if not name or not all(
            part == BATCH or (part.isascii() and part.isdigit() and len(part) < 16) for part in parts
        ):
            raise BadInput(f"{option}: got {text!r}, wanted a name and sizes, such as ids=batch,128")
        if name in found:
            raise BadInput(f"{option}: {name!r} comes twice")
        found[name] = tuple(None if part == BATCH else int(part) for part in parts)
    return found


def plan_shapes(texts: Sequence[str] | None, samples: Path | None, runtime: str) -> tuple[tuple[str, Any], ...]:
    """Return a plan's `shapes`.

    Raises:
        BadInput: see `read_shapes`; there are samples, which have theirs, or the runtime's files declare no inputs.
    """
    found = read_shapes(texts)
    if found and (samples or not runtime.startswith(_DECLARING)):
        why = "--samples has them" if samples else f"runtime {runtime} takes none"
        raise BadInput(f"--shape: gives the sizes of random inputs of an ONNX file or engine; {why}, leave one out")
    return tuple(found.items())


@contextmanager
def on_random(inputs: Mapping[str, Any] | None) -> Iterator[None]:
    """Say of a file that fails on random inputs that it may need real ones: lengths, indices, or state."""
    from ..profile.errors import BadPlan, ProfileError

    try:
        yield
    except BadPlan:
        raise
    except ProfileError as fault:
        if inputs is not None:
            raise
        raise ProfileError(f"{fault}; the inputs were random: where it needs real ones, give --samples") from fault


def random_samples(path: str | PathLike[str], count: int, shapes: ShapeTable, seed: int = 0) -> dict[str, Any]:
    """Make inputs for an ONNX file, as `profile` makes them: for `parity` and whatever else runs one without samples.

    Args:
        path: an ONNX file.
        count: size of its batch.
        shapes: of inputs with other dynamic dimensions.
        seed: same seed, same inputs.

    Returns:
        Arrays by input name, of the shapes that the file declares: the batch is where the file has it.

    Raises:
        BadInput: the file is refused, or its inputs cannot be invented.
    """
    from ..export.session import OnnxSession
    from ..profile.errors import BadPlan
    from ..profile.inputs import InputSpec, random_inputs

    session = OnnxSession(path)
    specs = [InputSpec(name, kind, _open(shape)) for name, (kind, shape) in session.inputs.items()]
    try:
        return random_inputs(specs, session.fixed_batch or count, seed, str(Path(fspath(path))), shapes)
    except BadPlan as fault:
        raise BadInput(str(fault)) from fault


def _open(shape: Sequence[Any]) -> tuple[int | str | None, ...]:
    return tuple(size if isinstance(size, int | str) else None for size in shape)
