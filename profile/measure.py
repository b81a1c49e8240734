"""Measure the latency of runners, one or several interleaved."""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .affinity import bound
from .device_state import summary
from .device_watch import open_watch
from .environment import busy_note, cpu_ticks, environment, steal_share
from .errors import BadPlan
from .plan import Plan
from .runners import HasDeviceClock, Inputs, Runner, Target, on_gpu, open_runner
from .sampling import Report, Sampled, Turn, Watch, collector_off, sample, spent, unsettled
from .sequential import Question, looks, looks_tail, until_decided
from .stats import Estimate, median_interval, percentile
from .stopping import FLOOR, MAX_ROUNDS, warmup_done

SCHEMA = 1
QUANTILES = (50.0, 90.0, 99.0)
_SERIES = ("samples_ns", "aside_ns", "device_ns")
_STEAL_NOTED = 0.01


@dataclass(frozen=True)
class Percentile:
    """A percentile in milliseconds with its 95 % interval; `q` is 50, 90 or 99."""

    q: float
    ms: float
    low_ms: float | None
    high_ms: float | None


@dataclass(frozen=True)
class Measurement:
    """Raw latencies of one runner and how they were taken; everything else is derived.

    Attributes:
        samples_ns: one per round, in order; kept as an `array` of 8 bytes each, whatever it is given as.
        inputs: "random" or "given".
        stop_reason: "precision", "decided", "noise floor", "budget" or "max_rounds".
        notes: what a reader should know, such as warm-up that did not settle.
        details: of the runner: providers, versions, what a sample includes.
        group: equal for measurements taken interleaved, whose samples are paired by round.
        aside_ns: samples of windows in which the machine was disturbed, taken again since.
        device_ns: what the device's own events say of the same rounds; empty where there are none.
        looks: how often goals were looked at while sampling went on; every interval allows for it.
    """

    name: str
    runtime: str
    file: str | None
    sha256: str | None
    plan: Plan
    environment: dict[str, Any]
    samples_ns: Sequence[int]
    warmup_rounds: int
    inputs: str
    stop_reason: str
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    aside_ns: Sequence[int] = ()
    device_ns: Sequence[int] = ()
    looks: int = 1

    def __post_init__(self) -> None:
        for name in _SERIES:
            given = getattr(self, name)
            held = given if isinstance(given, array) and given.typecode == "q" else array("q", given)
            object.__setattr__(self, name, held)

    @property
    def tail(self) -> float:
        """The error on each side of an interval of these samples, so that it holds at every look."""
        return looks_tail(self.looks)

    def percentiles(self) -> tuple[Percentile, ...]:
        """Return those of p50, p90, p99 and the plan's own percentile that the samples are enough for."""
        wanted = sorted({*QUANTILES, self.plan.quantile})
        found = ((q, percentile(self.samples_ns, q, self.tail)) for q in wanted)
        return tuple(_in_ms(q, estimate) for q, estimate in found if estimate is not None)

    @property
    def p50_ms(self) -> float:
        """The median in milliseconds."""
        return median_interval(self.samples_ns, self.tail).value / 1e6

    @property
    def p90_ms(self) -> float | None:
        """The 90th percentile in milliseconds, None below 64 samples."""
        return self._percentile_ms(90)

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile in milliseconds, None below 662 samples."""
        return self._percentile_ms(99)

    def _percentile_ms(self, q: float) -> float | None:
        found = percentile(self.samples_ns, q, self.tail)
        return None if found is None else found.value / 1e6

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the schema version and the percentiles."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            **{name: list(getattr(self, name)) for name in _SERIES},
            "notes": list(self.notes),
            "percentiles": [asdict(one) for one in self.percentiles()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Read what `to_dict` wrote.

        Raises:
            BadPlan: another schema version, or entries that are missing or unknown.
        """
        if data.get("schema") != SCHEMA:
            raise BadPlan(f"measurement: got schema {data.get('schema')!r}, wanted {SCHEMA}; measure again")
        entries = {key: value for key, value in data.items() if key not in ("schema", "percentiles")}
        try:
            made = cls(**(entries | {"notes": tuple(entries["notes"]), "plan": Plan(**entries["plan"])}))
            made.check()
        except (KeyError, TypeError, ValueError, OverflowError) as fault:
            raise BadPlan(f"measurement: it is not what to_dict writes ({fault}); measure again") from fault
        return made

    def check(self) -> None:
        """Check what the figures rest on.

        Raises:
            ValueError: no samples, some that are not above zero, or entries of the wrong kind.
        """
        if not len(self.samples_ns) or min(self.samples_ns) <= 0:
            raise ValueError("samples_ns: wanted at least one, all above zero")
        if isinstance(self.looks, bool) or not isinstance(self.looks, int) or self.looks < 1:
            raise ValueError(f"looks: got {self.looks!r}, wanted a whole number of at least 1")
        if not isinstance(self.environment, Mapping) or not isinstance(self.details, Mapping):
            raise ValueError("environment and details: wanted entries by name")


def measure(
    target: Target, runtime: str = "ort-cpu", plan: Plan | None = None, inputs: Inputs | None = None
) -> Measurement:
    """Measure the latency of one target.

    Args:
        target: a path to an ONNX file, a callable, or a torch module in evaluation mode.
        runtime: a key of `runners.RUNTIMES`.
        plan: how; `Plan()` if None.
        inputs: see `open_runner`.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: the target or its inputs cannot be measured.
        ProfileError: an inference failed.
    """
    return measure_all((target,), runtime, plan or Plan(), inputs)[0]


def measure_all(
    targets: Sequence[Target],
    runtime: str,
    plan: Plan,
    inputs: Inputs | None = None,
    *,
    questions: Sequence[Question] = (),
    report: Report | None = None,
) -> tuple[Measurement, ...]:
    """Open all targets on the plan's cores and measure them interleaved.

    Args:
        targets: see `measure`; at least one.
        runtime: see `measure`.
        plan: how.
        inputs: for all; see `open_runner`.
        questions: see `interleave`.
        report: see `interleave`.

    Raises:
        RuntimeAbsent: see `measure`.
        BadPlan: see `measure`.
        ProfileError: see `measure`.
    """
    with ExitStack() as stack:
        stack.enter_context(bound(plan))
        runners = [stack.enter_context(open_runner(target, runtime, plan, inputs)) for target in targets]
        device = "cuda" if any(map(on_gpu, runners)) else "cpu"
        watch = stack.enter_context(open_watch(device, plan.threads, plan.affinity))
        seen = interleave(runners, plan, report, questions=questions, watch=watch)
        looked = summary(watch.spans)
        busy = busy_note(looked.get("foreign_cores"), seen[0].environment)
        state = {"device_state": looked} | ({"device_unseen": watch.absent} if watch.absent else {})
        notes = [text for text, holds in busy.items() if holds]
        return tuple(replace(one, details=one.details | state, notes=(*one.notes, *notes)) for one in seen)


def interleave(
    runners: Sequence[Runner],
    plan: Plan,
    report: Report | None = None,
    *,
    questions: Sequence[Question] = (),
    watch: Watch | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> tuple[Measurement, ...]:
    """Sample runners in turn, round by round, so that their samples are paired.

    Whatever disturbs the machine then disturbs all of them alike, and ratios by round stay true where the times
    themselves drift. Warm-up comes first, in the same order; the garbage collector is off while sampling.

    Args:
        runners: open, at least one, all opened with this plan.
        plan: bounds of warm-up and sampling.
        report: called between rounds with the share done and a text, for a progress bar.
        questions: goals; sampling ends when all are decided, see `until_decided`.
        watch: sets disturbed windows aside; None takes them all.
        clock: nanoseconds.

    Returns:
        One measurement per runner, in order.

    Raises:
        BadPlan: no runners, or one opened with another plan.
        ProfileError: an inference failed.
    """
    _check(runners, plan)
    where = environment()
    # Whether there is a device's clock is asked once: it need not be asked after every sample.
    turns = [
        Turn(one.name, one.run, one.device_time_ns if isinstance(one, HasDeviceClock) else None) for one in runners
    ]
    with collector_off():
        warm = sample(turns, plan, warmup_done, clock)
        before = cpu_ticks()
        seen = sample(turns, plan, until_decided(questions), clock, report, watch)
    notes = _notes(warm, seen, plan, where, _steal(before))
    group = secrets.token_hex(8)
    return tuple(
        Measurement(
            name=runner.name,
            runtime=runner.runtime,
            file=runner.file,
            sha256=runner.sha256,
            plan=plan,
            environment=where,
            samples_ns=series,
            warmup_rounds=len(warm.series[0]),
            inputs=runner.inputs,
            stop_reason=seen.reason,
            notes=(*notes, *_fallback(runner)),
            details=dict(runner.details),
            group=group,
            aside_ns=aside,
            device_ns=device,
            looks=looks(plan) if questions else 1,
        )
        for runner, series, aside, device in zip(runners, seen.series, seen.aside, seen.device, strict=True)
    )


def _check(runners: Sequence[Runner], plan: Plan) -> None:
    if not runners:
        raise BadPlan("interleave: got no runners, wanted at least one")
    for runner in runners:
        if runner.plan != plan:
            raise BadPlan(f"interleave: {runner.name} was opened with another plan; open all runners with the same one")


def _steal(before: tuple[int, int] | None) -> float:
    after = cpu_ticks()
    return 0.0 if before is None or after is None else steal_share(before, after)


def _notes(warm: Sampled, seen: Sampled, plan: Plan, where: dict[str, Any], steal: float) -> tuple[str, ...]:
    cores, rounds = where["usable_cores"] or 1, len(seen.series[0])
    found = {
        **unsettled(warm, plan),
        **spent(seen, plan),
        f"the limit of {plan.max_rounds} rounds ended sampling": seen.reason == MAX_ROUNDS,
        f"more samples no longer narrowed the intervals, after {rounds} rounds: the machine changes its pace": (
            seen.reason == FLOOR
        ),
        f"{len(seen.aside[0])} rounds were set aside and taken again: {_causes(seen)}": len(seen.aside[0]) > 0,
        f"{seen.endured} disturbed windows were kept, since a quarter of the budget had gone to such: "
        "these are times of a busy machine": seen.endured > 0,
        f"{plan.threads} threads were asked for on {cores} usable cores": plan.threads > cores,
        f"the hypervisor withheld {steal:.1%} of processor time while sampling": steal > _STEAL_NOTED,
    }
    return tuple(text for text, holds in found.items() if holds)


def _fallback(runner: Runner) -> tuple[str, ...]:
    """Return what ran on the CPU where the plan allows that."""
    said = runner.details.get("fallback")
    return (f"fallback: {said}",) if said else ()


def _causes(seen: Sampled) -> str:
    return ", ".join(f"{cause} ({count} x)" for cause, count in seen.disturbances.items())


def _in_ms(q: float, found: Estimate) -> Percentile:
    low, high = (None if end is None else end / 1e6 for end in (found.low, found.high))
    return Percentile(q, found.value / 1e6, low, high)
