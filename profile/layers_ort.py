"""Where the time of an ONNX file goes in ONNX Runtime, by its own profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import BadPlan, ProfileError
from .layer_profile import Found, Seen
from .layer_runs import sample_runs, warm_up
from .ort_binding import feeds_of, on_device, on_host
from .ort_faults import refuse_crash
from .ort_graph import Graph, Node, facts, match, operation, read_graph
from .ort_modules import module_of, producers
from .ort_session import CPU, CUDA, Device, import_ort, session_options
from .ort_trace import Key, Ran, inferences
from .plan import Plan
from .runners import Runner
from .sampling import Turn, collector_off

WARM_RUNS = 10
"""Runs with the profiler before the first that counts; each is in its trace, so that they are few."""

GRAPH = "optimized.onnx"
"""The graph that ONNX Runtime runs, in the folder of a session that traces."""


def profile_file(runner: Runner, target: Any, inputs: Any, runs: int) -> Found:
    """Run a file with and without ONNX Runtime's profiler, in turns.

    Args:
        runner: of the file, open in `ort-cpu` or `ort-cuda`.
        target: the file.
        inputs: as given to the runner.
        runs: how many inferences to look at.

    Raises:
        BadPlan: ONNX Runtime cannot load the file.
        ProfileError: an inference failed, or the trace does not hold what it should.
    """
    device, plan = CUDA if runner.runtime == CUDA.runtime else CPU, runner.plan
    with tempfile.TemporaryDirectory(prefix="layers-") as name:
        session = profiling_session(Path(target), device, plan, Path(name))
        plain, whole = _sample(runner, prepared(session, device, plan, inputs), runs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph, origin = read_graph(Path(name) / GRAPH), read_graph(Path(target))
    kept = _timed(list(inferences(events)), runs, plan.settle_runs, runner.name)
    _check_device(kept[0], runner.name)
    notes = () if graph is not None else ("the onnx package is not installed, so that costs are not counted",)
    return Found(_seen(kept, graph, origin), plain, whole, notes)


def profiling_session(path: Path, device: Device, plan: Plan, folder: Path) -> Any:
    """Open a session that traces each run, and writes its optimized graph to `optimized.onnx` in the folder.

    Raises:
        BadPlan: ONNX Runtime cannot load the file.
    """
    ort = import_ort(device)
    refuse_crash(ort, path, device)
    options = session_options(ort, device, plan)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    options.optimized_model_filepath = str(folder / GRAPH)
    try:
        return ort.InferenceSession(str(path), options, providers=list(device.providers))
    except Exception as fault:
        raise BadPlan(f"{path}: ONNX Runtime {ort.__version__} cannot profile it: {fault}") from fault


def prepared(session: Any, device: Device, plan: Plan, inputs: Any) -> Callable[[], Any]:
    """Return one inference as a call, its inputs in place; random ones if None."""
    ort, feeds = import_ort(device), feeds_of(session, plan, inputs, device.runtime)
    return on_device(ort, session, feeds, plan) if device.on_gpu else on_host(ort, session, feeds)


def _sample(runner: Runner, run: Callable[[], Any], runs: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return nanoseconds without the profiler and with it, of inferences that took turns."""
    turns, plan = (Turn(runner.name, runner.run), Turn(f"{runner.name} with the profiler", run)), runner.plan
    with collector_off():
        warm_up(turns[0], plan)
        for _ in range(WARM_RUNS):
            run()
        plain, profiled = sample_runs(turns, plan, runs)
    return plain, profiled


def _timed(found: list[list[Ran]], runs: int, settle_runs: int, name: str) -> list[list[Ran]]:
    """Return the inferences that were timed: after the warm-up, one in every `settle_runs` + 1."""
    kept = found[WARM_RUNS:][settle_runs :: settle_runs + 1]
    if len(kept) != runs:
        raise ProfileError(
            f"{name}: ONNX Runtime's trace holds {len(kept)} whole timed inferences, wanted {runs}; "
            "it keeps a million events: ask for fewer runs"
        )
    return kept


def _seen(kept: list[list[Ran]], graph: Graph | None, origin: Graph | None) -> list[Seen]:
    """Sum up each node's calls by inference, in the order in which nodes first ran."""
    nodes: dict[Key, tuple[Ran, Node | None]] = {}
    for ran in kept:
        if any(one.key not in nodes for one in ran):
            nodes = {one.key: (one, node) for one, node in zip(ran, match(graph, ran), strict=True)} | nodes
    times, made_by = [_by_node(ran) for ran in kept], producers(origin)
    return [
        replace(_layer(one, node, [each.get(key, []) for each in times]), module=module_of(node, made_by))
        for key, (one, node) in nodes.items()
    ]


def _layer(one: Ran, node: Node | None, calls: list[list[int]]) -> Seen:
    made = operation(one, node)
    samples = tuple(map(sum, calls))
    return Seen(one.name, one.provider, made, samples, max(map(len, calls)), facts(one, node, made.inputs))


def _by_node(ran: Iterable[Ran]) -> dict[Key, list[int]]:
    found: dict[Key, list[int]] = {}
    for one in ran:
        found.setdefault(one.key, []).append(one.own_ns if one.device_ns is None else one.device_ns)
    return found


def _check_device(ran: list[Ran], name: str) -> None:
    """Refuse a trace without the GPU's own times: a node's time on the host is that of its launch."""
    on_gpu = [one for one in ran if one.provider == CUDA.provider]
    if on_gpu and all(one.device_ns is None for one in on_gpu):
        raise ProfileError(
            f"{name}: this onnxruntime records launches, not kernels, on a GPU, so that layers cannot be timed; "
            "profile the module in torch, or an engine"
        )
