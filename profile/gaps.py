"""The latency of sparse requests: each comes after a pause. A figure of its own, never part of the warm one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from .affinity import bound
from .environment import environment
from .errors import BadPlan, ProfileError
from .plan import Plan
from .runners import Runner
from .sampling import Report, Turn, Watch, collector_off, disturbance_notes, sample, unsettled
from .stats import Estimate, in_ms, median_interval, median_ratio_interval, percentile
from .stopping import warmup_done

SCHEMA = 1

_BURST_NS = 50_000_000  # governors of the clock take 10 to 20 ms to raise it
_BURST_RUNS = 10_000  # ends a burst whose clock stands still


@dataclass(frozen=True)
class GapLatency:
    """Raw latencies after pauses, the warm ones between them, and how they were taken.

    Attributes:
        gaps_s: the shortest and longest pause drawn.
        seed: of the pauses.
        pairs_ns: per request: the pause before it as the clock saw it, and its latency.
        warm_ns: per request: one inference after it, at the end of a burst without pauses.
        stop_reason: "samples" or "budget".
        notes: what a reader should know.
    """

    name: str
    runtime: str
    file: str | None
    sha256: str | None
    plan: Plan
    environment: dict[str, Any]
    gaps_s: tuple[float, float]
    seed: int
    pairs_ns: tuple[tuple[int, int], ...]
    warm_ns: tuple[int, ...]
    inputs: str
    stop_reason: Literal["samples", "budget"]
    notes: tuple[str, ...] = ()

    @property
    def latencies_ns(self) -> tuple[int, ...]:
        """The latencies after a pause, in order."""
        return tuple(latency for _, latency in self.pairs_ns)

    @property
    def p50_ns(self) -> Estimate:
        """The median latency after a pause, in nanoseconds."""
        return median_interval(self.latencies_ns)

    @property
    def p90_ns(self) -> Estimate | None:
        """The 90th percentile after a pause in nanoseconds, None below 64 samples."""
        return percentile(self.latencies_ns, 90)

    @property
    def warm_p50_ns(self) -> Estimate:
        """The warm median of the same call, in nanoseconds."""
        return median_interval(self.warm_ns)

    @property
    def ratio(self) -> Estimate:
        """How many times as long as a warm inference one after a pause takes: the median of the paired ratios."""
        return median_ratio_interval(self.latencies_ns, self.warm_ns)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the schema version and what is derived."""
        derived = {"p50_ns": self.p50_ns, "p90_ns": self.p90_ns, "warm_p50_ns": self.warm_p50_ns, "ratio": self.ratio}
        plain = {name: None if found is None else asdict(found) for name, found in derived.items()}
        return {"schema": SCHEMA, **asdict(self), **plain}


def gap_latency(  # noqa: PLR0913 (clock and sleep come from outside so that tests do not wait)
    runner: Runner,
    gaps_s: tuple[float, float] = (0.1, 1.0),
    samples: int = 70,
    budget_s: float = 60.0,
    *,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    report: Report | None = None,
    watch: Watch | None = None,
) -> GapLatency:
    """Measure the latency of requests that come after pauses, beside the warm latency.

    After warm-up each round pauses, times one inference, runs a burst of at least 50 ms without pauses and times one
    more: with and without a pause are paired, so that a drift of the machine hits both.

    Args:
        runner: open; it is neither closed nor changed.
        gaps_s: the shortest and longest pause in seconds; pauses are drawn log-uniformly between them.
        samples: pauses at the most.
        budget_s: seconds after which no further pause begins. One is always taken.
        seed: of the pauses.
        clock: nanoseconds that never go back.
        sleep: waits so many seconds.
        report: called after each request with the share done and a text.
        watch: asked before and after; what it says becomes a note. See `device_watch.open_watch`.

    Raises:
        BadPlan: gaps, samples or budget out of range.
        ProfileError: an inference failed.
    """
    gaps = draw_gaps(gaps_s, samples, seed)
    if not budget_s >= 0:
        raise BadPlan(f"gap_latency: got a budget of {budget_s!r} s, wanted at least 0")
    with bound(runner.plan), collector_off():
        where = environment()
        warm = sample([Turn(runner.name, runner.run)], runner.plan, warmup_done, clock)
        disturbance_notes(watch)
        rounds = _rounds(runner, gaps, budget_s, (clock, sleep), report)
    ended, told = len(rounds) < samples, disturbance_notes(watch)
    notes = {
        **unsettled(warm, runner.plan),
        f"the budget of {budget_s:g} s ended sampling after {len(rounds)} of {samples} pauses": ended,
    }
    return GapLatency(
        name=runner.name,
        runtime=runner.runtime,
        file=runner.file,
        sha256=runner.sha256,
        plan=runner.plan,
        environment=where,
        gaps_s=gaps_s,
        seed=seed,
        pairs_ns=tuple((gap, latency) for gap, latency, _ in rounds),
        warm_ns=tuple(warm_ns for _, _, warm_ns in rounds),
        inputs=runner.inputs,
        stop_reason="budget" if ended else "samples",
        notes=(*(text for text, holds in notes.items() if holds), *told),
    )


def draw_gaps(gaps_s: tuple[float, float], count: int, seed: int) -> tuple[float, ...]:
    """Draw pauses in seconds, log-uniformly: as many between 0.1 and 0.2 as between 0.5 and 1.

    Raises:
        BadPlan: not two finite numbers above 0 in ascending order, or fewer than one pause.
    """
    low, high = gaps_s
    if not 0 < low <= high < math.inf:
        raise BadPlan(f"gap_latency: got gaps of {low!r} to {high!r} s, wanted two numbers above 0, the shorter first")
    if count < 1:
        raise BadPlan(f"gap_latency: got {count!r} samples, wanted at least 1")
    drawn = np.random.default_rng(seed).uniform(math.log(low), math.log(high), count)
    return tuple(float(gap) for gap in np.clip(np.exp(drawn), low, high))


def lines(found: GapLatency) -> list[str]:
    """Say in words how much a pause costs."""
    low, high = found.gaps_s
    p90 = "" if found.p90_ns is None else f", p90 {in_ms(found.p90_ns)}"
    return [
        f"{found.name} on {found.runtime} after pauses of {low:g} to {high:g} s: p50 {in_ms(found.p50_ns)}{p90}; "
        f"warm p50 {in_ms(found.warm_p50_ns)}",
        f"{effect(found.ratio)}, by {len(found.pairs_ns)} pairs",
        *(f"note: {note}" for note in found.notes),
    ]


def effect(ratio: Estimate) -> str:
    """Say what a ratio of the latency after a pause to the warm one means, as far as its interval shows it."""
    if ratio.low is None or ratio.high is None:
        return (
            f"after a pause an inference takes {ratio.value:.3g} times as long as a warm one; too few for an interval"
        )
    interval = f"{ratio.value:.3g} times as long as a warm one ({ratio.low:.3g} to {ratio.high:.3g})"
    if ratio.low <= 1 <= ratio.high:
        return f"no effect of a pause is shown: an inference takes {interval}"
    return f"after a pause an inference takes {interval}"


_Times = tuple[Callable[[], int], Callable[[float], None]]


def _rounds(
    runner: Runner, gaps: tuple[float, ...], budget_s: float, times: _Times, report: Report | None
) -> list[tuple[int, int, int]]:
    """Return the pause, the latency after it and the warm latency of each round, in nanoseconds."""
    clock, sleep = times
    found: list[tuple[int, int, int]] = []
    start = paused = clock()
    for gap in gaps:
        sleep(gap)
        began = clock()
        latency = _inference(runner, clock)
        found.append((began - paused, latency, _warm(runner, clock)))
        paused = clock()
        if report is not None:
            report(len(found) / len(gaps), f"pause {len(found)} of {len(gaps)}")
        if (paused - start) / 1e9 >= budget_s:
            break
    return found


def _warm(runner: Runner, clock: Callable[[], int]) -> int:
    """Time the last inference of a burst."""
    end = clock() + _BURST_NS
    for done in range(1, _BURST_RUNS):
        _inference(runner, clock)
        if clock() >= end and done >= runner.plan.settle_runs:
            break
    return _inference(runner, clock)


def _inference(runner: Runner, clock: Callable[[], int]) -> int:
    try:
        start = clock()
        runner.run()
        return clock() - start
    except Exception as fault:
        raise ProfileError(f"{runner.name}: an inference failed between pauses: {fault}") from fault
