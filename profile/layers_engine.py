"""Where the time of a TensorRT engine goes, by its `IProfiler`. Not run on a GPU yet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .engine_file import RTX, TENSORRT, import_trt
from .errors import ProfileError
from .layer_costs import Operation, Tensor
from .layer_profile import Found, Seen
from .layer_runs import blocks, sample_runs, timed, warm_up
from .plan import Plan
from .runners import Runner
from .sampling import Turn, collector_off

Times = list[tuple[str, float]]
"""The layers of one inference in order, with milliseconds."""


def profile_engine(runner: Runner, target: Any, inputs: Any, runs: int) -> Found:
    """Run an engine without and with TensorRT's profiler, in turns of several runs each. Not run on a GPU yet.

    Args:
        runner: of the engine, open in `tensorrt` or `rtx`.
        target: the engine.
        inputs: as given to the runner.
        runs: how many inferences to look at.

    Raises:
        ProfileError: an inference failed, or TensorRT reported no layers.
    """
    trt = import_trt(RTX if runner.runtime == RTX.runtime else TENSORRT)
    engine: Any = runner
    return profile_context(trt, engine.context, Turn(runner.name, runner.run), runner.plan, runs)


def profile_context(trt: Any, context: Any, turn: Turn, plan: Plan, runs: int) -> Found:
    """Look into an execution context. Not run on a GPU yet.

    Layers have the names that the engine was built with, and shapes only where it was built with detailed profiling
    verbosity. What they cost is not counted: TensorRT does not tell what a fused layer computes.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx_bindings`.
        context: an `IExecutionContext` that `turn` runs, on one thread.
        turn: one inference that ends when its outputs are there, without a CUDA graph.
        plan: its warm-up and settle runs.
        runs: how many inferences to look at.

    Raises:
        ProfileError: an inference failed, or TensorRT reported no layers.
    """
    listener = layer_listener(trt)
    plain: list[int] = []
    whole: list[int] = []
    times: list[Times] = []
    with collector_off():
        warm_up(turn, plan)
        for count in blocks(runs):
            plain += sample_runs((turn,), plan, count)[0]
            context.profiler = listener
            try:
                for _ in range(count):
                    whole.append(_profiled(turn, plan.settle_runs, listener.heard))
                    times.append(list(listener.heard))
            finally:
                context.profiler = None
    if not all(times):
        raise ProfileError(f"{turn.name}: TensorRT reported no layers; its engine must be built to run without a graph")
    return Found(engine_layers(times, describe(trt, context)), plain, whole)


def layer_listener(trt: Any) -> Any:
    """Return an `IProfiler` that collects what it hears in `heard`."""

    def start(self: Any) -> None:
        trt.IProfiler.__init__(self)
        self.heard = []

    def report_layer_time(self: Any, layer_name: str, ms: float) -> None:
        self.heard.append((layer_name, ms))

    return type("Listener", (trt.IProfiler,), {"__init__": start, "report_layer_time": report_layer_time})()


def describe(trt: Any, context: Any) -> dict[str, dict[str, Any]]:
    """Return what TensorRT tells of the layers by name; nothing for an engine that was built to tell only names."""
    inspector = context.engine.create_engine_inspector()
    inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", []) if text else []
    return {layer["Name"]: layer for layer in layers if isinstance(layer, dict) and "Name" in layer}


def engine_layers(times: Sequence[Times], described: dict[str, dict[str, Any]]) -> list[Seen]:
    """Sum up each layer by inference, in the order of the first one; of equal names the n-th is one layer."""
    runs = [_by_layer(run) for run in times]
    return [_layer(name, described.get(name, {}), [run.get((name, n), 0) for run in runs]) for name, n in runs[0]]


def _by_layer(run: Times) -> dict[tuple[str, int], int]:
    counts: Counter[str] = Counter()
    found = {}
    for name, ms in run:
        counts[name] += 1
        found[name, counts[name]] = round(ms * 1e6)
    return found


def _layer(name: str, told: dict[str, Any], samples_ns: list[int]) -> Seen:
    inputs, outputs = (tuple(map(_tensor, told.get(key, []))) for key in ("Inputs", "Outputs"))
    made = Operation(str(told.get("LayerType", "layer")), inputs, outputs, complete=False)
    return Seen(name, "TensorRT", made, tuple(samples_ns))


def _tensor(told: dict[str, Any]) -> Tensor:
    """Read a shape and a type, which TensorRT writes as the end of a text such as `Row major linear FP32`."""
    kinds = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32"}
    text = str(told.get("Format/Datatype") or told.get("Datatype") or told.get("Format") or "")
    found = next((kind for word, kind in kinds.items() if word in text.upper()), "unknown")
    return Tensor(found, tuple(int(size) for size in told.get("Dimensions", ())))


def _profiled(turn: Turn, settle_runs: int, heard: Times) -> int:
    """Run, then run again with nothing heard before, and return the nanoseconds of the latter."""
    for _ in range(settle_runs):
        turn.run()
    heard.clear()
    return timed(turn.run)
