"""The two ceilings of a device, measured there, and where a layer stands below them.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures"
(2009). We differ in that the roof over a layer is that of the smallest memory that holds all it touches: data that is
still in a cache is faster there than the main memory's roof allows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .child import MODULE_FLAGS, death
from .environment import environment
from .errors import BadPlan, ProfileError, RuntimeAbsent
from .layer_profile import Layer
from .roofline_child import REPLY, REQUEST
from .runners import opener

SCHEMA = 1
Bound = Literal["compute", "memory", "overhead"]

OVERHEAD_SHARE = 0.1
"""Below this share of what the roof allows, neither ceiling is what holds a layer back."""

DISPATCHES = 2
"""A layer shorter than so many dispatches is mostly dispatch, whatever its share."""

_PLACES = {"ort-cpu": "ort-cpu", "torch": "torch"} | dict.fromkeys(("ort-cuda", "tensorrt", "rtx"), "cuda")
_TYPES = {"ort-cpu": ("float32", "int8"), "torch": ("float32",), "cuda": ("float32", "float16", "bfloat16", "int8")}
_WHOLE_NUMBERS = ("int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Peak:
    """The most operations per second of one type, and what reached them."""

    dtype: str
    flops_per_s: float
    how: str


@dataclass(frozen=True)
class MemoryLevel:
    """The most bytes per second at one level of memory; it holds so many bytes, or everything (None)."""

    name: str
    holds_bytes: int | None
    bytes_per_s: float
    how: str


@dataclass(frozen=True)
class Roofline:
    """What a device reached, as far as it was tried.

    Attributes:
        runtime: whose kernels were tried.
        threads: of the processor.
        peaks: one per type.
        levels: from the smallest on; the last holds everything.
        dispatch_ns: what one operator costs that has nothing to do.
        environment: where it was measured.
        tries: every kernel and size, with what it reached; the ceilings are the best of them.
        notes: what a reader should know.
    """

    runtime: str
    threads: int
    peaks: tuple[Peak, ...]
    levels: tuple[MemoryLevel, ...]
    dispatch_ns: float
    environment: dict[str, Any]
    tries: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def peak(self, dtype: str) -> Peak | None:
        """Return the ceiling for a type, for whole numbers but int8 that of float32; None if it was not tried."""
        wanted = "float32" if dtype in _WHOLE_NUMBERS else dtype
        return next((peak for peak in self.peaks if peak.dtype == wanted), None)

    def level(self, working_set_bytes: float) -> MemoryLevel:
        """Return the smallest level that holds so many bytes."""
        return next(one for one in self.levels if one.holds_bytes is None or working_set_bytes <= one.holds_bytes)

    def attainable(self, intensity: float, dtype: str, working_set_bytes: float) -> float | None:
        """Return the operations per second under both ceilings at so many operations per byte; None without a peak."""
        peak = self.peak(dtype)
        return None if peak is None else min(peak.flops_per_s, intensity * self.level(working_set_bytes).bytes_per_s)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the schema version."""
        return {"schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class Placement:
    """Where a layer stands.

    Attributes:
        bound: `compute` or `memory`, whichever roof is nearer; `overhead` where both are far: below `OVERHEAD_SHARE`,
            or shorter than `DISPATCHES` dispatches. The time then goes into dispatch, or into a kernel that uses
            neither unit well.
        share: of what the roof allows, 1 on the roof. A little above 1 means that the layer beat what was tried.
        level: the memory whose roof it is.
        least_ns: the time that the roof allows.
    """

    bound: Bound
    share: float
    level: str
    least_ns: float


def place(layer: Layer, roofline: Roofline) -> Placement | None:
    """Say what holds a layer back.

    The roof is taken as a time: as long as its operations take at the peak, or its bytes at the bandwidth, whichever is
    longer. That is the attainable rate of the roofline, and it holds for layers without operations too.

    Returns:
        None where the layer's operations or bytes are not counted, or its type was not tried.
    """
    peak = roofline.peak(layer.dtype)
    if layer.flops is None or layer.bytes is None or (peak is None and layer.flops):
        return None
    level = roofline.level(layer.bytes / layer.calls)
    compute_ns = 0.0 if peak is None else layer.flops / peak.flops_per_s * 1e9
    memory_ns = layer.bytes / level.bytes_per_s * 1e9
    least_ns = max(compute_ns, memory_ns)
    share = least_ns / layer.median_ns if layer.median_ns else 0.0
    short = layer.median_ns < DISPATCHES * roofline.dispatch_ns * layer.calls
    bound: Bound = "compute" if compute_ns >= memory_ns else "memory"
    return Placement("overhead" if short or share < OVERHEAD_SHARE else bound, share, level.name, least_ns)


def measure_roofline(
    threads: int = 1,
    types: Sequence[str] = ("float32", "int8"),
    runtime: str = "ort-cpu",
    *,
    seconds: float = 0.2,
    timeout_s: float = 300.0,
) -> Roofline:
    """Measure the ceilings in a fresh child process whose libraries may use so many threads and no more.

    Computation is tried with large products of matrices in the runtime that runs the model; memory with kernels like
    STREAM's in the second and third cache and in main memory. A ceiling is the best of all tries. On a GPU torch stands
    in for every runtime; that path has not been run on a GPU yet.

    Args:
        threads: of the processor.
        types: of `float32`, `int8`, on a GPU also `float16` and `bfloat16`. Those that the runtime lacks are noted.
        runtime: `ort-cpu`, `torch`, or for a GPU `ort-cuda`, `tensorrt` or `rtx`.
        seconds: for each of about twenty tries.
        timeout_s: seconds for the child.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: a runtime or type that cannot be tried.
        ProfileError: the child failed.
    """
    place = _place(runtime, threads, types)
    there = tuple(name for name in types if name in _TYPES[place])
    request = {"place": place, "types": there, "threads": threads, "seconds": seconds}
    reply = _ask_child(request, timeout_s)
    missing = [name for name in types if name not in there]
    notes = [f"{', '.join(missing)}: not tried, {runtime} has no such product here"] if missing else []
    if not reply["caches_known"]:
        notes.append("the system does not tell the sizes of its caches; usual ones were taken")
    return Roofline(
        runtime=runtime,
        threads=threads,
        peaks=tuple(_best_peak(reply["peaks"], name) for name in there),
        levels=_best_levels(reply["memory"], reply["holds"]),
        dispatch_ns=max(0.0, float(reply["dispatch_ns"])),
        environment=environment(),
        tries=(*reply["peaks"], *reply["memory"]),
        notes=tuple(notes),
    )


def _place(runtime: str, threads: int, types: Sequence[str]) -> str:
    opener(runtime)
    if runtime not in _PLACES:
        raise BadPlan(f"a roofline for runtime {runtime!r} cannot be measured, wanted one of {', '.join(_PLACES)}")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise BadPlan(f"roofline: got {threads!r} threads, wanted a whole number of at least 1")
    known = _TYPES["cuda"]
    unknown = [name for name in types if name not in known]
    if unknown or not types:
        raise BadPlan(f"roofline: got types {list(types)}, wanted some of {', '.join(known)}")
    return _PLACES[runtime]


def _ask_child(request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    command = [sys.executable, *MODULE_FLAGS, f"{__package__}.roofline_child"]
    threads = dict.fromkeys(_THREADS, "1" if request["place"] != "torch" else str(request["threads"]))
    with tempfile.TemporaryDirectory(prefix="roofline-") as name:
        folder = Path(name)
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        try:
            done = subprocess.run(
                [*command, name],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                env=os.environ | threads,
            )
        except subprocess.TimeoutExpired as fault:
            raise ProfileError(f"roofline: the child process did not end within {timeout_s:g} s") from fault
        reply = folder / REPLY
        found = json.loads(reply.read_text(encoding="utf-8")) if reply.is_file() else {}
    if "refused" in found:
        raise (RuntimeAbsent if found.get("absent") else BadPlan)(found["refused"])
    failed = found.get("failed") or death(done.returncode, done.stderr)
    if failed or not found:
        raise ProfileError(f"roofline: {failed or 'the child process left no answer'}")
    return dict(found)


def _best_peak(tries: Sequence[Mapping[str, Any]], dtype: str) -> Peak:
    best = max((one for one in tries if one["dtype"] == dtype), key=lambda one: float(one["flops_per_s"]))
    return Peak(dtype, best["flops_per_s"], best["kernel"])


def _best_levels(tries: Sequence[Mapping[str, Any]], holds: Mapping[str, int]) -> tuple[MemoryLevel, ...]:
    """Return the best of each level. A level is no slower than those beyond it, however a busy machine measured it."""
    best: list[MemoryLevel] = []
    for name in reversed(list(dict.fromkeys(one["level"] for one in tries))):
        one = max((one for one in tries if one["level"] == name), key=lambda one: float(one["bytes_per_s"]))
        how = f"{one['kernel']}, {one['bytes'] / 2**20:.4g} MiB"
        if best and best[-1].bytes_per_s > one["bytes_per_s"]:
            best.append(MemoryLevel(name, holds.get(name), best[-1].bytes_per_s, f"as {best[-1].name}"))
        else:
            best.append(MemoryLevel(name, holds.get(name), one["bytes_per_s"], how))
    return tuple(reversed(best))
