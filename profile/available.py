"""Which runtimes can measure here, and why the others cannot."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

from .devices import cuda_absent
from .errors import RuntimeAbsent
from .ort_runner import CPU, CUDA, import_ort


class RuntimeState(NamedTuple):
    """A runtime, whether it can be used to measure here, and its version or the reason why not."""

    name: str
    usable: bool
    note: str


def runtimes() -> list[RuntimeState]:
    """Look at every runtime. Imports onnxruntime and nothing heavier."""
    return [RuntimeState(name, *look()) for name, look in _LOOKS.items()]


def _ort_cpu() -> tuple[bool, str]:
    try:
        return True, str(import_ort(CPU).__version__)
    except RuntimeAbsent as fault:
        return False, str(fault)


def _ort_cuda() -> tuple[bool, str]:
    try:
        return True, str(import_ort(CUDA).__version__)
    except RuntimeAbsent as fault:
        return False, str(fault)


def _torch() -> tuple[bool, str]:
    if importlib.util.find_spec("torch") is None:
        return False, "not installed; pip install torch"
    device = "CPU only" if cuda_absent() else "CPU and GPU"
    return True, f"{metadata.version('torch')} ({device})"


def _tensorrt() -> tuple[bool, str]:
    return _engine("tensorrt", "tensorrt", "tensorrt")


def _rtx() -> tuple[bool, str]:
    return _engine("tensorrt_rtx_bindings", "tensorrt-rtx-cu13-bindings", "rtx")


def _engine(module: str, distribution: str, extra: str) -> tuple[bool, str]:
    if importlib.util.find_spec(module) is None:
        return False, f"not installed; install the extra '{extra}'"
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    absent = cuda_absent()
    why = "running engines is not supported yet" if absent is None else absent
    return False, f"{version} is installed and can build engines; it cannot run them here: {why}"


_LOOKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "ort-cpu": _ort_cpu,
    "ort-cuda": _ort_cuda,
    "torch": _torch,
    "tensorrt": _tensorrt,
    "rtx": _rtx,
}
