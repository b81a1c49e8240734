"""The builder's configuration: what was asked for as flags, limits, targets and caches of TensorRT.

Runs in the child process of a build; the module of TensorRT comes as a parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .engine_network import Profile, Refused

_HARDWARE = {"ampere+": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}


def configure(trt: Any, config: Any, job: dict[str, Any]) -> list[str]:
    """Set everything but profiles and caches; return the names of the flags that were set.

    Raises:
        Refused: this TensorRT does not know one of them.
    """
    flags = _flags(job)
    for name in flags:
        config.set_flag(_member(trt.BuilderFlag, name, "the builder's flag"))
    if not job["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    if job["optimization_level"] is not None:
        config.builder_optimization_level = job["optimization_level"]
    if job["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    if job["hardware"] != "none":
        level = _member(trt.HardwareCompatibilityLevel, _HARDWARE[job["hardware"]], "the hardware compatibility")
        config.hardware_compatibility_level = level
    _set_targets(trt, config, job["compute_capabilities"])
    # Without it the inspector tells names alone; the engine's kernels are the same.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    return ["STRONGLY_TYPED", *flags]


def _flags(job: dict[str, Any]) -> list[str]:
    flags = ["STRIP_PLAN"] if job["strip"] else []
    # TensorRT for RTX documents stripping together with REFIT; TensorRT loses accuracy by REFIT and takes the same
    # weights back with REFIT_IDENTICAL.
    if job["refittable"] or (job["strip"] and job["flavour"] == "rtx"):
        flags.append("REFIT")
    elif job["strip"]:
        flags.append("REFIT_IDENTICAL")
    return [*flags, *(["VERSION_COMPATIBLE"] if job["version_compatible"] else [])]


def _set_targets(trt: Any, config: Any, capabilities: list[str]) -> None:
    if not capabilities:
        return
    kinds = [_member(trt.ComputeCapability, f"SM{one.replace('.', '')}", "compute capability") for one in capabilities]
    config.num_compute_capabilities = len(kinds)
    for index, kind in enumerate(kinds):
        if not config.set_compute_capability(kind, index):
            raise Refused(f"compute capability {capabilities[index]} is not known to this version")


def _member(kind: Any, name: str, what: str) -> Any:
    """Return a member of one of TensorRT's enumerations.

    Raises:
        Refused: there is none of this name.
    """
    found = getattr(kind, name, None)
    if found is None:
        raise Refused(f"{what} {name} is not known to this version of TensorRT; leave it out")
    return found


def add_profiles(builder: Any, config: Any, profiles: list[Profile]) -> None:
    """Add optimization profiles.

    Raises:
        Refused: TensorRT does not take one.
    """
    for index, shapes in enumerate(profiles):
        made = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            made.set_shape(name, least, usual, most)
        if config.add_optimization_profile(made) < 0:
            raise Refused(f"optimization profile {index} is refused; see the log")


def load_timings(config: Any, path: Path | None) -> Any:
    """Give the builder the timings of earlier builds; one of another device or version is begun anew.

    Returns:
        The cache, None where there is to be none.
    """
    if path is None:
        return None
    held = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(held)
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def capabilities_of(config: Any, job: dict[str, Any], gpu: str | None) -> list[str]:
    """Say which GPUs an engine is for: those asked for, `portable`, or that of the building GPU."""
    if job["flavour"] == "rtx":
        count = config.num_compute_capabilities
        return [_dotted(config.get_compute_capability(index).name) for index in range(count)] or ["portable"]
    return [gpu] if gpu else ["of the building GPU"]


def _dotted(name: str) -> str:
    """Turn `SM86` into `8.6`, and `SM120` into `12.0`."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}" if digits.isdigit() else name
