"""The runs of a profile by layer: a fixed number of them, without the profiler and with it, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from .plan import Plan
from .sampling import Turn, sample
from .stopping import warmup_done

_BLOCKS = 5


def warm_up(turn: Turn, plan: Plan) -> None:
    """Run until the times settle, within the plan's bounds."""
    sample((turn,), plan, warmup_done, time.perf_counter_ns)


def sample_runs(turns: Sequence[Turn], plan: Plan, runs: int) -> tuple[Sequence[int], ...]:
    """Return nanoseconds of so many rounds, however long they take."""
    return sample(turns, plan, partial(_enough, runs), time.perf_counter_ns).series


def blocks(runs: int) -> list[int]:
    """Split runs into a few even blocks: with and without the profiler take turns, and it is not started every run."""
    count = min(_BLOCKS, runs)
    return [runs // count + (i < runs % count) for i in range(count)]


def timed(run: Callable[[], object]) -> int:
    """Return the nanoseconds of one call."""
    start = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start


def _enough(runs: int, series: Sequence[Sequence[int]], elapsed_s: float, plan: Plan) -> str | None:
    return "runs" if len(series[0]) >= runs else None
