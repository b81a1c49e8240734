"""Run a torch module, eagerly or compiled. Imports torch only when one is opened."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, final

from .callable_runner import bind
from .compile_runner import compiled
from .errors import BadPlan, RuntimeAbsent
from .opening import closed, refuse_cuda_graph, transfers_on_cpu, transfers_on_gpu
from .plan import Plan
from .torch_gpu import Call, Copies, GpuClock, captured, moved, place_of

if TYPE_CHECKING:
    from typing import Self


@final
class TorchRunner:
    """Calls a module under `inference_mode` with `plan.threads` threads; waits for the GPU where the module is on one.

    Inputs are put on the module's device at opening. On a GPU `plan.transfers` copies them there and the outputs back
    in each run, and `plan.cuda_graph` replays a captured graph. The thread count is the process's; the previous one
    comes back when the context ends. The GPU path has not been run on a GPU yet.

    Raises:
        RuntimeAbsent: torch, or what compiling needs, is not installed.
        BadPlan: the target is not a module, is in training mode, has no inputs, or cannot be compiled or captured.
    """

    file = None
    sha256 = None
    inputs = "given"

    def __init__(
        self, target: Any, plan: Plan, inputs: Mapping[str, Any] | Sequence[Any] | None, *, compile: bool
    ) -> None:
        self.runtime = "torch-compile" if compile else "torch"
        self._torch = _import_torch(self.runtime)
        self.name, self.plan = type(target).__name__, plan
        _check(self._torch, self.runtime, target, inputs)
        place = place_of(self._torch, target, inputs)
        if place.type == "cpu":
            refuse_cuda_graph(plan, f"{self.runtime} on the CPU")
        self._clock = GpuClock(self._torch, place) if place.type == "cuda" else None
        self.details: dict[str, Any] = {"device": place.type, "version": str(self._torch.__version__)}
        self._threads_before = self._torch.get_num_threads()
        self._torch.set_num_threads(plan.threads)
        try:
            self._work = self._opened(target, inputs, place)
        except BaseException:
            self._torch.set_num_threads(self._threads_before)
            raise

    def run(self) -> None:
        """Do one inference."""
        with self._torch.inference_mode():
            if self._clock is None:
                self._work()
            else:
                self._clock.run(self._work)

    def device_time_ns(self) -> int | None:
        """Return the last run's nanoseconds by the GPU's own clock, or None on the CPU."""
        return None if self._clock is None else self._clock.last_ns()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        """Let go of the module and its graph, and give the threads back."""
        self._work = partial(closed, self.name)
        self._torch.set_num_threads(self._threads_before)

    def _opened(self, target: Any, inputs: Any, place: Any) -> Call:
        if place.type == "cpu":
            self.details["transfers"] = transfers_on_cpu(self.plan)
            return self._call(target, inputs, place)
        # A compiled graph replays on the inputs' own addresses, and copies need tensors that are not the caller's.
        with self._torch.inference_mode():
            there = moved(self._torch, inputs, place)
            call = self._call(target, there, place)
            self.details |= {"transfers": transfers_on_gpu(self.plan), "cuda_graph": self.plan.cuda_graph}
            return Copies(self._torch, there, call()).around(call) if self.plan.transfers else call

    def _call(self, target: Any, inputs: Any, place: Any) -> Call:
        if self.runtime == "torch":
            self.details["mode"] = "eager, inference_mode"
            call = bind(target, inputs)
            return captured(self._torch, call, place, self.name) if self.plan.cuda_graph else call
        found = compiled(self._torch, target, inputs, self.plan.cuda_graph)
        self.details |= {"mode": f"torch.compile, {found.mode}, inference_mode", "compile_s": round(found.seconds, 3)}
        return found.call


def _import_torch(runtime: str) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as fault:
        raise RuntimeAbsent(f"runtime {runtime}: torch is not installed; pip install torch") from fault


def _check(torch: Any, runtime: str, target: Any, inputs: object) -> None:
    if not isinstance(target, torch.nn.Module):
        raise BadPlan(f"{target!r}: runtime {runtime} takes a torch.nn.Module; use ort-cpu for a file, else callable")
    if isinstance(inputs, str) or not isinstance(inputs, Mapping | Sequence) or not inputs:
        raise BadPlan(f"{type(target).__name__}: wanted inputs: a tuple of tensors, or a dict by argument name")
    # Exported graphs always say that they train; their mode is part of their operators.
    if target.training and not isinstance(target, torch.fx.GraphModule):
        raise BadPlan(f"{type(target).__name__}: in training mode a run would change it; call .eval() first")
