"""Do medians agree with independent harnesses?

`truth` takes turns, sample by sample, between the profiler's loop and bare ones that use nothing of `profile/`: one
around ONNX Runtime's Python session, one around its C functions. On a GPU it is the replay of a CUDA graph between two
events.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import interval, table
from shipworthy.benchmarks.profiler_bare import MODELS, CSession, bare_session, c_library, input_of, model_file, timed
from shipworthy.benchmarks.profiler_common import Row, Settings, goal

if TYPE_CHECKING:
    from shipworthy.profile.plan import Plan
    from shipworthy.profile.runners import Runner

AGREEMENT_GOAL = 0.02
BLOCK, SECONDS = 1, 150.0
OURS, PYTHON, C = "this package", "bare Python loop", "bare C loop"
OUR_EVENTS, EVENTS = "the runner's events", "bare loop's events"
_PAIRS = ((OURS, PYTHON), (OURS, C), (OUR_EVENTS, EVENTS))

Block = Callable[[int], Mapping[str, list[int]]]
"""Takes so many samples and returns them by the names of clocks."""


def truth_units(settings: Settings) -> dict[str, tuple[Settings, str]]:
    """Return the models."""
    models = ("resnet20",) if settings.quick else tuple(MODELS)
    return {
        f"truth {model} {settings.device} blocks of {BLOCK}{' quick' if settings.quick else ''}": (settings, model)
        for model in models
    }


def agreement(unit: tuple[Settings, str]) -> Row:
    """Measure one model in turns with all harnesses."""
    settings, model = unit
    with ExitStack() as stack:
        if settings.device == "cuda":
            blocks = _cuda_blocks(stack, model)
        else:
            path = model_file(model, settings.folder)
            blocks = _cpu_blocks(stack, path)
        turns = in_turns(blocks, 2.0 if settings.quick else SECONDS, random.Random(settings.seed))
    medians = {name: median(chain(*found)) / 1e6 for name, found in turns.items()}
    return {
        "experiment": "truth", "model": model, "device": settings.device, "p50_ms": medians,
        "turns": len(next(iter(turns.values()))), "differences": differences(turns),
    }  # fmt: skip


def in_turns(blocks: Sequence[Block], seconds: float, chance: random.Random) -> dict[str, list[list[int]]]:
    """Let blocks take turns in random order for so many seconds, at least once each; return samples by clock and turn.

    Turn i of one clock and turn i of another lie next to each other.
    """
    turns: dict[str, list[list[int]]] = {}
    end, order = time.perf_counter() + seconds, list(blocks)
    while not turns or time.perf_counter() < end:
        chance.shuffle(order)
        for block in order:
            for name, found in block(BLOCK).items():
                turns.setdefault(name, []).append(found)
    return turns


def differences(turns: Mapping[str, Sequence[Sequence[int]]]) -> list[Row]:
    """Return by how much ours differs from each other harness: the ratio of medians turn by turn, with its interval."""
    from shipworthy.profile.stats import median_ratio_interval

    rows: list[Row] = []
    for ours, theirs in _PAIRS:
        if ours in turns and theirs in turns:
            a, b = ([median(samples) for samples in turns[name]] for name in (ours, theirs))
            found = median_ratio_interval(a, b)
            rows.append({"ours": ours, "theirs": theirs, "ratio": found.value, "low": found.low, "high": found.high})
    return rows


def _cpu_blocks(stack: ExitStack, path: Path) -> list[Block]:
    """Return ours and the bare loops; each timed run follows an untimed one, everywhere."""
    import onnxruntime

    from shipworthy.profile.runners import open_runner

    name, x = input_of(path)
    runner = stack.enter_context(open_runner(path, "ort-cpu", _block_plan(), {name: x}))
    run = bare_session(path)
    found: list[Block] = [partial(_ours, runner), lambda count: {PYTHON: timed(run, count, settle=1)}]
    library = c_library()
    if library is not None:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        output = session.get_outputs()[0].name
        bare = CSession(library, path, name, x, output)
        _check_equal(session.run(None, {name: x})[0].ravel()[:8].tolist(), bare.first_outputs(8), path)
        found.append(lambda count: {C: timed(bare.run, count, settle=1)})
    return found


def _check_equal(wanted: Sequence[float], got: Sequence[float], path: Path) -> None:
    scale = max(map(abs, wanted))
    if any(abs(a - b) > 1e-4 * scale for a, b in zip(wanted, got, strict=True)):
        raise SystemExit(f"{path}: through the C functions it gives {got}, through Python {wanted}")


def _ours(runner: Runner, count: int) -> dict[str, list[int]]:
    """Take a block by the loop that `interleave` samples with."""
    from shipworthy.profile.sampling import Turn, sample
    from shipworthy.profile.stopping import ended

    found = sample([Turn(runner.name, runner.run)], runner.plan, ended, time.perf_counter_ns).series[0]
    if len(found) != count:
        raise SystemExit(f"{runner.name}: the loop took {len(found)} rounds, wanted {count}")
    return {OURS: list(found)}


def _block_plan(*, cuda_graph: bool = False) -> Plan:
    """Return a plan of one block."""
    from shipworthy.profile.plan import Plan

    return Plan(min_rounds=BLOCK, max_rounds=BLOCK, cuda_graph=cuda_graph)


def _cuda_blocks(stack: ExitStack, model: str) -> list[Block]:
    """Return ours and a bare loop, each with its own copy of the module and CUDA graph. Not run on a GPU yet."""
    import torch

    import shipworthy as sw
    from shipworthy.profile.runners import open_runner

    loaded = sw.load(MODELS[model])
    inputs = tuple(x[:1].to("cuda") for x in loaded.example_inputs)
    modules = [loaded.copy().module.to("cuda") for _ in range(2)]
    runner = stack.enter_context(open_runner(modules[0], "torch", _block_plan(cuda_graph=True), inputs))
    replay = _captured(torch, modules[1], inputs)
    return [partial(_ours_with_events, runner), partial(_replays, torch, replay)]


def _ours_with_events(runner: Runner, count: int) -> dict[str, list[int]]:
    """Take a block by the runner's own events, and then one by the profiler's loop."""
    from shipworthy.profile.runners import device_time_ns

    events = []
    for _ in range(count):
        runner.run()
        runner.run()
        events.append(device_time_ns(runner))
    return _ours(runner, count) | {OUR_EVENTS: [one for one in events if one is not None]}


def _captured(torch: Any, module: Any, inputs: Sequence[Any]) -> Callable[[], None]:
    """Capture one inference, after the runs on a side stream that torch asks for."""
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                module(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = module(*inputs)

    def replay() -> None:
        graph.replay()
        _ = kept  # its memory is the graph's

    return replay


def _replays(torch: Any, replay: Callable[[], None], count: int) -> dict[str, list[int]]:
    """Take a block by replaying a graph between two events, the host's clock around both."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    host, device = [], []
    for _ in range(count):
        replay()
        torch.cuda.synchronize()
        began = time.perf_counter_ns()
        start.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        host.append(time.perf_counter_ns() - began)
        device.append(int(start.elapsed_time(end) * 1e6))
    return {PYTHON: host, EVENTS: device}


def truth_report(rows: Sequence[Row]) -> str:
    """Return all medians and how far ours are from each."""
    found = [(row, one) for row in rows for one in row["differences"]]
    worst = max(abs(one["ratio"] - 1) for _, one in found)
    lines = [_line(row, one) for row, one in found]
    head = ("model", "ours", "p50 ms", "other", "p50 ms", "difference %, 95 %", "turns")
    return (
        "Sample by sample in turns, in random order; each timed run after an untimed one, batch 1, one thread. The C\n"
        "loop calls ONNX Runtime's C functions through ctypes, from the wheel's own library. The difference is the\n"
        "median over turns of the ratio; p50 is of all samples.\n\n"
        f"{table(head, lines)}\n{goal(f'medians agree within {AGREEMENT_GOAL:.0%}', worst <= AGREEMENT_GOAL)}"
    )


def _line(row: Row, one: Row) -> tuple[str, ...]:
    low, high = (None if one[end] is None else 100 * (one[end] - 1) for end in ("low", "high"))
    medians = row["p50_ms"]
    return (
        row["model"], one["ours"], f"{medians[one['ours']]:.4f}", one["theirs"], f"{medians[one['theirs']]:.4f}",
        interval(100 * (one["ratio"] - 1), low, high, "+.2f"), str(row["turns"]),
    )  # fmt: skip
