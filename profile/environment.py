"""Where a measurement was taken, and which of these facts must be equal for two to be compared."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .affinity import usable_cores
from .devices import gpus

_INSTRUCTION_SETS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "torch": ("torch",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"),
}

_COMPARED = ("system", "machine", "cpu", "logical_cores", "usable_cores", "instruction_sets", "governor", "gpus")
_COMPARED_VERSIONS = ("onnxruntime", "torch", "tensorrt", "tensorrt_rtx")


def environment() -> dict[str, Any]:
    """Describe this machine and process as plain data. Imports no runtime; what cannot be read is None."""
    cpuinfo = _read("/proc/cpuinfo") or ""
    ticks = cpu_ticks()
    return {
        "system": platform.system(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu": cpu_model(cpuinfo) or platform.processor() or None,
        "logical_cores": os.cpu_count(),
        "usable_cores": len(usable_cores()) or os.cpu_count(),
        "instruction_sets": instruction_sets(cpuinfo),
        "memory_bytes": _memory_bytes(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "steal_share": None if ticks is None else steal_share((0, 0), ticks),
        "versions": {name: _version(candidates) for name, candidates in _DISTRIBUTIONS.items()},
        "gpus": gpus(),
    }


def comparison_key(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that must be equal: the processor, its cores and governor, GPUs, and the runtimes' versions."""
    versions = environment.get("versions") or {}
    facts = {name: environment.get(name) for name in _COMPARED}
    return facts | {f"{name} version": versions.get(name) for name in _COMPARED_VERSIONS}


def busy_note(foreign: float | None, environment: Mapping[str, Any]) -> dict[str, bool]:
    """Return the note on a machine that had other work to do, and whether it holds.

    Args:
        foreign: how many cores other processes kept busy, as a watch saw it; None where the system does not tell: then
            the load average decides, in which this process's own work of the last minute is too.
        environment: as `environment` gives it.
    """
    cores = environment["usable_cores"] or 1
    if foreign is None:
        load = (environment["load_average"] or [0.0])[0]
        return {f"the machine was busy before: load {load:.1f} on {cores} usable cores": load > cores / 2}
    return {f"other processes kept {foreign:.1f} of {cores} usable cores busy": foreign > cores / 4}


def cpu_model(cpuinfo: str) -> str | None:
    """Read the processor's name out of the text of `/proc/cpuinfo`."""
    return next((value for key in ("model name", "Hardware", "Model") for value in _values(cpuinfo, key)), None)


def instruction_sets(cpuinfo: str) -> list[str]:
    """Read the instruction sets that decide over fast kernels out of the text of `/proc/cpuinfo`."""
    flags = {flag for key in ("flags", "Features") for value in _values(cpuinfo, key)[:1] for flag in value.split()}
    return [name for name in _INSTRUCTION_SETS if name in flags]


def cpu_ticks() -> tuple[int, int] | None:
    """Return (all, stolen) processor ticks since boot, or None where the system does not tell."""
    words = (_read("/proc/stat") or "").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return None
    # Guest time (fields 9 and 10) is already in user time.
    return sum(int(word) for word in words[1:9]), int(words[8])


def steal_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Return the share of processor time between two readings that the hypervisor gave to others."""
    total = after[0] - before[0]
    return (after[1] - before[1]) / total if total > 0 else 0.0


def _values(text: str, key: str) -> list[str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _memory_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(candidates: tuple[str, ...]) -> str | None:
    for name in candidates:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
