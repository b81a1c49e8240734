"""Which NVIDIA devices are here: asked of the driver itself, without any package."""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def cuda_absent() -> str | None:
    """Say why no CUDA device can be used here, or None where one can."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver: Any = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver is installed ({library} not found)"
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"the NVIDIA driver does not work (CUDA error {code})"
    return None if count.value else "the NVIDIA driver sees no GPU"


def gpus() -> list[dict[str, Any]]:
    """List GPUs by name, memory and driver through NVML; empty without pynvml, a driver or a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        # pynvml raises its own errors when there is no driver; to this list every one of them means "none".
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return [
            {
                "name": _text(pynvml.nvmlDeviceGetName(handle)),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                "driver": driver,
            }
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
