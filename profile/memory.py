"""Peak memory of one file in one runtime, in a fresh child process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BadPlan, RuntimeAbsent
from .plan import Plan
from .runners import Inputs, Target, opener

REQUEST, INPUTS, REPLY = "request.json", "inputs.npz", "reply.json"

MODULES = {"ort-cpu": "onnxruntime", "ort-cuda": "onnxruntime"}
"""What the child imports before it reads `runtime_bytes`, by runtime."""


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process that runs one file.

    Attributes:
        file_bytes: of the file itself.
        runtime_bytes: after the runtime was imported, before the file was opened.
        loaded_bytes: after the file was opened.
        peak_bytes: the most that the process ever held.
        failed: why the child ended early, or None. What it measured before is kept.
    """

    file_bytes: int
    runtime_bytes: int | None = None
    loaded_bytes: int | None = None
    peak_bytes: int | None = None
    failed: str | None = None

    @property
    def added_bytes(self) -> int | None:
        """What opening and running the file added to the bare runtime at its peak."""
        if self.peak_bytes is None or self.runtime_bytes is None:
            return None
        return self.peak_bytes - self.runtime_bytes


def peak_memory(
    target: Target,
    runtime: str = "ort-cpu",
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    *,
    timeout_s: float = 120.0,
) -> Memory:
    """Open and run a file a few times in a fresh child process and read its memory.

    A child that dies (out of memory, a signal) or takes too long is a result: see `Memory.failed`.

    Args:
        target: a path to an ONNX file.
        runtime: `ort-cpu` or `ort-cuda`; for the latter this is host memory.
        plan: batch, threads and seed; `Plan()` if None.
        inputs: arrays by name; random if None.
        timeout_s: seconds for the child.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: a target or runtime that a child process cannot open, or inputs that do not fit.
    """
    plan = plan or Plan()
    path = _check(target, runtime, inputs)
    command = [sys.executable, "-P", "-m", f"{__package__}.memory_child"]
    with tempfile.TemporaryDirectory(prefix="peak-memory-") as name:
        folder = Path(name)
        request = {"target": str(path.absolute()), "runtime": runtime, "plan": asdict(plan)}
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        if inputs is not None:
            np.savez(folder / INPUTS, **dict(inputs))
        return run_child([*command, name], folder, path.stat().st_size, timeout_s)


def run_child(command: Sequence[str], folder: Path, file_bytes: int, timeout_s: float) -> Memory:
    """Run a child that writes `reply.json` into `folder` step by step, and make a result of what it left there.

    Raises:
        BadPlan: the child reports bad input (`RuntimeAbsent` included).
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
        failed = death(done.returncode, done.stderr)
    except subprocess.TimeoutExpired:
        failed = f"the child process did not end within {timeout_s:g} s"
    except OSError as fault:
        failed = f"the child process could not be started: {fault}"
    reply = _reply(folder / REPLY)
    if "refused" in reply:
        raise (RuntimeAbsent if reply.get("absent") else BadPlan)(reply["refused"])
    sizes = {name: reply.get(name) for name in ("runtime_bytes", "loaded_bytes", "peak_bytes")}
    return Memory(file_bytes, **sizes, failed=reply.get("failed") or failed)


def death(code: int, stderr: str) -> str | None:
    """Say in words how a child process ended, or None for a good end."""
    if code == 0:
        return None
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "it wrote no error")
    if code > 0:
        return f"the child process ended with code {code}: {last}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = ", most likely because memory ran out" if name == "SIGKILL" else ""
    return f"the child process was killed by {name}{hint}"


def _check(target: Target, runtime: str, inputs: Inputs | None) -> Path:
    opener(runtime)
    if runtime not in MODULES:
        raise BadPlan(f"peak memory in runtime {runtime!r} cannot be measured, wanted one of {', '.join(MODULES)}")
    if callable(target):
        raise BadPlan(f"{target!r}: peak memory is measured in a child process, wanted a path to an ONNX file")
    path = Path(target)
    if not path.is_file():
        raise BadPlan(f"{path}: no such file; wanted an ONNX file")
    if inputs is not None and not isinstance(inputs, Mapping):
        raise BadPlan(f"{path}: got inputs as a {type(inputs).__name__}, wanted a dict of numpy arrays by input name")
    return path


def _reply(path: Path) -> dict[str, Any]:
    """Read what the child left; a child that dies while it writes leaves its last whole reply, see `memory_child`."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
