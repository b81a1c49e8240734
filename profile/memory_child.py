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

from .errors import BadPlan, ProfileError, RuntimeAbsent
from .memory import INPUTS, MODULES, REPLY, REQUEST
from .plan import Plan
from .runners import open_runner

_RUNS = 10


def main(folder: Path) -> int:
    """Answer the request in `folder`; return the exit code."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        _answer(folder, request)
    except BadPlan as fault:
        _add(folder, {"refused": str(fault), "absent": isinstance(fault, RuntimeAbsent)})
    except Exception as fault:
        kind = "" if isinstance(fault, ProfileError) else f"{type(fault).__name__}: "
        _add(folder, {"failed": f"{kind}{fault}"})
    return 0


def _answer(folder: Path, request: dict[str, Any]) -> None:
    _import(MODULES[request["runtime"]])
    _add(folder, {"runtime_bytes": _resident()})
    inputs = dict(np.load(folder / INPUTS)) if (folder / INPUTS).is_file() else None
    with open_runner(request["target"], request["runtime"], Plan(**request["plan"]), inputs) as runner:
        _add(folder, {"loaded_bytes": _resident()})
        for _ in range(_RUNS):
            runner.run()
        _add(folder, {"peak_bytes": _peak()})


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as fault:
        raise RuntimeAbsent(f"{module} is not installed; pip install {module}") from fault


def _add(folder: Path, entries: dict[str, Any]) -> None:
    """Add entries to the reply; the file is whole at every moment, since the process may be killed at any."""
    path = folder / REPLY
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(known | entries), encoding="utf-8")
    beside.replace(path)


def _resident() -> int:
    return _status("VmRSS") or int(_psutil_memory().rss)


def _peak() -> int:
    """Return the high-water mark. `ru_maxrss` will not do on Linux: it starts at the size of the forking parent."""
    found = _status("VmHWM")
    if found is not None:
        return found
    info = _psutil_memory()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(key: str) -> int | None:
    path = Path("/proc/self/status")
    if not path.is_file():
        return None
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return next((int(words[1]) * 1024 for words in lines if words and words[0] == f"{key}:"), None)


def _psutil_memory() -> Any:
    return importlib.import_module("psutil").Process().memory_info()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
