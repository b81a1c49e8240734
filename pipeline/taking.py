"""Take one figure beside the warm latency: the same for `profile` on the command line and for a build.

Each takes the plan's budget at the most, layers aside: they take `Request.runs` inferences and a try of `Request.try_s`
for each of about twenty ceilings.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..profile.device_watch import DeviceWatch
    from ..profile.energy import Energy
    from ..profile.layer_profile import LayerProfile
    from ..profile.plan import Plan
    from ..profile.roofline import Roofline
    from ..profile.sampling import Report

CALLERS = (1, 2, 4)
_LEAST_S = 0.2


@dataclass(frozen=True)
class Request:
    """What is to be measured, and how.

    Attributes:
        runs: inferences of which layers are looked at.
        try_s: seconds for each try of the roofline.
    """

    target: Any
    runtime: str
    plan: Plan
    inputs: Any
    report: Report
    picture: Path | None = None
    runs: int = 50
    try_s: float = 0.2


@dataclass(frozen=True)
class Taken:
    """What the profiler found, with its `to_dict`, and lines of text that say it."""

    found: Any
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Layers:
    """A profile by layer and the ceilings over it; without them, why."""

    profile: LayerProfile
    roofline: Roofline | None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return self.profile.to_dict() | {"roofline": self.roofline.to_dict() if self.roofline else None}


def energy_of(request: Request) -> Energy:
    """Count the joules of an inference; where no counter can be read, `absent` says why."""
    from ..profile.affinity import bound
    from ..profile.energy import energy_per_inference
    from ..profile.runners import open_runner

    plan = request.plan
    with bound(plan), open_runner(request.target, request.runtime, plan, request.inputs) as runner:
        return energy_per_inference(runner)


def take_cold(request: Request) -> Taken:
    """Start fresh processes."""
    from ..profile.cold import cold_start, lines

    plan = request.plan
    found = cold_start(
        request.target, request.runtime, plan, request.inputs, budget_s=plan.budget_s, report=request.report
    )
    return Taken(found, tuple(lines(found)))


def take_gaps(request: Request) -> Taken:
    """Pause before each request."""
    from ..profile.affinity import bound
    from ..profile.gaps import gap_latency, lines
    from ..profile.runners import open_runner

    plan = request.plan
    with ExitStack() as stack:
        stack.enter_context(bound(plan))
        runner = stack.enter_context(open_runner(request.target, request.runtime, plan, request.inputs))
        watch = stack.enter_context(_watch(request, plan.threads))
        found = gap_latency(runner, budget_s=plan.budget_s, report=request.report, watch=watch)
    return Taken(found, tuple(lines(found)))


def _watch(request: Request, threads: int) -> DeviceWatch:
    from ..profile.device_watch import open_watch
    from ..profile.devices import GPU_RUNTIMES

    return open_watch("cuda" if request.runtime in GPU_RUNTIMES else "cpu", threads, request.plan.affinity)


def take_throughput(request: Request) -> Taken:
    """Run several batches."""
    from ..profile.throughput import lines, throughput

    plan = request.plan
    with _watch(request, plan.threads) as watch:
        found = throughput(
            request.target, request.runtime, plan=plan, inputs=request.inputs, report=request.report, watch=watch
        )
    return Taken(found, tuple(lines(found)))


def take_concurrency(request: Request) -> Taken:
    """Let `CALLERS` call at once."""
    from ..profile.concurrency import concurrency, lines

    plan = request.plan
    with _watch(request, plan.threads * max(CALLERS)) as watch:
        found = concurrency(
            request.target, request.runtime, CALLERS, plan, request.inputs,
            max(plan.budget_s / len(CALLERS), _LEAST_S), report=request.report, watch=watch,
        )  # fmt: skip
    return Taken(found, tuple(lines(found)))


def take_layers(request: Request) -> Taken:
    """Look into single layers; ceilings that cannot be measured leave them without."""
    from ..profile.layer_table import summary_lines
    from ..profile.layers import profile_layers

    profile = profile_layers(request.target, request.runtime, request.plan, request.inputs, request.runs)
    found = Layers(profile, *_ceilings(request))
    return Taken(found, (*summary_lines(profile, found.roofline), *([found.why] if found.why else [])))


def _ceilings(request: Request) -> tuple[Roofline | None, str]:
    from ..profile.errors import ProfileError
    from ..profile.roofline import measure_roofline

    try:
        return measure_roofline(request.plan.threads, runtime=request.runtime, seconds=request.try_s), ""
    except ProfileError as fault:
        return None, f"no ceilings: {fault}"


TAKERS: dict[str, Callable[[Request], Taken]] = {
    "cold": take_cold,
    "gaps": take_gaps,
    "throughput": take_throughput,
    "concurrency": take_concurrency,
    "layers": take_layers,
}
"""By the name in `profile.figures` of a recipe, of the option of `profile` and of the key in the data."""
