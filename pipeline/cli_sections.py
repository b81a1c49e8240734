"""What `profile` adds to the warm latency: one table of sections, each with its text and its data.

Each takes the plan's budget at the most, memory, energy and layers aside, which take what they need.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_output import columns

if TYPE_CHECKING:
    from ..profile.plan import Plan
    from ..profile.sampling import Report


@dataclass(frozen=True)
class Request:
    """What is to be measured, and how."""

    target: Any
    runtime: str
    plan: Plan
    inputs: Any
    report: Report
    picture: Path | None = None


Section = tuple[str, Any]
"""Text for people, and plain data."""


def _memory(request: Request) -> Section:
    from ..profile.memory import peak_memory

    found = peak_memory(request.target, request.runtime, request.plan, request.inputs)
    return memory_text(found), found


def memory_text(found: Any) -> str:
    """Return a `Memory` as a table, with what it does not see."""
    from ..profile.memory_limit import MB

    rows = [(one.name, f"{one.bytes / MB:.1f} MB", one.note) for one in found.lines() if one.bytes is not None]
    head = [f"memory: {found.failed}"] if found.failed else []
    seen = [columns([("memory", "", "what it is"), *rows])] if rows else []
    return "\n".join([*head, *seen, *(f"not seen: {spot}" for spot in found.blind_spots)])


def _energy(request: Request) -> Section:
    from ..profile.affinity import bound
    from ..profile.energy import energy_per_inference
    from ..profile.runners import open_runner

    plan = request.plan
    with bound(plan), open_runner(request.target, request.runtime, plan, request.inputs) as runner:
        found = energy_per_inference(runner)
    if found.absent:
        return found.absent, found.to_dict()
    joules = [1e3 * value for value in (found.joules, found.low, found.high) if value is not None]
    ends = f" (95 % interval {joules[1]:.4g} to {joules[2]:.4g})" if len(joules) == 3 else ""
    lines = [f"energy: {joules[0]:.4g} mJ an inference beyond idle{ends}, by {found.source}", *found.notes]
    return "\n".join(lines), found.to_dict()


def _cold(request: Request) -> Section:
    from ..profile.cold import cold_start, lines

    plan = request.plan
    found = cold_start(
        request.target, request.runtime, plan, request.inputs, budget_s=plan.budget_s, report=request.report
    )
    return "\n".join(lines(found)), found.to_dict()


def _gaps(request: Request) -> Section:
    from ..profile.affinity import bound
    from ..profile.device_watch import open_watch
    from ..profile.gaps import gap_latency, lines
    from ..profile.runners import on_gpu, open_runner

    plan = request.plan
    with ExitStack() as stack:
        stack.enter_context(bound(plan))
        runner = stack.enter_context(open_runner(request.target, request.runtime, plan, request.inputs))
        device = "cuda" if on_gpu(runner) else "cpu"
        watch = stack.enter_context(open_watch(device, plan.threads, plan.affinity))
        found = gap_latency(runner, budget_s=plan.budget_s, report=request.report, watch=watch)
    return "\n".join(lines(found)), found.to_dict()


def _throughput(request: Request) -> Section:
    from ..profile.throughput import lines, throughput

    found = throughput(request.target, request.runtime, plan=request.plan, inputs=request.inputs, report=request.report)
    return "\n".join(lines(found)), found.to_dict()


def _concurrency(request: Request) -> Section:
    from ..profile.concurrency import concurrency, lines

    plan = request.plan
    found = concurrency(
        request.target, request.runtime, _CALLERS, plan, request.inputs,
        max(plan.budget_s / len(_CALLERS), _LEAST_S), report=request.report,
    )  # fmt: skip
    return "\n".join(lines(found)), found.to_dict()


def _layers(request: Request) -> Section:
    from ..models.files import write_text
    from ..profile.layer_table import NUMBERS, layer_rows, operator_rows, summary_lines
    from ..profile.layers import profile_layers
    from ..profile.roofline import measure_roofline
    from .layer_picture import layer_svg

    found = profile_layers(request.target, request.runtime, request.plan, request.inputs)
    ceilings = measure_roofline(request.plan.threads, runtime=request.runtime)
    texts = [
        "\n".join(summary_lines(found, ceilings)),
        columns(layer_rows(found, ceilings), NUMBERS),
        columns(operator_rows(found), NUMBERS),
    ]
    if request.picture:
        write_text(request.picture, layer_svg(found, ceilings))
        texts.append(f"wrote   {request.picture}")
    return "\n\n".join(texts), found.to_dict() | {"roofline": ceilings.to_dict()}


_CALLERS = (1, 2, 4)
_LEAST_S = 0.2

SECTIONS: dict[str, Callable[[Request], Section]] = {
    "memory": _memory,
    "energy": _energy,
    "cold": _cold,
    "gaps": _gaps,
    "throughput": _throughput,
    "concurrency": _concurrency,
    "layers": _layers,
}
"""By the name of the option and of the key in the data."""
