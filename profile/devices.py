"""Which NVIDIA devices are here: asked of the driver itself, without any package."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from .errors import RuntimeAbsent

GPU_RUNTIMES = ("ort-cuda", "ort-tensorrt", "tensorrt", "rtx")
"""Runtimes that run on a GPU and nowhere else; torch does where its module is."""

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def cuda_absent() -> str | None:
    """Say why no CUDA device can be used here, or None where one can."""
    try:
        driver = _driver()
    except OSError:
        return f"no NVIDIA driver is installed ({_LIBRARY} not found)"
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"the NVIDIA driver does not work (CUDA error {code})"
    return None if count.value else "the NVIDIA driver sees no GPU"


def cuda_bus_id(index: int) -> str:
    """Return the PCI address of the GPU that CUDA calls number `index`, the same in every library.

    CUDA counts the fastest first and leaves out what `CUDA_VISIBLE_DEVICES` hides; others count by address.
    Not run on a GPU yet.

    Raises:
        RuntimeAbsent: there is no driver, or no such GPU.
    """
    absent = cuda_absent()
    if absent is not None:
        raise RuntimeAbsent(absent)
    driver, device, text = _driver(), ctypes.c_int(0), ctypes.create_string_buffer(32)
    code = driver.cuDeviceGet(ctypes.byref(device), index) or driver.cuDeviceGetPCIBusId(text, len(text), device)
    if code:
        raise RuntimeAbsent(f"the NVIDIA driver does not tell of GPU {index} (CUDA error {code})")
    return text.value.decode()


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
                "memory_bytes": _memory_bytes(pynvml, handle),
                "driver": driver,
            }
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def _driver() -> Any:
    return ctypes.CDLL(_LIBRARY)


def _memory_bytes(pynvml: Any, handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:
        # GPUs that share the processor's memory have none of their own to tell of.
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
