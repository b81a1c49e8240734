"""Anything runnable, opened in one runtime: the protocol, and the one table of runtimes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .callable_runner import CallableRunner
from .command_runner import CommandRunner
from .devices import GPU_RUNTIMES
from .engine_file import RTX, TENSORRT
from .engine_runner import EngineRunner
from .errors import BadPlan
from .ort_runner import OrtRunner
from .ort_session import CPU, CUDA
from .ort_session import TENSORRT as ORT_TENSORRT
from .plan import Plan
from .torch_runner import TorchRunner

if TYPE_CHECKING:
    from typing import Self

Target = str | os.PathLike[str] | Callable[..., Any] | Sequence[str]
"""A file, a callable, a torch module (which is a callable), or a command line, whole or as its words."""

Inputs = Mapping[str, Any] | Sequence[Any]
"""By name, or in order for a callable and a torch module."""


class Runner(Protocol):
    """One inference on preset inputs, ready from construction until the context ends.

    Attributes:
        name: for people: the file's or function's name.
        runtime: a key of `RUNTIMES`.
        plan: what it was opened with.
        file: the path as given, or None.
        sha256: of the file's bytes, or None.
        inputs: "random" or "given".
        details: facts about the session, such as providers, threads and what a sample includes.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - described above
    @property
    def runtime(self) -> str: ...  # noqa: D102 - described above
    @property
    def plan(self) -> Plan: ...  # noqa: D102 - described above
    @property
    def file(self) -> str | None: ...  # noqa: D102 - described above
    @property
    def sha256(self) -> str | None: ...  # noqa: D102 - described above
    @property
    def inputs(self) -> str: ...  # noqa: D102 - described above
    @property
    def details(self) -> dict[str, Any]: ...  # noqa: D102 - described above

    def run(self) -> None:
        """Do one inference and return when its result is there."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *fault: object) -> None: ...


@runtime_checkable
class HasDeviceClock(Protocol):
    """A runner that can say how long its last run took by the device's own clock."""

    def device_time_ns(self) -> int | None:
        """Return nanoseconds, or None where the runner works on the CPU."""


def device_time_ns(runner: Runner) -> int | None:
    """Return what the last run took by the device's own clock, in nanoseconds.

    A GPU notes two times itself, before and after the run's work: they leave out the host's calls and its waiting, and
    include copies where `plan.transfers` does.

    Returns:
        None where there is no such clock: on the CPU, and in ONNX Runtime, which keeps its stream to itself.
    """
    return runner.device_time_ns() if isinstance(runner, HasDeviceClock) else None


def on_gpu(runner: Runner) -> bool:
    """Tell whether a runner's inferences run on a GPU."""
    return runner.runtime in GPU_RUNTIMES or runner.details.get("device") == "cuda"


Opener = Callable[[Any, Plan, Inputs | None], Runner]


def _ort_cpu(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return OrtRunner(target, CPU, plan, inputs)


def _ort_cuda(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return OrtRunner(target, CUDA, plan, inputs)


def _ort_tensorrt(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return OrtRunner(target, ORT_TENSORRT, plan, inputs)


def _torch(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return TorchRunner(target, plan, inputs, compile=False)


def _torch_compile(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return TorchRunner(target, plan, inputs, compile=True)


def _tensorrt(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return EngineRunner(target, TENSORRT, plan, inputs)


def _rtx(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return EngineRunner(target, RTX, plan, inputs)


RUNTIMES: dict[str, Opener] = {
    "ort-cpu": _ort_cpu,
    "ort-cuda": _ort_cuda,
    "ort-tensorrt": _ort_tensorrt,
    "torch": _torch,
    "torch-compile": _torch_compile,
    "tensorrt": _tensorrt,
    "rtx": _rtx,
    "callable": CallableRunner,
    "command": CommandRunner,
}


def open_runner(target: Target, runtime: str, plan: Plan, inputs: Inputs | None = None) -> Runner:
    """Open a target in a runtime, with its inputs in place. Use it as a context manager.

    Args:
        target: a path to an ONNX file or an engine, a torch module in evaluation mode, a callable, or a command line.
        runtime: a key of `RUNTIMES`.
        plan: batch, threads, seed, and on a GPU transfers and CUDA graph matter here.
        inputs: arrays by name for a file; arguments in order or by name otherwise. Files get random inputs if None.

    Raises:
        RuntimeAbsent: the runtime is not installed, or its device is not there.
        BadPlan: an unknown runtime, a target that this runtime cannot take, inputs that do not fit, or a CUDA graph
            of what is not on a GPU.
        ProfileError: a first run on a GPU failed.
    """
    return opener(runtime)(target, plan, inputs)


def opener(runtime: str) -> Opener:
    """Return the entry of `RUNTIMES`, or raise BadPlan with the nearest name."""
    if runtime not in RUNTIMES:
        near = difflib.get_close_matches(runtime, RUNTIMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadPlan(f"runtime {runtime!r} is unknown, wanted one of {', '.join(RUNTIMES)}{hint}")
    return RUNTIMES[runtime]
