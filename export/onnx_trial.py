"""Do in a child process, under limits, what a file of unknown origin might answer by taking all memory there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from ..models.errors import BadInput, ToolFailed

_BASE_BYTES, _BYTES_PER_BYTE = 768 << 20, 12
_BASE_S, _BYTES_PER_S = 3, 1 << 20
_WALL = 20
"""Times the seconds of processor time: a busy machine gives a process a small share."""


def try_open(path: Path) -> None:
    """Open a file in ONNX Runtime and drop it.

    Raises:
        BadInput: it takes more memory or time than a file of this size can need, or the process dies of it. What ONNX
            Runtime refuses with words is left to whoever opens it next.
    """
    from .foreign import file_bytes

    in_child(path, "open", file_bytes(path))


def in_child(path: Path, task: Literal["open", "shapes"], size: int, content: bytes = b"") -> bytes:
    """Run a task of `onnx_child` and return what it writes.

    Args:
        path: of the file, for messages and for the task `open`.
        task: what to do.
        size: bytes that the limits are measured by.
        content: for standard input.

    Raises:
        BadInput: the child reached its limits or died.
        ToolFailed: it failed with an error.
    """
    memory, seconds = _BASE_BYTES + _BYTES_PER_BYTE * size, _BASE_S + size // _BYTES_PER_S
    command = [sys.executable, "-m", "shipworthy.export.onnx_child", task, str(path), str(memory), str(seconds)]
    what = "opening it" if task == "open" else "inferring its shapes"
    absurd = f"{path}: {what} takes over {memory / 1e9:.2g} GB or {seconds} s: it asks for absurd sizes"
    try:
        child = subprocess.run(command, input=content, capture_output=True, timeout=_WALL * seconds, check=False)
    except subprocess.TimeoutExpired as fault:
        raise BadInput(absurd) from fault
    if child.returncode == 0:
        return child.stdout
    said = child.stderr.decode(errors="replace").strip().splitlines()
    last = said[-1] if said else ""
    if child.returncode < 0 or "MemoryError" in last or "alloc" in last:
        raise BadInput(absurd)
    raise ToolFailed(f"{path}: {what} failed: {last}")
