"""What the sampling loop costs: inside a sample, around it, and in memory over ten minutes."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from shipworthy.benchmarks.common import table
from shipworthy.benchmarks.coverage import peak_memory
from shipworthy.benchmarks.profiler_common import Row, Settings, goal

if TYPE_CHECKING:
    from shipworthy.profile.plan import Plan
    from shipworthy.profile.stopping import Rule, Series

INSIDE_GOAL_NS, MEMORY_GOAL_MB, MEMORY_GOAL_RATE = 1000, 100, 1000
MINUTES, RATES = 10, (100, 1000, 10_000)


class Cost(NamedTuple):
    """What to measure: time over so many rounds, or memory at so many samples a second."""

    rounds: int
    rate: int | None = None


def overhead_units(settings: Settings) -> dict[str, Cost]:
    """Return the loop's time, and its memory at several rates."""
    rounds, seconds, rates = (500, 1, RATES[1:2]) if settings.quick else (20_000, 60 * MINUTES, RATES)
    costs = [Cost(rounds), *(Cost(seconds * rate, rate) for rate in rates)]
    return {f"overhead {one.rounds} rounds{f' at {one.rate} a second' if one.rate else ''}": one for one in costs}


def cost(unit: Cost) -> Row:
    """Measure one."""
    found = time_of_loop(unit.rounds) if unit.rate is None else memory_of(unit.rounds, unit.rate)
    return {"experiment": "overhead", **unit._asdict(), **found}


def nothing() -> None:
    """Do nothing, to be timed."""


def time_of_loop(rounds: int) -> Row:
    """Time a call that does nothing, sampled as any other, and the clock alone.

    Three pieces of each in turns, and of each the median of all samples: a burst from elsewhere hits all alike.
    """
    from shipworthy.profile.measure import interleave
    from shipworthy.profile.plan import Plan
    from shipworthy.profile.runners import open_runner
    from shipworthy.profile.stopping import ended

    plan = Plan(warmup_s=0.05, min_rounds=rounds // 2, max_rounds=rounds, precision=0.0, budget_s=1e6, settle_runs=0)
    inside: list[int] = []
    clock: list[int] = []
    around: dict[str, list[float]] = {"loop_ns": [], "loop_and_looks_ns": []}
    for _ in range(3):
        clock += clock_alone(rounds)
        with open_runner(nothing, "callable", plan) as runner:
            found = interleave([runner], plan)[0]
            inside += found.samples_ns
        around["loop_ns"].append(around_samples(rounds, ended))
        around["loop_and_looks_ns"].append(around_samples(rounds, looking))
    times = {name: median(found) for name, found in around.items()}
    return {"sample_ns": median(inside), "clock_ns": median(clock), **times}


def clock_alone(count: int) -> list[int]:
    """Return the nanoseconds between so many pairs of calls of the clock."""
    clock, found = time.perf_counter_ns, []
    for _ in range(count):
        start = clock()
        found.append(clock() - start)
    return found


def looking(series: Series, elapsed_s: float, plan: Plan) -> str | None:
    """Look as the usual rule does, but at once, and go on: times of nothing are precise soon."""
    from shipworthy.profile.stopping import ended, sampling_done

    sampling_done(series, max(elapsed_s, plan.least_s), plan)
    return ended(series, elapsed_s, plan)


def around_samples(rounds: int, rule: Rule) -> float:
    """Return the nanoseconds of processor time per round that a series of such calls takes beside its samples.

    Processor time leaves out what other processes take, which would count for these microseconds.
    """
    from shipworthy.profile.plan import Plan
    from shipworthy.profile.sampling import Turn, collector_off, sample

    plan = Plan(min_rounds=min(200, rounds), max_rounds=rounds, precision=0.0, budget_s=1e6, settle_runs=0)
    with collector_off():
        began = time.process_time_ns()
        found = sample([Turn("nothing", nothing)], plan, rule, time.perf_counter_ns)
        spent = time.process_time_ns() - began
    return spent / len(found.series[0]) - median(found.series[0])


# --- memory


def memory_of(rounds: int, rate: int) -> Row:
    """Return the most MB that so many rounds add to a fresh process, whose clock is invented; Linux only."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_memory, args=(rounds, rate, sender))
    child.start()
    sender.close()
    try:
        found: Row = receiver.recv()
    except EOFError:
        found = {"fault": "the process died"}
    child.join()
    return found


def _memory(rounds: int, rate: int, sender: Connection) -> None:
    from shipworthy.profile.measure import interleave
    from shipworthy.profile.plan import Plan
    from shipworthy.profile.runners import open_runner

    plan = Plan(warmup_s=0.0, warmup_cap_s=0.0, min_rounds=100, max_rounds=rounds, precision=0.0, budget_s=1e9)
    short = Plan(warmup_s=0.0, warmup_cap_s=0.0, min_rounds=100, max_rounds=100)
    for warm in (short, plan):  # the first loads libraries
        before = peak_memory(anew=True)
        with open_runner(nothing, "callable", warm) as runner:
            found = interleave([runner], warm, clock=invented_clock(rate))[0]
            percentiles = found.percentiles()
        peak = peak_memory()
    sender.send({
        "samples": len(found.samples_ns), "seconds": rounds / rate, "added_mb": (peak - before) * 2**20 / 1e6,
        "stop_reason": found.stop_reason, "percentiles": len(percentiles),
    })  # fmt: skip


def invented_clock(rate: int) -> Callable[[], int]:
    """Return a clock on which inferences follow each other at so many a second, each a little different.

    The loop asks for the time thrice in a round: around the inference, and after it.
    """

    def ticks() -> Iterator[int]:
        now, chance = 0, random.Random(0)
        while True:
            now += round(1e9 / rate / 3 * (0.9 + 0.2 * chance.random()))
            yield now

    return ticks().__next__


# --- the report


def overhead_report(rows: Sequence[Row]) -> str:
    """Return times and memory, and whether both goals are reached."""
    from shipworthy.profile.plan import Plan

    times, memory = [row for row in rows if row["rate"] is None], [row for row in rows if row["rate"] is not None]
    text = "".join(_time_text(row) for row in times)
    judged = [row for row in memory if row["rate"] <= MEMORY_GOAL_RATE]
    reached = all("added_mb" in row and row["added_mb"] < MEMORY_GOAL_MB for row in judged)
    head = ("samples a second", "samples", "invented minutes", "MB added at the peak", "ended by")
    return (
        f"{text}\nMemory of a series in a fresh process on an invented clock, percentiles included. The default plan\n"
        f"ends at {Plan().max_rounds:,} rounds; these raise `max_rounds`.\n\n{table(head, map(_memory_line, memory))}\n"
        + goal(f"under {MEMORY_GOAL_MB} MB for {MINUTES} minutes at {MEMORY_GOAL_RATE:,} samples a second", reached)
    )


def _time_text(row: Row) -> str:
    inside = row["sample_ns"] - row["clock_ns"]
    loop, looks = row["loop_ns"] / 1000, (row["loop_and_looks_ns"] - row["loop_ns"]) / 1000
    return (
        f"A call that does nothing, {row['rounds']:,} rounds, thrice. The median of its samples is\n"
        f"{row['sample_ns']:.0f} ns; two calls of the clock lie {row['clock_ns']:.0f} ns apart. So the loop and the\n"
        f"empty call add {inside:.0f} ns to a sample. Around it a round takes {loop:.2f} us of processor time,\n"
        f"and looks at the precision take {looks:.2f} us of each round in the mean.\n\n"
        + goal(f"under {INSIDE_GOAL_NS / 1000:g} us inside a sample", inside < INSIDE_GOAL_NS)
    )


def _memory_line(row: dict[str, Any]) -> tuple[str, ...]:
    if "fault" in row:
        return (f"{row['rate']:,}", f"{row['rounds']:,}", "", row["fault"], "")
    minutes = f"{row['seconds'] / 60:.2g}"
    return f"{row['rate']:,}", f"{row['samples']:,}", minutes, f"{row['added_mb']:.0f}", row["stop_reason"]
