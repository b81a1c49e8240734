"""Goals and what becomes of them: met, missed or unclear. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from .errors import BadPlan


class Outcome(str, Enum):  # noqa: UP042 (StrEnum came with Python 3.11; this runs on devices that have 3.10)
    """The three answers."""

    __str__ = str.__str__

    MET = "met"
    MISSED = "missed"
    UNCLEAR = "unclear"


_EXIT_CODES = {Outcome.MET: 0, Outcome.MISSED: 1, Outcome.UNCLEAR: 3}


@dataclass(frozen=True)
class Goal:
    """A bound on a metric, on a runtime or device where that matters.

    Raises:
        BadPlan: no bound is given, a bound is not a finite number, or `min` is above `max`.
    """

    metric: str
    min: float | None = None
    max: float | None = None
    on: str | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if not bounds:
            raise BadPlan(f"goal {self.metric}: got no bound, wanted min, max or both")
        if not all(math.isfinite(bound) for bound in bounds):
            raise BadPlan(f"goal {self.metric}: got {self.bound}, wanted finite numbers")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise BadPlan(f"goal {self.metric}: got min {self.min:g} above max {self.max:g}; swap them")

    @property
    def bound(self) -> str:
        """The bound in words, such as `at most 1.5`."""
        low = [] if self.min is None else [f"at least {self.min:g}"]
        high = [] if self.max is None else [f"at most {self.max:g}"]
        return " and ".join(low + high)


@dataclass(frozen=True)
class Reading:
    """What was measured for a goal.

    Attributes:
        value: None only where the reading is absent.
        low: lower end of the 95 % interval; None with `high` None means that the value is exact.
        high: upper end.
        unit: such as `ms`; empty for a ratio or a count.
        absent: why there is no value, such as a device that is not there.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    absent: str | None = None


@dataclass(frozen=True)
class GoalVerdict:
    """What became of one goal.

    Attributes:
        margin: room between the value and the nearest bound in the reading's unit, above zero on the good side;
            None without a value.
        reason: in plain words.
    """

    goal: Goal
    outcome: Outcome
    margin: float | None
    reason: str
    reading: Reading


@dataclass(frozen=True)
class Verdict:
    """What became of all goals together."""

    outcome: Outcome
    goals: tuple[GoalVerdict, ...]
    reason: str

    @property
    def exit_code(self) -> int:
        """0 met, 1 missed, 3 unclear."""
        return _EXIT_CODES[self.outcome]


def judge(goal: Goal, reading: Reading) -> GoalVerdict:
    """Decide one goal: met when the whole interval is on the good side, missed when it is wholly on the bad side.

    A reading without an interval is decided by its value, which may equal the bound. An absent reading and one that is
    not a number are unclear, and so is an interval that contains a bound.
    """
    if reading.absent is not None or reading.value is None:
        why = reading.absent or "no value was measured"
        return GoalVerdict(goal, Outcome.UNCLEAR, None, f"not measured: {why}", reading)
    low, high = _ends(reading.value, reading)
    if any(math.isnan(number) for number in (reading.value, low, high)):
        return GoalVerdict(goal, Outcome.UNCLEAR, None, "the reading is not a number (NaN)", reading)
    outcome = _outcome(goal, low, high)
    return GoalVerdict(goal, outcome, _room(goal, reading.value), _reason(goal, reading, outcome), reading)


def conclude(goals: Iterable[GoalVerdict]) -> Verdict:
    """Sum up: missed if any goal is missed, else unclear if any is unclear or there is none, else met."""
    found = tuple(goals)
    if not found:
        return Verdict(Outcome.UNCLEAR, found, "no goals were given, so there is nothing to meet")
    for outcome in (Outcome.MISSED, Outcome.UNCLEAR):
        names = [each.goal.metric for each in found if each.outcome is outcome]
        if names:
            return Verdict(outcome, found, f"{len(names)} of {len(found)} goals {outcome}: {', '.join(names)}")
    return Verdict(Outcome.MET, found, "the only goal is met" if len(found) == 1 else f"all {len(found)} goals are met")


def _ends(value: float, reading: Reading) -> tuple[float, float]:
    if reading.low is None and reading.high is None:
        return value, value
    return (
        -math.inf if reading.low is None else reading.low,
        math.inf if reading.high is None else reading.high,
    )


def _outcome(goal: Goal, low: float, high: float) -> Outcome:
    least = -math.inf if goal.min is None else goal.min
    most = math.inf if goal.max is None else goal.max
    if least <= low and high <= most:
        return Outcome.MET
    return Outcome.MISSED if high < least or low > most else Outcome.UNCLEAR


def _room(goal: Goal, value: float) -> float:
    rooms = [] if goal.min is None else [value - goal.min]
    return min(rooms if goal.max is None else [*rooms, goal.max - value])


def _reason(goal: Goal, reading: Reading, outcome: Outcome) -> str:
    unit = f" {reading.unit}" if reading.unit else ""
    if reading.low is None and reading.high is None:
        return f"{reading.value:.4g}{unit} (exact), wanted {goal.bound}{unit}"
    low = "unknown" if reading.low is None else f"{reading.low:.4g}"
    high = "unknown" if reading.high is None else f"{reading.high:.4g}"
    measured = f"{reading.value:.4g}{unit} (95 % interval {low} to {high}), wanted {goal.bound}{unit}"
    return f"{measured}: the interval reaches over the bound" if outcome is Outcome.UNCLEAR else measured
