"""Compile a torch module for its preset inputs."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import Any

from .callable_runner import bind
from .errors import BadPlan, RuntimeAbsent
from .torch_gpu import Call, first_line

_TOOLS_MISSING = ("InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton")
_RUNS = 3  # with CUDA graphs the first run warms up, the second records and the third replays


@dataclass(frozen=True)
class Compiled:
    """A compiled call, the mode of `torch.compile`, and the seconds that opening it took."""

    call: Call
    mode: str
    seconds: float


def compiled(torch: Any, module: Any, inputs: Any, cuda_graph: bool) -> Compiled:
    """Compile a module as one graph for the shapes of its inputs, and run it until it is steady.

    The seconds are what this process waited: what torch kept of an earlier compilation on disk makes them fewer. A
    module that torch can only compile in pieces is refused, since the rest would run eagerly and nobody would know.

    Args:
        torch: the module.
        module: in evaluation mode.
        inputs: on the module's device, by name or in order.
        cuda_graph: mode "reduce-overhead", with an error where torch would leave the CUDA graphs out.

    Raises:
        RuntimeAbsent: there is no C++ compiler (for a GPU: no Triton, or a GPU too old for it).
        BadPlan: torch cannot compile the module as one graph.
    """
    mode = "reduce-overhead" if cuda_graph else "default"
    call = bind(torch.compile(module, fullgraph=True, dynamic=False, **_settings(torch, cuda_graph)), inputs)
    work = _stepping(torch, call) if cuda_graph else call
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            for _ in range(_RUNS):
                work()
    except Exception as fault:
        raise _refusal(type(module).__name__, fault) from fault
    return Compiled(work, mode, time.perf_counter() - start)


def _settings(torch: Any, cuda_graph: bool) -> dict[str, Any]:
    """Return settings of `torch.compile`: "reduce-overhead" by its option, since a mode and options do not go together.

    Modules of one class share a budget of recompilations unless each has its own; before that setting came, the ninth
    width of a net was refused.
    """
    own = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    settings: dict[str, Any] = {"isolate_recompiles": True} if own else {}
    if cuda_graph:
        settings["options"] = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True}
    return settings


def _stepping(torch: Any, call: Call) -> Call:
    def work() -> Any:
        # Without the mark torch takes the next run for a part of this one, and keeps its outputs.
        torch.compiler.cudagraph_mark_step_begin()
        return call()

    return work


def _refusal(name: str, fault: Exception) -> BadPlan:
    cause = getattr(fault, "inner_exception", None) or fault
    if type(cause).__name__ in _TOOLS_MISSING:
        return RuntimeAbsent(f"runtime torch-compile: {first_line(cause)}; install what is missing, or use torch")
    remedy = "change the module, or measure it with runtime torch"
    return BadPlan(f"{name}: torch.compile cannot take it as one graph ({first_line(fault)}); {remedy}")
