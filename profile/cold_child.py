"""The child process of `cold.cold_start`: times the runtime's import, opening one file, and two inferences.

At its top it imports only what Python has imported by itself before, so that the runtime's import includes all that the
runtime needs. Everything else comes after.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

READY_NS = time.perf_counter_ns()

_Entries = dict[str, Any]


def main(name: str) -> int:
    """Answer the request in the folder `name`; return the exit code."""
    entries: _Entries = {"ready_at_ns": READY_NS}
    with suppress(ImportError):  # import_ort says it in words
        _timed(entries, "import", importlib.import_module, "onnxruntime")
    _write(name, entries)
    try:
        _answer(name, entries)
    except Exception as fault:
        _write(name, entries | _told(fault))
    return 0


def _told(fault: Exception) -> _Entries:
    """Say what went wrong. A runtime that lacks memory to load a file has not been given a bad one."""
    from .errors import BadPlan, RuntimeAbsent
    from .memory_limit import lacks_memory

    if isinstance(fault, BadPlan) and not lacks_memory(str(fault)):
        return {"refused": str(fault), "absent": isinstance(fault, RuntimeAbsent)}
    return {"failed": f"{type(fault).__name__}: {fault}"}


def _answer(name: str, entries: _Entries) -> None:
    """Go through the stages and write down after each how long it took, since the process may be killed in the next."""
    from pathlib import Path

    from .ort_session import CPU, CUDA, TENSORRT, import_ort, open_session
    from .plan import Plan

    request = _read(name)
    device = {each.runtime: each for each in (CPU, CUDA, TENSORRT)}[request["runtime"]]
    path, plan = Path(request["target"]), Plan(**request["plan"])
    ort = _timed(entries, "import", import_ort, device)
    _write(name, entries)
    session = _timed(entries, "open", open_session, ort, path, device, plan)
    _write(name, entries)
    feeds = _feeds(name, session, plan, str(path))
    _timed(entries, "first", session.run, None, feeds)
    stages = entries["import_ns"] + entries["open_ns"] + entries["first_ns"]
    entries["own_ns"] = time.perf_counter_ns() - READY_NS - stages
    _write(name, entries)
    _timed(entries, "second", session.run, None, feeds)
    _write(name, entries)


def _feeds(name: str, session: Any, plan: Any, where: str) -> dict[str, Any]:
    import numpy as np

    from .inputs import InputSpec, check_inputs, random_inputs
    from .memory import INPUTS

    specs = [
        InputSpec(one.name, one.type, tuple(size if isinstance(size, int | str) else None for size in one.shape))
        for one in session.get_inputs()
    ]
    try:
        given = dict(np.load(f"{name}/{INPUTS}"))
    except FileNotFoundError:
        return random_inputs(specs, plan.batch, plan.seed, where, dict(plan.shapes))
    return check_inputs(specs, given, plan.batch, where)


def _timed(entries: _Entries, stage: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call, add its nanoseconds to a stage, and return its result."""
    start = time.perf_counter_ns()
    result = call(*arguments)
    took = time.perf_counter_ns() - start
    entries[f"{stage}_ns"] = entries.get(f"{stage}_ns", 0) + took
    return result


def _read(name: str) -> _Entries:
    import json
    from pathlib import Path

    from .memory import REQUEST

    found: _Entries = json.loads(Path(name, REQUEST).read_text(encoding="utf-8"))
    return found


def _write(name: str, entries: _Entries) -> None:
    from pathlib import Path

    from .child import write_reply

    write_reply(Path(name), entries)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
