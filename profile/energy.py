"""Joules of one inference beyond what the idle device takes, from counters of energy; never from guesses.

The counter is read before and after windows of many inferences; the power of the idle device, taken before and after
all windows, is subtracted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, final

from .energy_counters import Counter, open_counter
from .errors import BadPlan, ProfileError, RuntimeAbsent
from .runners import Runner, on_gpu
from .stats import Estimate, median_interval

_TICK_S = 0.25
_MOST_RUNS = 10_000_000  # ends a window whose clock stands still
_NOTED = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long to look.

    Attributes:
        warmup_s: seconds of inferences that are not counted, so that clocks and temperature settle.
        rest_s: seconds of rest before the idle device is looked at: its power falls only gradually.
        idle_s: seconds of the idle device, once before and once after all windows.
        window_s: seconds of one window; GPUs renew their counter only every 20 to 100 ms.
        windows: how many; an interval needs 6, and more where one window depends on the last.

    Raises:
        BadPlan: a setting is out of its range.
    """

    warmup_s: float = 1.0
    rest_s: float = 1.0
    idle_s: float = 2.0
    window_s: float = 0.5
    windows: int = 24

    def __post_init__(self) -> None:
        for name in ("warmup_s", "rest_s"):
            _demand(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "seconds of at least 0")
        for name in ("idle_s", "window_s"):
            _demand(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "seconds above 0")
        _demand("windows", self.windows, self.windows >= 1, "a whole number of at least 1")


@dataclass(frozen=True)
class Window:
    """What was counted while so many inferences ran."""

    seconds: float
    joules: float
    inferences: int


@dataclass(frozen=True)
class Energy:
    """The energy of one inference. Raw windows are kept; the figures are derived from them.

    Attributes:
        windows: in order; empty where `absent` is set.
        idle_before_w: power in watts of the idle device before the windows; the runner was open already.
        idle_after_w: the same after them.
        source: the counter.
        includes: what it counts beside the inference, and what it leaves out.
        absent: why there is no figure, or None.
    """

    windows: tuple[Window, ...] = ()
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    source: str = ""
    includes: str = ""
    absent: str | None = None

    @property
    def idle_w(self) -> float | None:
        """The power that is subtracted: the mean of before and after."""
        if self.idle_before_w is None or self.idle_after_w is None:
            return None
        return (self.idle_before_w + self.idle_after_w) / 2

    @property
    def drift_w(self) -> float | None:
        """How far the idle power moved meanwhile."""
        if self.idle_before_w is None or self.idle_after_w is None:
            return None
        return abs(self.idle_after_w - self.idle_before_w)

    @property
    def joules(self) -> float | None:
        """Joules per inference beyond the idle device: the median of the windows."""
        found = self._net()
        return None if found is None else found.value

    @property
    def low(self) -> float | None:
        """The lower end: of the windows' 95 % interval, less what the idle power may be off by (half its drift)."""
        found = self._net()
        return None if found is None or found.low is None else found.low - self._off()

    @property
    def high(self) -> float | None:
        """The upper end."""
        found = self._net()
        return None if found is None or found.high is None else found.high + self._off()

    @property
    def gross_joules(self) -> float | None:
        """Joules per inference with the idle power in: what the device took, over what it did."""
        return sum(one.joules for one in self.windows) / self._inferences() if self.windows else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        return _notes(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with what is derived."""
        derived = ("idle_w", "drift_w", "joules", "low", "high", "gross_joules", "notes")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def _net(self) -> Estimate | None:
        idle = self.idle_w
        if idle is None or not self.windows:
            return None
        return median_interval([(one.joules - idle * one.seconds) / one.inferences for one in self.windows])

    def _off(self) -> float:
        seconds = sum(one.seconds for one in self.windows)
        return (self.drift_w or 0.0) / 2 * seconds / self._inferences()

    def _inferences(self) -> int:
        return sum(one.inferences for one in self.windows)


def energy_per_inference(runner: Runner, schedule: Schedule | None = None) -> Energy:
    """Measure the energy of an open runner's inferences, on the device that it runs on.

    On a GPU that is the whole board's and not the processor's. Takes 20 s by default. The path on a GPU is not run on
    a GPU yet.

    Args:
        runner: open.
        schedule: how long; `Schedule()` if None.

    Returns:
        The energy; where no counter can be read, `absent` says why and there is no number.

    Raises:
        ProfileError: an inference failed, or a counter could no longer be read.
    """
    try:
        counter = open_counter("cuda" if on_gpu(runner) else "cpu")
    except RuntimeAbsent as fault:
        return Energy(absent=str(fault))
    with closing(counter):
        try:
            return measure_energy(runner.run, counter, schedule or Schedule())
        except ProfileError:
            raise
        except Exception as fault:
            message = f"{runner.name}: an inference failed while its energy was measured: {fault}"
            raise ProfileError(message) from fault


def measure_energy(
    run: Callable[[], Any],
    counter: Counter,
    schedule: Schedule,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Any] = time.sleep,
) -> Energy:
    """Measure the energy of a call.

    Windows begin and end where the counter moves, so that its slowness costs nothing.

    Args:
        run: one inference.
        counter: of the device that it runs on.
        schedule: how long.
        clock: seconds that never go back.
        sleep: waits for so many seconds.

    Raises:
        ProfileError: the counter could no longer be read.
    """
    meter = _Meter(counter, clock, sleep)
    before = meter.idle_w(schedule)
    meter.busy(run, schedule.warmup_s)
    windows = meter.windows(run, schedule)
    after = meter.idle_w(schedule)
    moved = sum(one.joules for one in windows)
    if moved <= 0:
        seconds = sum(one.seconds for one in windows)
        return Energy(absent=f"energy: the counter {counter.name} did not move in {seconds:.1f} s of work")
    return Energy(windows, before, after, counter.name, counter.includes)


@final
class _Meter:
    """Reads a counter at the moments when it moves."""

    def __init__(self, counter: Counter, clock: Callable[[], float], sleep: Callable[[float], Any]) -> None:
        self._read, self._clock, self._sleep = counter.read_joules, clock, sleep

    def idle_w(self, schedule: Schedule) -> float:
        """Return the power while nothing is run."""
        self._sleep(schedule.rest_s)
        start_s, start_j, _ = self._edge(lambda: self._sleep(0.001))
        self._sleep(schedule.idle_s)
        end_s, end_j, _ = self._edge(lambda: self._sleep(0.001))
        return (end_j - start_j) / (end_s - start_s)

    def windows(self, run: Callable[[], Any], schedule: Schedule) -> tuple[Window, ...]:
        """Run without a pause; each window begins where the last one ended."""
        found = []
        start_s, start_j, _ = self._edge(run)
        for _ in range(schedule.windows):
            count = self.busy(run, schedule.window_s)
            end_s, end_j, more = self._edge(run)
            found.append(Window(end_s - start_s, end_j - start_j, count + more))
            start_s, start_j = end_s, end_j
        return tuple(found)

    def busy(self, run: Callable[[], Any], seconds: float) -> int:
        """Run for so long, and return how often."""
        count, until = 0, self._clock() + seconds
        while self._clock() < until and count < _MOST_RUNS:
            run()
            count += 1
        return count

    def _edge(self, step: Callable[[], Any]) -> tuple[float, float, int]:
        """Step until the counter moves, for a quarter of a second at most; return time, joules and steps."""
        seen, until, count = self._read(), self._clock() + _TICK_S, 0
        while True:
            step()
            count += 1
            joules, now = self._read(), self._clock()
            if joules != seen or now >= until or count >= _MOST_RUNS:
                return now, joules, count


def _notes(energy: Energy) -> tuple[str, ...]:
    idle, drift = energy.idle_w, energy.drift_w
    if idle is None or drift is None:
        return ()
    before, after = energy.idle_before_w, energy.idle_after_w
    found = {
        f"the idle power went from {before:.3g} to {after:.3g} W meanwhile": drift > _NOTED * idle,
        f"{len(energy.windows)} windows are too few for an interval, or depend on each other": energy.low is None,
        "its interval reaches down to nothing: it cannot be told from the idle device": (
            energy.low is not None and energy.low <= 0
        ),
    }
    return tuple(text for text, holds in found.items() if holds)


def _demand(name: str, got: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise BadPlan(f"schedule.{name}: got {got!r}, wanted {wanted}")
