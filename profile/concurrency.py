"""Several callers at once: inferences per second and latencies under load, apart from the lone caller's latency."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from .affinity import bound
from .environment import environment
from .errors import BadPlan, ProfileError
from .measure import QUANTILES
from .plan import Plan
from .runners import Inputs, Runner, Target, open_runner
from .sampling import Report, Watch, collector_off, disturbance_notes, orders
from .stats import Estimate, in_ms, median_interval, median_ratio_interval, percentile

SCHEMA = 1
WINDOWS = 20  # per level; each gives one rate, and the interval of a median needs 6 that are independent
_IN_PYTHON = ("callable", "torch", "torch-compile")
_Team = tuple[Runner, ...]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """What the callers of a level did; it starts with the first call of the last of them, so that all are at work.

    Attributes:
        length_ns: until when new calls began.
        offsets_ns: per caller: from the window's start to its own first call, 0 or below.
        latencies_ns: per caller: back to back from there on, without a gap; the last ends after the window.
    """

    length_ns: int
    offsets_ns: tuple[int, ...]
    latencies_ns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Level:
    """So many callers, and their windows in order."""

    callers: int
    windows: tuple[Window, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Inferences per second of all callers together, one per window."""
        return tuple(window_rate(window) for window in self.windows)

    @property
    def inferences_per_s(self) -> Estimate:
        """The median of the windows' rates."""
        return median_interval(self.rates)

    def percentiles_ns(self) -> dict[float, Estimate]:
        """Return those of p50, p90 and p99 under load, in nanoseconds, that the samples are enough for."""
        latencies = np.concatenate([in_order(window) for window in self.windows])
        found = ((q, percentile(latencies, q)) for q in QUANTILES)
        return {q: estimate for q, estimate in found if estimate is not None}


@dataclass(frozen=True)
class Concurrency:
    """Levels of load whose windows took turns, and how they were taken.

    Attributes:
        plan: as given; runners were opened with `streams` set to `Level.callers`.
        levels: in ascending order, the lone caller first; `details` are those of its runner.
    """

    name: str
    runtime: str
    file: str | None
    sha256: str | None
    plan: Plan
    environment: dict[str, Any]
    levels: tuple[Level, ...]
    inputs: str
    notes: tuple[str, ...]
    details: dict[str, Any]

    def scaling(self, level: Level) -> Estimate:
        """Return how many times one caller's rate a level has, by windows of the same round."""
        one, together = ([1e9 / max(rate, 1e-9) for rate in each.rates] for each in (self.levels[0], level))
        return median_ratio_interval(one, together)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the schema version and what is derived."""
        rest = asdict(replace(self, levels=()))
        return {"schema": SCHEMA, **rest, "levels": [self._plain(level) for level in self.levels]}

    def _plain(self, level: Level) -> dict[str, Any]:
        return asdict(level) | {
            "rates": list(level.rates),
            "inferences_per_s": asdict(level.inferences_per_s),
            "scaling": asdict(self.scaling(level)),
            "percentiles_ns": [{"q": q, **asdict(found)} for q, found in level.percentiles_ns().items()],
        }


def concurrency(  # noqa: PLR0913 (what is run, how, and how long: each is a choice of the caller's)
    target: Target,
    runtime: str = "ort-cpu",
    levels: Sequence[int] = (1, 2, 4),
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    seconds_per_level: float = 4.0,
    *,
    timeout_s: float = 120.0,
    report: Report | None = None,
    watch: Watch | None = None,
) -> Concurrency:
    """Let several callers run a target back to back at once and measure their rate and latencies.

    Each caller is a thread with a runner of its own; all are open at once. Short windows of the levels take turns in
    random order, so that drift hits all alike. Of the plan's bounds only `warmup_s` plays a part. ONNX Runtime lets go
    of Python's lock while it runs, torch inside an operator; a callable may hold it throughout.

    Args:
        target: see `open_runner`; a callable must bear several threads.
        runtime: a key of `runners.RUNTIMES`.
        levels: different numbers of callers, 1 among them: the others are compared with it.
        plan: how; `Plan()` if None. Its threads are each caller's.
        inputs: for all; see `open_runner`.
        seconds_per_level: all windows of a level together.
        timeout_s: seconds beyond a window after which its callers count as hung.
        report: called after each round of windows with the share done and a text.
        watch: asked before and after, opened for all threads at once; what it says becomes a note.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: levels or seconds out of range, or the target or its inputs cannot be measured.
        ProfileError: a caller failed or hung; the message names the level.
    """
    plan = plan or Plan()
    _check(levels, seconds_per_level)
    with bound(plan), ExitStack() as stack:
        where, plans = environment(), [replace(plan, streams=count) for count in sorted(levels)]
        teams = [
            tuple(stack.enter_context(open_runner(target, runtime, each, inputs)) for _ in range(each.streams))
            for each in plans
        ]
        disturbance_notes(watch)
        with collector_off():
            taken = _interleaved(teams, seconds_per_level, timeout_s, report)
        found = tuple(Level(len(team), tuple(windows)) for team, windows in zip(teams, taken, strict=True))
        runner = teams[0][0]
        return Concurrency(
            name=runner.name,
            runtime=runtime,
            file=runner.file,
            sha256=runner.sha256,
            plan=plan,
            environment=where,
            levels=found,
            inputs=runner.inputs,
            notes=(*_notes(found, runtime, plan, where), *disturbance_notes(watch)),
            details=dict(runner.details),
        )


def window_rate(window: Window) -> float:
    """Return the inferences per second of all callers; a call that reaches beyond counts by its share inside."""
    began, took = _calls(window)
    inside = np.minimum(began + took, window.length_ns) - np.maximum(began, 0)
    return float((np.maximum(inside, 0) / np.maximum(took, 1)).sum()) * 1e9 / window.length_ns


def in_order(window: Window) -> _Ints:
    """Return the latencies of all callers, ordered by when they began."""
    began, took = _calls(window)
    return took[np.argsort(began, kind="stable")]


def _calls(window: Window) -> tuple[_Ints, _Ints]:
    """Return when each call of each caller began after the window's start, and how long it took."""
    took = [np.asarray(latencies, dtype=np.int64) for latencies in window.latencies_ns]
    began = [offset + np.cumsum(one) - one for offset, one in zip(window.offsets_ns, took, strict=True)]
    return np.concatenate(began), np.concatenate(took)


def lines(found: Concurrency) -> list[str]:
    """Write a line per level: rate, how it scales, and latencies under load."""
    shape = f"batch {found.plan.batch}, {found.plan.threads} thread(s) each"
    return [
        f"{found.name} on {found.runtime}: callers at once, {shape}, {WINDOWS} windows per level",
        *(_line(level, found.scaling(level)) for level in found.levels),
        *(f"note: {note}" for note in found.notes),
    ]


def _line(level: Level, scaling: Estimate) -> str:
    rate = level.inferences_per_s
    ends = "" if rate.low is None or rate.high is None else f" ({rate.low:.4g} to {rate.high:.4g})"
    latencies = ", ".join(f"p{q:g} {in_ms(one)}" for q, one in level.percentiles_ns().items())
    times = "" if level.callers == 1 else f", {scaling.value:.3g} times one caller"
    return f"{level.callers} caller(s): {rate.value:.4g} inferences/s{ends}{times}; {latencies}"


def _check(levels: Sequence[int], seconds: float) -> None:
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in levels)
    if not whole or 1 not in levels or len(set(levels)) != len(levels):
        raise BadPlan(f"concurrency: got levels {tuple(levels)}, wanted different whole numbers above 0, 1 among them")
    if not 1e-3 <= seconds < float("inf"):
        raise BadPlan(f"concurrency: got {seconds!r} seconds per level, wanted at least 0.001")


def _interleaved(teams: Sequence[_Team], seconds: float, timeout_s: float, report: Report | None) -> list[list[Window]]:
    """Return the windows of each team after one for warm-up that is not kept."""
    plan, length_ns = teams[0][0].plan, round(seconds / WINDOWS * 1e9)
    taken: list[list[Window]] = [[] for _ in teams]
    for team in teams:
        _window(team, round(plan.warmup_s / len(teams) * 1e9), timeout_s)
    for done, order in enumerate(islice(orders(len(teams), plan.seed), WINDOWS), 1):
        for i in order:
            taken[i].append(_window(teams[i], length_ns, timeout_s))
        if report is not None:
            report(done / WINDOWS, f"round {done} of {WINDOWS}")
    return taken


class _Meeting:
    """What the callers of a window share: when each of them began, and whether it is over before its time."""

    def __init__(self, callers: int) -> None:
        self.barrier, self.lock, self.over = threading.Barrier(callers), threading.Lock(), False
        self.began_ns: list[int] = []
        self.fault: BaseException | None = None

    def end(self) -> None:
        """Send all home: those who wait for others, and those who run."""
        self.over = True
        self.barrier.abort()


def _window(team: _Team, length_ns: int, timeout_s: float) -> Window:
    """Let all callers of a team run for one window. Threads that hang are left behind; they end with the process."""
    meeting, level = _Meeting(len(team)), f"concurrency, {len(team)} caller(s) of {team[0].name}"
    stamps: list[list[int]] = [[] for _ in team]
    threads = [
        threading.Thread(target=_call, args=(runner, meeting, length_ns, own), daemon=True)
        for runner, own in zip(team, stamps, strict=True)
    ]
    end = time.monotonic() + length_ns / 1e9 + timeout_s
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    except RuntimeError as fault:
        raise ProfileError(f"{level}: a thread could not be started ({fault}); ask for fewer callers") from fault
    finally:
        meeting.end()
    if meeting.fault is not None:
        raise ProfileError(f"{level}: an inference failed: {meeting.fault}") from meeting.fault
    if any(thread.is_alive() for thread in threads) or not all(stamps):
        raise ProfileError(f"{level}: a caller did not end within {timeout_s:g} s after its window; raise timeout_s")
    offsets = tuple(own[0] - meeting.began_ns[-1] for own in stamps)
    return Window(length_ns, offsets, tuple(tuple(np.diff(own).tolist()) for own in stamps))


def _call(runner: Runner, meeting: _Meeting, length_ns: int, stamps: list[int]) -> None:
    """Run back to back until all have run for the window's length."""
    run, clock, began = runner.run, time.perf_counter_ns, meeting.began_ns
    try:
        for _ in range(max(1, runner.plan.settle_runs)):
            run()
        meeting.barrier.wait()
        with meeting.lock:  # so that the last entry is the latest
            stamps.append(clock())
            began.append(stamps[0])
        while not meeting.over and (len(began) < meeting.barrier.parties or stamps[-1] < began[-1] + length_ns):
            run()
            stamps.append(clock())
    except threading.BrokenBarrierError:
        return  # another caller failed and tells why, or the window is over
    except BaseException as fault:  # SystemExit too: a thread that ends silently would leave the others waiting
        meeting.fault = meeting.fault or fault
        meeting.end()


def _notes(levels: Sequence[Level], runtime: str, plan: Plan, where: dict[str, Any]) -> tuple[str, ...]:
    cores, most = where["usable_cores"] or 1, levels[-1].callers
    fewest = min(len(calls) for level in levels for window in level.windows for calls in window.latencies_ns)
    notes = {
        f"{most} callers with {plan.threads} thread(s) each share {cores} usable cores": most * plan.threads > cores,
        f"a window held only {fewest} call(s) of a caller: raise the seconds per level": fewest < 5,
        "Python's lock is one caller's at a time: only what runs without it scales": runtime in _IN_PYTHON,
    }
    return tuple(text for text, holds in notes.items() if holds)
