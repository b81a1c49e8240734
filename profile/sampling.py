"""The sampling loop: runners take turns, the clock and the stop rule come from outside, and it always ends."""

from __future__ import annotations

import gc
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, final

import numpy as np

from .errors import ProfileError
from .plan import Plan
from .stopping import BUDGET, CAP, MAX_ROUNDS, Rule

Report = Callable[[float, str], None]
"""Takes the share that is done (0 to 1) and what is going on."""

_WINDOW_NS = 250_000_000
_JUDGED_NS = 125_000_000
_ALLOWANCE = 0.25


@dataclass(frozen=True)
class Turn:
    """What takes turns: a name for messages, the call to time, and what its device's clock says of the last one."""

    name: str
    run: Callable[[], None]
    device_ns: Callable[[], int | None] | None = None


@dataclass(frozen=True)
class Sampled:
    """What a loop saw.

    Attributes:
        series: nanoseconds per turn and round.
        reason: why the loop ended.
        aside: the same of rounds that were set aside, since the machine was disturbed meanwhile.
        disturbances: what disturbed it, and in how many windows.
        endured: how many disturbed windows were kept, since a quarter of the budget had gone to such already.
        device: like `series`, by the clocks of the turns' devices; empty for a turn without one.
    """

    series: tuple[array[int], ...]
    reason: str
    aside: tuple[array[int], ...] = ()
    disturbances: Mapping[str, int] = field(default_factory=dict)
    endured: int = 0
    device: tuple[array[int], ...] = ()


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
    turns: Sequence[Turn],
    plan: Plan,
    rule: Rule,
    clock: Callable[[], int],
    report: Report | None = None,
    watch: Watch | None = None,
) -> Sampled:
    """Run all turns round by round until the rule gives a reason, at most `plan.max_rounds` rounds.

    Rounds are kept in windows of about a quarter of a second. A window in which the machine was disturbed is set aside
    and taken again, until a quarter of the budget has gone that way, rests included. Samples themselves never decide
    over this.

    Args:
        turns: at least one.
        plan: `seed` for the order, `settle_runs`, `max_rounds`, `budget_s`, and what the rule reads from it.
        rule: asked after every round; see `stopping.py`.
        clock: returns nanoseconds that never go back.
        report: called between rounds, about four times a second.
        watch: asked between windows whether the machine was disturbed; None: it never is.

    Raises:
        ProfileError: a turn's call raised.
    """
    if watch is not None:
        watch.begin()
    windows = _Windows(len(turns), watch, _ALLOWANCE * plan.budget_s, clock)
    start = reported = windows.began
    for done, order in enumerate(orders(len(turns), plan.seed), 1):
        for i in order:
            windows.series[i].append(_time(turns[i], plan.settle_runs, clock))
            windows.add_device_time(i, turns[i])
        now = clock()
        elapsed_s = (now - start) / 1e9
        reason = rule(windows.series, elapsed_s, plan) or (MAX_ROUNDS if windows.rounds >= plan.max_rounds else None)
        over = elapsed_s >= plan.budget_s
        # A window that is too short to be judged is not the one to end with, unless a bound of the plan says so.
        ends = reason is not None and (
            over or reason == MAX_ROUNDS or watch is None or now - windows.began >= _JUDGED_NS
        )
        if ends or now - windows.began >= _WINDOW_NS:
            repeat = windows.close(now, last=over)
            if reason is not None and ends and not repeat:
                return windows.sampled(reason)
            windows.began = clock()
        if report is not None and now - reported >= _WINDOW_NS:
            report(_share(windows.rounds, elapsed_s, plan), f"round {done}")
            reported = now
    raise AssertionError("orders never end")


class Watch(Protocol):
    """Looks at the machine, never at samples."""

    def begin(self) -> None:
        """Let the first window begin now."""

    def disturbance(self) -> str | None:
        """Say what disturbed the machine since the last call, or None."""

    def rest(self) -> None:
        """Wait before the next window, after a disturbed one."""


@final
class _Windows:
    """The rounds so far; those since `began` may still be set aside."""

    def __init__(self, count: int, watch: Watch | None, allowance_s: float, clock: Callable[[], int]) -> None:
        self.series: tuple[array[int], ...] = tuple(array("q") for _ in range(count))
        self.began = clock()
        self._clock = clock
        self._aside: tuple[array[int], ...] = tuple(array("q") for _ in range(count))
        self._device: tuple[array[int], ...] = tuple(array("q") for _ in range(count))
        self._kept = 0
        self._watch = watch
        self._allowance_ns = allowance_s * 1e9
        self._disturbances: Counter[str] = Counter()
        self._endured = 0

    @property
    def rounds(self) -> int:
        """Those kept, and those of the open window."""
        return len(self.series[0])

    def add_device_time(self, place: int, turn: Turn) -> None:
        """Add what the turn's device says of its last call."""
        told = None if turn.device_ns is None else turn.device_ns()
        if told is not None:
            self._device[place].append(told)

    def close(self, now: int, last: bool) -> bool:
        """End the window: keep it, as always where it is the last, or set it aside, rest and return True."""
        reason = None if self._watch is None else self._watch.disturbance()
        if self._watch is None or reason is None:
            self._kept = self.rounds
            return False
        self._disturbances[reason] += 1
        self._allowance_ns -= now - self.began
        if last or self._allowance_ns < 0:
            self._endured += 1
            self._kept = self.rounds
            return False
        for series, aside in zip(self.series, self._aside, strict=True):
            aside.extend(series[self._kept :])
            del series[self._kept :]
        for device in self._device:
            del device[self._kept :]
        self._watch.rest()
        self._allowance_ns -= self._clock() - now
        return True

    def sampled(self, reason: str) -> Sampled:
        """Return what was seen."""
        return Sampled(self.series, reason, self._aside, dict(self._disturbances), self._endured, self._device)


def unsettled(warm: Sampled, plan: Plan) -> dict[str, bool]:
    """Return the note on warm-up that did not settle, and whether it holds."""
    return {f"warm-up had not settled after {plan.warmup_cap_s:g} s": warm.reason == CAP}


def spent(seen: Sampled, plan: Plan) -> dict[str, bool]:
    """Return the note on a budget that ended sampling, and whether it holds."""
    text = f"the budget of {plan.budget_s:g} s ended sampling after {len(seen.series[0])} rounds"
    return {text: seen.reason == BUDGET}


def disturbance_notes(watch: Watch | None) -> tuple[str, ...]:
    """Return a note on what disturbed the machine since the last look, or none."""
    reason = None if watch is None else watch.disturbance()
    return () if reason is None else (f"while it measured, {reason}",)


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
