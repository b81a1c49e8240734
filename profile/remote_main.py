"""The measuring process on the other machine: opens what was copied, measures it, and writes one answer."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BadPlan, ProfileError, RuntimeAbsent
from .measure import Measurement, measure_all
from .memory import peak_memory
from .plan import Plan
from .remote_guard import say

REQUEST, INPUTS = "request.json", "inputs.npz"

_REPORT_EVERY_S = 1.0


class Progress:
    """A report that goes over the line, at most once a second: what is sent disturbs what is measured."""

    def __init__(self, frame: str) -> None:
        self._frame = frame
        self._next = 0.0

    def __call__(self, share: float, text: str) -> None:
        """Send it, or not yet."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _REPORT_EVERY_S
            say(self._frame, "progress", [share, text])


def begin() -> None:
    """Start from the command line: the frame and the folder."""
    main(sys.argv[1], Path(sys.argv[2]))


def main(frame: str, folder: Path) -> None:
    """Answer the request in `folder`, in lines that begin with `frame`."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        say(frame, "reply", [seen.to_dict() for seen in _measured(frame, folder, request)])
    except ProfileError as fault:
        say(frame, "refused", [_kind(fault), _in_our_words(str(fault), folder, request)])


def _measured(frame: str, folder: Path, request: dict[str, Any]) -> list[Measurement]:
    plan, runtime = Plan(**request["plan"]), request["runtime"]
    paths = [folder / each["path"] for each in request["targets"]]
    inputs = _inputs(folder, request["inputs"])
    found = measure_all(paths, runtime, plan, inputs, report=Progress(frame))
    seen = [replace(one, file=each["shown"]) for one, each in zip(found, request["targets"], strict=True)]
    if not request["memory"]:
        return seen
    say(frame, "progress", [1.0, "peak memory"])
    held = [asdict(peak_memory(path, runtime, plan, inputs)) for path in paths]
    return [replace(one, details=one.details | {"memory": each}) for one, each in zip(seen, held, strict=True)]


def _inputs(folder: Path, names: list[str] | None) -> dict[str, Any] | None:
    if names is None:
        return None
    with np.load(folder / INPUTS, allow_pickle=False) as arrays:
        return {name: arrays[f"input{i}"] for i, name in enumerate(names)}


def _kind(fault: ProfileError) -> str:
    return next(kind.__name__ for kind in (RuntimeAbsent, BadPlan, ProfileError) if isinstance(fault, kind))


def _in_our_words(text: str, folder: Path, request: dict[str, Any]) -> str:
    """Name files as the user did, not as they are called here."""
    for each in request["targets"]:
        text = text.replace(str(folder / each["path"]), each["shown"])
    return text
