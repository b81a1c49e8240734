"""Which runtimes can measure here, and why the others cannot."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

from .devices import cuda_absent
from .engine_file import RTX, TENSORRT, Flavour
from .errors import RuntimeAbsent
from .ort_session import CPU, CUDA, Device, import_ort
from .ort_session import TENSORRT as ORT_TENSORRT


class RuntimeState(NamedTuple):
    """A runtime, whether it can be used to measure here, and its version or the reason why not."""

    name: str
    usable: bool
    note: str


def runtimes() -> list[RuntimeState]:
    """Look at every runtime. Imports onnxruntime and nothing heavier."""
    return [RuntimeState(name, *look()) for name, look in _LOOKS.items()]


def _ort(device: Device) -> tuple[bool, str]:
    try:
        return True, str(import_ort(device).__version__)
    except RuntimeAbsent as fault:
        return False, str(fault)


def _torch() -> tuple[bool, str]:
    if importlib.util.find_spec("torch") is None:
        return False, "not installed; pip install torch"
    device = "CPU only" if cuda_absent() else "CPU and GPU"
    return True, f"{metadata.version('torch')} ({device})"


def _torch_compile() -> tuple[bool, str]:
    usable, note = _torch()
    compiler = os.environ.get("CXX") or _CXX.get(sys.platform, "g++")
    if usable and shutil.which(compiler) is None:
        return False, f"torch {note}; the C++ compiler {compiler} is not there; install it, or name another in CXX"
    return usable, note


def _engine(flavour: Flavour, distribution: str) -> tuple[bool, str]:
    if importlib.util.find_spec(flavour.module) is None:
        return False, f"not installed; install the extra '{flavour.runtime}'"
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    why = cuda_absent() or _bindings_absent()
    if why is None:
        return True, version
    return False, f"{version} is installed and can build engines; it cannot run them here: {why}"


def _bindings_absent() -> str | None:
    try:
        metadata.version("cuda-bindings")
    except metadata.PackageNotFoundError:
        return "cuda-bindings is not installed; pip install cuda-bindings"
    return None


_CXX = {"darwin": "clang++", "win32": "cl"}

_LOOKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "ort-cpu": lambda: _ort(CPU),
    "ort-cuda": lambda: _ort(CUDA),
    "ort-tensorrt": lambda: _ort(ORT_TENSORRT),
    "torch": _torch,
    "torch-compile": _torch_compile,
    "tensorrt": lambda: _engine(TENSORRT, "tensorrt"),
    "rtx": lambda: _engine(RTX, "tensorrt-rtx-cu13-bindings"),
}
