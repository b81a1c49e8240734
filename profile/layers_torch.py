"""Where the time of a torch module goes, by torch's own profiler. The GPU path has not been run on a GPU yet."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from .layer_costs import Tensor
from .layer_profile import Found, Seen
from .layer_runs import blocks, sample_runs, timed, warm_up
from .runners import Runner
from .sampling import Turn, collector_off
from .torch_costs import operation, tensor

_RUN, _MODULE = "shipworthy run", "shipworthy module "


@dataclass(frozen=True)
class Call:
    """One operator in one run: the module that called it, torch's event, and what the module gave where it is alone."""

    path: str
    event: Any
    outputs: tuple[Tensor, ...]


def profile_module(runner: Runner, target: Any, inputs: Any, runs: int) -> Found:
    """Run a module without and with torch's profiler, in turns of several runs each.

    Operators are those that a module calls itself, with the time of all that they call; `nn.Linear` is one `linear`.

    Args:
        runner: of the module, open in `torch`.
        target: the module.
        inputs: as given to the runner.
        runs: how many inferences to look at.

    Raises:
        ProfileError: an inference failed.
    """
    torch: Any = importlib.import_module("torch")
    plan, turn = runner.plan, Turn(runner.name, runner.run)
    on_gpu = runner.details.get("device") == "cuda"
    plain: list[int] = []
    whole: list[int] = []
    events: list[Any] = []
    with collector_off():
        warm_up(turn, plan)
        with _outputs(torch, target) as outputs:
            runner.run()
        for count in blocks(runs):
            plain += sample_runs((turn,), plan, count)[0]
            with _paths(torch, target):
                seen, times = _profiled(torch, turn, plan.settle_runs, count, on_gpu)
            whole += times
            events += seen
    return Found(_seen([list(_calls(event, "", outputs)) for event in events], on_gpu), plain, whole)


def _profiled(torch: Any, turn: Turn, settle_runs: int, runs: int, on_gpu: bool) -> tuple[list[Any], list[int]]:
    """Return one event per timed run, with all that it called, and the nanoseconds of each."""
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, *([kinds.CUDA] if on_gpu else [])]
    times: list[int] = []
    with _quiet(), torch.profiler.profile(activities=activities, record_shapes=True) as seen:
        for _ in range(runs):
            for _ in range(settle_runs):
                turn.run()
            with torch.profiler.record_function(_RUN):
                times.append(timed(turn.run))
    return [event for event in seen.events() if event.name == _RUN], times


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's library from writing to stderr that it starts, stops, and finds no GPU."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "99"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


@contextmanager
def _paths(torch: Any, module: Any) -> Iterator[None]:
    """Let every module's call stand in the trace under its path."""
    open_ranges: list[Any] = []

    def enter(path: str, *call: Any) -> None:
        open_ranges.append(torch.profiler.record_function(_MODULE + path))
        open_ranges[-1].__enter__()

    def leave(*call: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    with _hooked(module, lambda path: partial(enter, path), before=True), _hooked(module, lambda path: leave):
        yield


@contextmanager
def _outputs(torch: Any, module: Any) -> Iterator[dict[str, list[tuple[Tensor, ...]]]]:
    """Note what each module gives, call by call."""
    found: dict[str, list[tuple[Tensor, ...]]] = {}

    def note(path: str, called: Any, given: Any, output: Any) -> None:
        leaves = [output] if isinstance(output, torch.Tensor) else output
        tensors = leaves if isinstance(leaves, list | tuple) else ()
        shapes = [tensor(str(one.dtype).removeprefix("torch."), one.shape) for one in tensors if hasattr(one, "shape")]
        found.setdefault(path, []).append(tuple(shapes))

    with _hooked(module, lambda path: partial(note, path)):
        yield found


@contextmanager
def _hooked(module: Any, hook: Callable[[str], Callable[..., None]], before: bool = False) -> Iterator[None]:
    handles = [
        (part.register_forward_pre_hook if before else part.register_forward_hook)(hook(path))
        for path, part in module.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _calls(event: Any, path: str, outputs: dict[str, list[tuple[Tensor, ...]]]) -> Iterator[Call]:
    """Yield the operators that modules call themselves, in order.

    Args:
        event: a run, or a module's range in it.
        path: of the module that stands around it.
        outputs: what modules gave; one that calls nothing but one operator gives what that gives.
    """
    own = [child for child in event.cpu_children if child.name.startswith(_MODULE) or not child.is_user_annotation]
    for child in own:
        if child.name.startswith(_MODULE):
            yield from _calls(child, child.name.removeprefix(_MODULE), outputs)
        else:
            given = outputs.get(path, []) if len(own) == 1 else []
            yield Call(path, child, given[0] if len(given) == 1 else ())


def _seen(found: list[list[Call]], on_gpu: bool) -> list[Seen]:
    """Sum up each operator of each module by run; the second `add` of a module is another layer than the first."""
    first: dict[tuple[str, str, int], Call] = {}
    times: list[dict[tuple[str, str, int], int]] = []
    for run in found:
        counts: Counter[tuple[str, str]] = Counter()
        taken: dict[tuple[str, str, int], int] = {}
        for call in run:
            counts[call.path, call.event.name] += 1
            key = (call.path, call.event.name, counts[call.path, call.event.name])
            first.setdefault(key, call)
            taken[key] = round((call.event.device_time_total if on_gpu else call.event.cpu_time_total) * 1000)
        times.append(taken)
    return [_layer(call, on_gpu, tuple(each.get(key, 0) for each in times)) for key, call in first.items()]


def _layer(call: Call, on_gpu: bool, samples_ns: tuple[int, ...]) -> Seen:
    name = call.event.name.removeprefix("aten::")
    place = "cuda" if on_gpu else "cpu"
    made = operation(call.event, call.outputs)
    return Seen(name, place, made, samples_ns, shown=name, module=call.path)
