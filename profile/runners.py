"""Anything runnable, opened in one runtime: the protocol, and the one table of runtimes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

from .callable_runner import CallableRunner
from .errors import BadPlan, RuntimeAbsent
from .ort_runner import CPU, CUDA, OrtRunner
from .plan import Plan
from .torch_runner import TorchRunner

Target = str | os.PathLike[str] | Callable[..., Any]
"""A file, a callable, or a torch module (which is a callable)."""

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


Opener = Callable[[Any, Plan, Inputs | None], Runner]


def _ort_cpu(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return OrtRunner(target, CPU, plan, inputs)


def _ort_cuda(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    return OrtRunner(target, CUDA, plan, inputs)


def _engine(target: Target, plan: Plan, inputs: Inputs | None) -> Runner:
    raise RuntimeAbsent(
        "runtime tensorrt: this version builds TensorRT engines but does not run them; measure with ort-cpu"
    )


RUNTIMES: dict[str, Opener] = {
    "ort-cpu": _ort_cpu,
    "ort-cuda": _ort_cuda,
    "torch": TorchRunner,
    "callable": CallableRunner,
    "tensorrt": _engine,
    "rtx": _engine,
}


def open_runner(target: Target, runtime: str, plan: Plan, inputs: Inputs | None = None) -> Runner:
    """Open a target in a runtime, with its inputs in place. Use it as a context manager.

    Args:
        target: a path to an ONNX file, a callable, or a torch module in evaluation mode.
        runtime: a key of `RUNTIMES`.
        plan: batch, threads and seed matter here.
        inputs: arrays by name for a file; arguments in order or by name otherwise. Files get random inputs if None.

    Raises:
        RuntimeAbsent: the runtime is not installed, or its device is not there.
        BadPlan: an unknown runtime, a target that this runtime cannot take, or inputs that do not fit.
    """
    return opener(runtime)(target, plan, inputs)


def opener(runtime: str) -> Opener:
    """Return the entry of `RUNTIMES`, or raise BadPlan with the nearest name."""
    if runtime not in RUNTIMES:
        near = difflib.get_close_matches(runtime, RUNTIMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadPlan(f"runtime {runtime!r} is unknown, wanted one of {', '.join(RUNTIMES)}{hint}")
    return RUNTIMES[runtime]
