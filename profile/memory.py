"""What one file needs of memory in one runtime, figure by figure, in fresh child processes."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .child import MODULE_FLAGS, Ended, run_to_end
from .device_memory import DeviceMemory
from .devices import GPU_RUNTIMES
from .errors import BadPlan, RuntimeAbsent
from .memory_figures import BY_ALLOCATOR, BY_DIFFERENCE, BY_ENGINE, BY_TORCH, blind_spots
from .memory_figures import Memory as Memory
from .memory_limit import MB
from .nvml import Gpu
from .opening import target_file
from .plan import Plan
from .runners import Inputs, Target, opener
from .weights import file_bytes, read_weights

REQUEST, INPUTS = "request.json", "inputs.npz"

MODULES = {
    "ort-cpu": "onnxruntime",
    "ort-cuda": "onnxruntime",
    "ort-tensorrt": "onnxruntime",
    "torch": "torch",
    "torch-compile": "torch",
    "tensorrt": "tensorrt",
    "rtx": "tensorrt_rtx_bindings",
}
"""What the child imports before it reads `runtime_bytes`, by runtime."""


@dataclass(frozen=True)
class Trial:
    """How often to look, and under which conditions.

    Attributes:
        repeats: fresh processes, one after the other.
        timeout_s: seconds for each.
        limit_bytes: of host memory for the whole process, to imitate a device that has no more; None for no limit.

    Raises:
        BadPlan: a setting is out of its range.
    """

    repeats: int = 3
    timeout_s: float = 120.0
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        _demand("repeats", self.repeats, _is_whole(self.repeats), "a whole number of at least 1")
        _demand("timeout_s", self.timeout_s, 0 < self.timeout_s < math.inf, "a number of seconds above 0")
        if self.limit_bytes is not None:
            _demand("limit_bytes", self.limit_bytes, _is_whole(self.limit_bytes), "a whole number of bytes, or None")


def peak_memory(
    target: Target,
    runtime: str = "ort-cpu",
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    *,
    trial: Trial | None = None,
) -> Memory:
    """Open and run a file a few times in fresh child processes and read their memory.

    A child that dies (out of memory, a signal) or takes too long is a result: see `Memory.failed` and `Memory.fits`.
    The first to fail is the last.

    Args:
        target: a path: an ONNX file, a TensorRT engine, or for torch a `.pt2` file.
        runtime: a key of `MODULES`. Figures of a GPU have not been taken on one yet.
        plan: batch, threads and seed; `Plan()` if None.
        inputs: arrays by name; random if None.
        trial: how often, how long, and with which limit; `Trial()` if None.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: a target or runtime that a child process cannot open, or inputs that do not fit.
    """
    plan, trial = plan or Plan(), trial or Trial()
    path = _check(target, runtime, inputs)
    with tempfile.TemporaryDirectory(prefix="peak-memory-") as name:
        folder = Path(name)
        request = {"target": str(path.absolute()), "runtime": runtime, "plan": asdict(plan), "trace": False}
        if inputs is not None:
            np.savez(folder / INPUTS, **dict(inputs))
        _ask(folder, request | {"limit_bytes": trial.limit_bytes})
        seen, reply = _repeated(folder, runtime, trial, file_bytes(path))
        found = join(seen, trial.limit_bytes)
        if found.failed is None and "providers" in reply:
            _ask(folder, request | {"trace": True, "providers": reply["providers"]})
            found = _with_trace(found, run_to_end(_command(folder), folder, trial.timeout_s))
    weights = read_weights(path)
    found = replace(found, weights_bytes=reply.get("weights_bytes") if weights is None else weights.bytes)
    return replace(found, blind_spots=blind_spots(found, runtime))


def memory_of(ended: Ended, file_bytes: int, device: DeviceMemory | None = None) -> Memory:
    """Make a result of what one child left, and of what it did to the GPU meanwhile."""
    reply = ended.reply
    activation, source = _activation(reply)
    return Memory(
        file_bytes,
        runtime_bytes=reply.get("runtime_bytes"),
        loaded_bytes=reply.get("loaded_bytes"),
        peak_bytes=reply.get("peak_bytes"),
        failed=ended.failed,
        fits=ended.fits,
        activation_bytes=activation,
        activation_source=source,
        device_bytes=None if device is None else device.added_bytes,
        device_process_bytes=None if device is None else device.process_bytes,
        sampling_interval_ms=None if device is None else device.interval_ms,
    )


def join(seen: Sequence[Memory], limit_bytes: int | None) -> Memory:
    """Make one result of several: the one that failed, else the one with the largest peak, with the peaks of all.

    Args:
        seen: at least one; only the last may have failed.
        limit_bytes: that they ran under, or None. A peak beyond it does not fit, though nothing stopped it.
    """
    peaks = tuple(one.peak_bytes for one in seen if one.peak_bytes is not None)
    worst = max(seen, key=lambda one: (one.failed is not None, one.peak_bytes or 0))
    found = replace(worst, peaks=peaks, limit_bytes=limit_bytes)
    within = "" if limit_bytes is None else f" in {limit_bytes / MB:.1f} MB"
    if limit_bytes is not None and found.failed is None and (found.peak_bytes or 0) > limit_bytes:
        found = replace(found, fits=False, failed=f"its peak was {(found.peak_bytes or 0) / MB:.1f} MB")
    if found.fits is False:
        found = replace(found, failed=f"does not fit{within}: {found.failed}")
    return found


def _repeated(folder: Path, runtime: str, trial: Trial, file_bytes: int) -> tuple[list[Memory], dict[str, Any]]:
    """Run children until one fails; return what they were, and the last one's reply."""
    found: list[Memory] = []
    with ExitStack() as stack:
        gpu = _gpu(stack, runtime)
        while True:
            ended, device = _watched(folder, trial, gpu)
            on_gpu = runtime in GPU_RUNTIMES or ended.reply.get("device") == "cuda"
            found.append(memory_of(ended, file_bytes, device if on_gpu else None))
            if ended.failed is not None or len(found) == trial.repeats:
                return found, ended.reply


def _gpu(stack: ExitStack, runtime: str) -> Gpu | None:
    if runtime == "ort-cpu":
        return None
    try:
        return stack.enter_context(Gpu())
    except RuntimeAbsent:
        return None


def _watched(folder: Path, trial: Trial, gpu: Gpu | None) -> tuple[Ended, DeviceMemory | None]:
    if gpu is None:
        return run_to_end(_command(folder), folder, trial.timeout_s), None
    with DeviceMemory(gpu) as device:
        return run_to_end(_command(folder), folder, trial.timeout_s, device.follow), device


def _activation(reply: dict[str, Any]) -> tuple[int | None, str]:
    """Return the most exact of what a child told of activations and workspace, and where it is from."""
    for name, source in (("workspace_bytes", BY_ENGINE), ("allocated_bytes", BY_TORCH)):
        if reply.get(name) is not None:
            return reply[name], source
    if reply.get("running_bytes") is None or reply.get("device") == "cuda":
        return None, ""
    return max(0, reply["running_bytes"] - reply["loaded_bytes"]), BY_DIFFERENCE


def _with_trace(found: Memory, ended: Ended) -> Memory:
    activation = ended.reply.get("activation_bytes")
    if activation is None:
        return found
    return replace(found, activation_bytes=activation, activation_source=BY_ALLOCATOR)


def _ask(folder: Path, request: dict[str, Any]) -> None:
    (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")


def _command(folder: Path) -> list[str]:
    return [sys.executable, *MODULE_FLAGS, f"{__package__}.memory_child", str(folder)]


def _check(target: Target, runtime: str, inputs: Inputs | None) -> Path:
    opener(runtime)
    if runtime not in MODULES:
        raise BadPlan(f"peak memory in runtime {runtime!r} cannot be measured, wanted one of {', '.join(MODULES)}")
    if not isinstance(target, str | os.PathLike):
        raise BadPlan(f"{target!r}: peak memory is measured in a child process, wanted a path to a model file")
    path = target_file(target, runtime, "a model file")
    if inputs is not None and not isinstance(inputs, Mapping):
        raise BadPlan(f"{path}: got inputs as a {type(inputs).__name__}, wanted a dict of numpy arrays by input name")
    return path


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _demand(name: str, got: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise BadPlan(f"trial.{name}: got {got!r}, wanted {wanted}")
