"""What building and refitting share in the child process: the log, the device, writing the file."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def kept_log(trt: Any, path: Path, verbose: bool) -> Iterator[Any]:
    """Give a logger for TensorRT that writes to a file and keeps its `errors`; `write` adds a line of ours.

    Args:
        trt: the module.
        path: the file; each line is on disk when it is written, since the process may be killed at any moment.
        verbose: also write the messages of TensorRT's lowest level.
    """
    kinds = trt.ILogger.Severity
    failed = (kinds.ERROR, kinds.INTERNAL_ERROR)

    with path.open("w", encoding="utf-8", buffering=1) as file:

        def begun(self: Any) -> None:
            trt.ILogger.__init__(self)
            self.errors, self.warnings = [], 0

        def write(self: Any, text: str) -> None:
            with suppress(OSError):  # a full disk must not end TensorRT in the middle of a call
                file.write(f"{text}\n")

        def log(self: Any, severity: Any, message: str) -> None:
            if severity == kinds.VERBOSE and not verbose:
                return
            self.write(f"[{severity.name}] {message.strip()}")
            self.warnings += severity == kinds.WARNING
            if severity in failed:
                self.errors.append(" ".join(message.split()))

        yield type("KeptLog", (trt.ILogger,), {"__init__": begun, "log": log, "write": write})()


def gpu_facts() -> dict[str, Any]:
    """Return name, compute capability, driver and CUDA version of the GPU that builds; None for each without one.

    Not run on a GPU yet.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByPciBusId(_bus_id())
        return {
            "gpu": str(nvml.nvmlDeviceGetName(handle)),
            "gpu_compute_capability": "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle)),
            "driver": str(nvml.nvmlSystemGetDriverVersion()),
            "cuda": int(nvml.nvmlSystemGetCudaDriverVersion()),
        }
    except Exception:  # any failure means the same: no device to be tied to
        return {"gpu": None, "gpu_compute_capability": None, "driver": None, "cuda": None}


def _bus_id() -> str:
    """Return the PCI address of CUDA's first GPU; NVML counts in another order, and those that CUDA does not see."""
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    device, text = ctypes.c_int(0), ctypes.create_string_buffer(32)
    code = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    if code or driver.cuDeviceGetPCIBusId(text, len(text), device):
        raise OSError(f"CUDA error {code}")
    return text.value.decode()


def write_plan(path: Path, plan: Any) -> None:
    """Write an engine and see it onto the disk; what could be written of it is removed, so that the log has room.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    try:
        with path.open("wb") as file:
            file.write(plan)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if path.is_file():
            path.unlink()
        raise


def peak_bytes() -> int | None:
    """Return the most resident memory this process had; None outside Linux."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(found[0][1]) * 1024 if found else None
