"""What runners share when they open and close: the file, and what a plan's GPU options mean for them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NoReturn

from .errors import BadPlan, ProfileError
from .plan import Plan


def target_file(target: Any, runtime: str, kind: str) -> Path:
    """Return the file that a runtime is to open.

    Args:
        target: what the user gave.
        runtime: for messages.
        kind: what the file should be, such as `an ONNX file`.

    Raises:
        BadPlan: the target is no path, or there is no such file.
    """
    if not isinstance(target, str | os.PathLike):
        raise BadPlan(f"{target!r}: runtime {runtime} takes a path; use torch for a module, else callable")
    path = Path(target)
    if not path.is_file():
        raise BadPlan(f"{path}: no such file; wanted {kind}")
    return path


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes, in hexadecimal."""
    found = hashlib.sha256()  # hashlib.file_digest came with Python 3.11; this runs on devices that have 3.10
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def closed(name: str) -> NoReturn:
    """Say that a runner is used after its context has ended.

    Raises:
        ProfileError: always.
    """
    raise ProfileError(f"{name}: its runner is closed; open it again with open_runner")


def refuse_cuda_graph(plan: Plan, runtime: str) -> None:
    """Check that a plan asks a runtime that is not on a GPU for no CUDA graph.

    Raises:
        BadPlan: it does.
    """
    if plan.cuda_graph:
        raise BadPlan(
            f"plan.cuda_graph: runtime {runtime} runs nothing here that a CUDA graph can capture; "
            "set cuda_graph=False, or measure on a GPU with ort-cuda, torch, tensorrt or rtx"
        )


def transfers_on_cpu(plan: Plan) -> str:
    """Say what a sample on the CPU includes of copies: `plan.transfers` has no effect there."""
    return "no effect: on the CPU nothing is copied" if plan.transfers else "not included: inputs are in place"


def transfers_on_gpu(plan: Plan) -> str:
    """Say what a sample on a GPU includes of copies between it and the host."""
    if plan.transfers:
        return "included: inputs are copied to the GPU and outputs from it"
    return "not included: inputs and outputs stay on the GPU"
