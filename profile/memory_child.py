"""The child process of `memory.peak_memory`: opens and runs one file, and writes down its own memory.

Imports nothing that the runtime does not need, torch least of all: what it imports, it measures.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .arena import trace_arena
from .child import REPLY, write_reply
from .errors import BadPlan, ProfileError, RuntimeAbsent
from .memory import INPUTS, MODULES, REQUEST
from .memory_limit import lacks_memory, limited, status_bytes
from .plan import Plan
from .runners import Runner, open_runner
from .torch_program import load_program

_RUNS = 10


def main(folder: Path) -> int:
    """Answer the request in `folder`; return the exit code."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        (_trace if request["trace"] else _answer)(folder, request)
    except Exception as fault:
        _add(folder, _told(fault))
    return 0


def _told(fault: Exception) -> dict[str, Any]:
    """Say what went wrong. A runtime that cannot load a file for lack of memory has not been given a bad one."""
    lack = isinstance(fault, MemoryError) or lacks_memory(str(fault))
    if isinstance(fault, BadPlan) and not lack:
        return {"refused": str(fault), "absent": isinstance(fault, RuntimeAbsent)}
    plain = isinstance(fault, ProfileError) or (isinstance(fault, MemoryError) and fault.args)
    kind = "" if plain else f"{type(fault).__name__}: "
    return {"failed": f"{kind}{str(fault).strip()}", "fits": False if lack else None}


def _answer(folder: Path, request: dict[str, Any]) -> None:
    plan = Plan(**request["plan"])
    _import(MODULES[request["runtime"]])
    bare = _resident()
    _add(folder, {"runtime_bytes": bare})
    with limited(request["limit_bytes"], bare, plan.threads), _open(folder, request, plan) as runner:
        _add(folder, {"loaded_bytes": _resident()} | _plain(runner.details))
        _add(folder, _run(runner))


def _run(runner: Runner) -> dict[str, Any]:
    """Run a few times, and return the peak of the whole process, and that of the runs where it can be told apart."""
    opening = _peak()
    apart = _forget_peak()
    on_gpu = _torch_on_gpu(runner)
    for _ in range(_RUNS):
        runner.run()
    running = _peak()
    found: dict[str, Any] = {"peak_bytes": max(opening, running), **on_gpu()}
    return found | ({"running_bytes": running} if apart else {})


def _torch_on_gpu(runner: Runner) -> Any:
    """Return a call that tells what torch's allocator on the GPU held beyond what it holds now.

    Not run on a GPU yet.
    """
    if not runner.runtime.startswith("torch") or runner.details.get("device") != "cuda":
        return dict
    cuda = importlib.import_module("torch").cuda
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    return lambda: {"allocated_bytes": cuda.max_memory_allocated() - before}


def _trace(folder: Path, request: dict[str, Any]) -> None:
    found = trace_arena(Path(request["target"]), request["providers"], Plan(**request["plan"]), _inputs(folder))
    _add(folder, {"activation_bytes": None if found is None else found.activation_bytes})


def _open(folder: Path, request: dict[str, Any], plan: Plan) -> Runner:
    target, runtime, inputs = request["target"], request["runtime"], _inputs(folder)
    if runtime.startswith("torch"):
        module, tensors = load_program(Path(target), plan, inputs)
        return open_runner(module, runtime, plan, tensors)
    return open_runner(target, runtime, plan, inputs)


def _inputs(folder: Path) -> dict[str, Any] | None:
    return dict(np.load(folder / INPUTS)) if (folder / INPUTS).is_file() else None


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as fault:
        raise RuntimeAbsent(f"{module} is not installed; pip install {module}") from fault


def _plain(details: dict[str, Any]) -> dict[str, Any]:
    """Keep those details of a runner that the parent reads."""
    names = ("device", "providers", "weights_bytes", "workspace_bytes")
    return {name: details[name] for name in names if name in details}


def _add(folder: Path, entries: dict[str, Any]) -> None:
    """Add entries to the reply."""
    path = folder / REPLY
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_reply(folder, known | entries)


def _resident() -> int:
    return status_bytes("VmRSS") or int(_psutil_memory().rss)


def _peak() -> int:
    """Return the high-water mark. `ru_maxrss` will not do on Linux: it starts at the size of the forking parent."""
    found = status_bytes("VmHWM")
    if found is not None:
        return found
    info = _psutil_memory()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> bool:
    """Let the high-water mark start anew at what is resident now; tell whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _psutil_memory() -> Any:
    return importlib.import_module("psutil").Process().memory_info()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
