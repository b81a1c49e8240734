"""What a command prints and how it ends: data to stdout, everything else to stderr, one exit code."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from ..models.errors import BadInput

P = ParamSpec("P")
INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="Print data as JSON to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Weights = Annotated[Path | None, typer.Option(help="A state-dict file for the model.")]
Input = Annotated[str | None, typer.Option(help="Shape of one example, such as 3,224,224.")]


@dataclass(frozen=True)
class Answer:
    """What a command has to say: text for people, data for `--json`, and its exit code."""

    text: str
    data: Any
    code: int = 0


def command(body: Callable[P, Answer]) -> Callable[P, None]:
    """Make a command of a function: print its answer, turn errors into one message, end with the right code.

    What libraries and user code print while the body runs goes to stderr, so that stdout holds data alone.
    """

    @wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json, debug = bool(kwargs.get("as_json")), bool(kwargs.get("debug"))
        try:
            with redirect_stdout(sys.stderr):
                answer = body(*args, **kwargs)
            _print(dumps(answer.data) if as_json else answer.text)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)  # noqa: T201 (the command line prints)
            raise typer.Exit(INTERRUPTED) from None
        except (Exception, SystemExit) as fault:
            raise typer.Exit(_failed(fault, as_json, debug)) from None
        raise typer.Exit(answer.code)

    return run


def _failed(fault: BaseException, as_json: bool, debug: bool) -> int:
    meant = isinstance(getattr(fault, "exit_code", None), int)
    text = str(fault) if meant else f"{type(fault).__name__}: {fault}"
    hint = "" if meant or debug else "\nThis was not foreseen; run again with --debug for the traceback."
    if debug:
        traceback.print_exception(fault)
    print(f"error: {text}{hint}", file=sys.stderr)  # noqa: T201 (the command line prints)
    code = int(getattr(fault, "exit_code", 4))
    if as_json:
        _print(dumps({"error": text, "kind": type(fault).__name__, "exit_code": code}))
    return code


def _print(text: str) -> None:
    """Print to stdout; a reader that has gone away (`| head`) does not change the exit code."""
    try:
        print(text.rstrip("\n"), flush=True)  # noqa: T201 (the command line prints)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def dumps(value: Any) -> str:
    """Return JSON text of anything our functions return; text is taken for JSON already."""
    return value if isinstance(value, str) else json.dumps(plain(value), indent=1, allow_nan=False)


def plain(value: Any) -> Any:
    """Turn dataclasses, paths, enums, tuples and numpy's numbers into what JSON has; not-a-number becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, Enum):
        value = value.value
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def columns(rows: Sequence[Sequence[object]], right: frozenset[int] = frozenset()) -> str:
    """Lay rows of cells out in columns, the first row being the head; `right` are aligned right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    # The last column may hold sentences: its rule is as long as its head.
    texts.insert(1, ["-" * width for width in [*widths[:-1], len(texts[0][-1])]])
    return "\n".join(
        "  ".join(f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in texts
    )


def numbers(text: str | None, option: str, example: str) -> tuple[int, ...] | None:
    """Read whole numbers above zero, separated by commas.

    Raises:
        BadInput: it is anything else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise BadInput(
            f"{option}: got {text!r}, wanted whole numbers above zero with commas between, such as {example}"
        )
    return tuple(map(int, parts))


def check_file(path: Path, what: str) -> Path:
    """Return the path of a file that is there.

    Raises:
        BadInput: it is not.
    """
    if not path.is_file():
        raise BadInput(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; wanted {what}")
    return path


def read_npz(path: Path) -> dict[str, Any]:
    """Read arrays by name; pickled ones are refused.

    Raises:
        BadInput: no such file, or not one of plain arrays.
    """
    from zipfile import BadZipFile

    import numpy as np

    check_file(path, "an .npz file of inputs")
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, BadZipFile) as fault:
        raise BadInput(f"{path}: not an .npz file of plain arrays ({fault}); write it with numpy.savez") from fault
