"""Where the time of one inference goes, layer by layer."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .affinity import bound
from .environment import environment
from .errors import BadPlan
from .layer_profile import Found, Layer, LayerProfile, make_layers
from .layers_engine import profile_engine
from .layers_ort import profile_file
from .layers_torch import profile_module
from .ort_trace import RESOLUTION_NS
from .plan import Plan
from .runners import Inputs, Runner, Target, open_runner, opener

__all__ = ["RUNS", "Layer", "LayerProfile", "profile_layers"]

RUNS = 50
"""Inferences to look at where nothing else is said."""

_Source = Callable[[Runner, Any, Any, int], Found]

_SOURCES: dict[str, tuple[_Source, int]] = {
    "ort-cpu": (profile_file, RESOLUTION_NS),
    "ort-cuda": (profile_file, RESOLUTION_NS),
    "torch": (profile_module, 1),
    "tensorrt": (profile_engine, 1),
    "rtx": (profile_engine, 1),
}
"""What looks into each runtime, and the step of that profiler's clock in nanoseconds."""

_SLOWED, _DISTURBED = 0.1, 1.2  # from here on a reader is told


def profile_layers(
    target: Target, runtime: str = "ort-cpu", plan: Plan | None = None, inputs: Inputs | None = None, runs: int = RUNS
) -> LayerProfile:
    """Measure how long each layer takes, with the runtime's own profiler, and the whole inference without it beside.

    Layers are those that run: of an ONNX file the nodes of the graph as ONNX Runtime optimized it, fused ones included;
    of a module its operators under the path of the module that calls them. Warm-up runs come first and are left out.

    Args:
        target: a path to an ONNX file, a torch module in evaluation mode, or a path to an engine.
        runtime: `ort-cpu`, `ort-cuda`, `torch`, `tensorrt` or `rtx`.
        plan: batch, threads, affinity, seed, warm-up and settle runs matter here; `Plan()` if None.
        inputs: see `open_runner`.
        runs: inferences to look at, at least 1.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: a runtime, plan, target or inputs that cannot be profiled.
        ProfileError: an inference failed, or the profiler's trace does not hold what it should.
    """
    plan = plan or Plan()
    look, step_ns = _source(runtime, plan, runs)
    with bound(plan), open_runner(target, runtime, plan, inputs) as runner:
        where = environment()
        found = look(runner, target, inputs, runs)
    layers = make_layers(found.layers)
    attributed = tuple(sum(one.samples_ns[i] for one in found.layers) for i in range(runs))
    return LayerProfile(
        name=runner.name,
        runtime=runtime,
        file=runner.file,
        sha256=runner.sha256,
        plan=plan,
        environment=where,
        layers=layers,
        plain_ns=tuple(found.plain_ns),
        profiled_ns=tuple(found.profiled_ns),
        attributed_ns=attributed,
        resolution_ns=step_ns,
        notes=(*found.notes, *_notes(found, statistics.median(attributed), sum(one.median_ns for one in layers))),
        details=dict(runner.details),
    )


def _notes(found: Found, attributed_ns: float, medians_ns: float) -> tuple[str, ...]:
    added = statistics.median(found.profiled_ns) / statistics.median(found.plain_ns) - 1
    times = f"all layers of one run together {attributed_ns / 1e6:.4g} ms, their medians {medians_ns / 1e6:.4g} ms"
    notes = {
        f"the profiler made inferences {added:.0%} slower: trust shares rather than times": added > _SLOWED,
        f"runs were disturbed, each in other layers: {times}": attributed_ns > _DISTURBED * medians_ns,
    }
    return tuple(text for text, holds in notes.items() if holds)


def _source(runtime: str, plan: Plan, runs: int) -> tuple[_Source, int]:
    opener(runtime)
    if runtime not in _SOURCES:
        raise BadPlan(f"layers in runtime {runtime!r} cannot be profiled, wanted one of {', '.join(_SOURCES)}")
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise BadPlan(f"profile_layers: got {runs!r} runs, wanted a whole number of at least 1")
    if plan.cuda_graph:
        raise BadPlan("plan.cuda_graph: layers inside a CUDA graph cannot be told apart; set cuda_graph=False")
    if plan.streams > 1:
        raise BadPlan(f"plan.streams: got {plan.streams}; layers are profiled one inference at a time; set streams=1")
    return _SOURCES[runtime]
