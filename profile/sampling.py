"""The sampling loop: runners take turns, the clock and the stop rule come from outside, and it always ends."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .errors import ProfileError
from .plan import Plan
from .stopping import MAX_ROUNDS, Rule

Report = Callable[[float, str], None]
"""Takes the share that is done (0 to 1) and what is going on."""

_REPORT_EVERY_NS = 250_000_000


@dataclass(frozen=True)
class Turn:
    """What takes turns: a name for messages and the call to time."""

    name: str
    run: Callable[[], None]


@dataclass(frozen=True)
class Sampled:
    """What a loop saw: nanoseconds per turn and round, and why it ended."""

    series: tuple[list[int], ...]
    reason: str


def orders(count: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield the order of each round without end: a random order, then its mirror image (ABBA), then a new one.

    Mirroring cancels a drift within a pair of rounds; a random start keeps the loop out of step with anything periodic.
    """
    generator = np.random.default_rng(seed)
    while True:
        order = tuple(int(i) for i in generator.permutation(count))
        yield order
        yield order[::-1]


def sample(
    turns: Sequence[Turn], plan: Plan, rule: Rule, clock: Callable[[], int], report: Report | None = None
) -> Sampled:
    """Run all turns round by round until the rule gives a reason, at most `plan.max_rounds` rounds.

    Args:
        turns: at least one.
        plan: `seed` for the order, `settle_runs`, `max_rounds`, and what the rule reads from it.
        rule: asked after every round; see `stopping.py`.
        clock: returns nanoseconds that never go back.
        report: called between rounds, about four times a second.

    Raises:
        ProfileError: a turn's call raised.
    """
    series: tuple[list[int], ...] = tuple([] for _ in turns)
    start = reported = clock()
    for done, order in zip(range(1, plan.max_rounds + 1), orders(len(turns), plan.seed), strict=False):
        for i in order:
            series[i].append(_time(turns[i], plan.settle_runs, clock))
        now = clock()
        reason = rule(series, (now - start) / 1e9, plan)
        if reason is not None:
            return Sampled(series, reason)
        if report is not None and now - reported >= _REPORT_EVERY_NS:
            report(_share(done, (now - start) / 1e9, plan), f"round {done}")
            reported = now
    return Sampled(series, MAX_ROUNDS)


def _time(turn: Turn, settle_runs: int, clock: Callable[[], int]) -> int:
    run = turn.run
    try:
        for _ in range(settle_runs):
            run()
        start = clock()
        run()
        return clock() - start
    except Exception as fault:
        raise ProfileError(f"{turn.name}: an inference failed while it was measured: {fault}") from fault


def _share(done: int, elapsed_s: float, plan: Plan) -> float:
    spent = elapsed_s / plan.budget_s if plan.budget_s else 1.0
    return min(1.0, max(done / plan.max_rounds, spent))


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect garbage now and keep the collector from running inside a sample."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
