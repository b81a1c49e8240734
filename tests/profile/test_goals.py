"""Goals against readings, and the verdict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipworthy.profile.errors import BadPlan
from shipworthy.profile.goals import Goal, Outcome, Reading, conclude, judge

MOST = Goal("latency_p50_ms", max=1.0, on="ort-cpu")
LEAST = Goal("speedup", min=3.0)
BETWEEN = Goal("share", min=0.2, max=0.8)


@pytest.mark.parametrize(
    ("goal", "reading", "outcome", "margin"),
    [
        (MOST, Reading(0.8, 0.7, 0.9, "ms"), "met", 0.2),
        (MOST, Reading(0.8, 0.7, 1.0, "ms"), "met", 0.2),
        (MOST, Reading(0.9, 0.7, 1.1, "ms"), "unclear", 0.1),
        (MOST, Reading(1.3, 1.1, 1.5, "ms"), "missed", -0.3),
        (MOST, Reading(1.0), "met", 0.0),
        (MOST, Reading(1.01), "missed", -0.01),
        (MOST, Reading(0.5, 0.4, None), "unclear", 0.5),
        (LEAST, Reading(7.0, 6.5, 7.5), "met", 4.0),
        (LEAST, Reading(3.1, 2.9, 3.3), "unclear", 0.1),
        (LEAST, Reading(2.0, 1.9, 2.1), "missed", -1.0),
        (LEAST, Reading(5.0, 4.0, None), "met", 2.0),
        (BETWEEN, Reading(0.5, 0.3, 0.7), "met", 0.3),
        (BETWEEN, Reading(0.5, 0.1, 0.9), "unclear", 0.3),
        (BETWEEN, Reading(0.9, 0.85, 0.95), "missed", -0.1),
        (BETWEEN, Reading(0.1), "missed", -0.1),
    ],
)
def test_the_whole_interval_decides(goal: Goal, reading: Reading, outcome: str, margin: float) -> None:
    """Met when the whole interval is on the good side, missed when it is wholly on the bad side, else unclear."""
    found = judge(goal, reading)
    assert found.outcome == outcome
    assert found.margin == pytest.approx(margin)
    assert goal.bound in found.reason


def test_an_absent_reading_is_unclear_and_says_why() -> None:
    """A goal about a device that is absent is never met."""
    found = judge(MOST, Reading(absent="no NVIDIA driver is installed"))
    assert (found.outcome, found.margin) == (Outcome.UNCLEAR, None)
    assert found.reason == "not measured: no NVIDIA driver is installed"
    assert judge(MOST, Reading()).reason == "not measured: no value was measured"


@pytest.mark.parametrize("reading", [Reading(float("nan")), Reading(0.5, float("nan"), 0.6)])
def test_nan_is_unclear(reading: Reading) -> None:
    """What is not a number meets nothing and misses nothing."""
    found = judge(MOST, reading)
    assert (found.outcome, found.margin) == (Outcome.UNCLEAR, None)
    assert "NaN" in found.reason


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, "goal x: got no bound, wanted min, max or both"),
        ({"min": 2, "max": 1}, "goal x: got min 2 above max 1; swap them"),
        ({"max": float("nan")}, "goal x: got at most nan, wanted finite numbers"),
    ],
)
def test_a_goal_without_sense_is_refused(bounds: dict[str, Any], words: str) -> None:
    """A goal needs a finite bound, and a range that is not empty."""
    with pytest.raises(BadPlan, match=words):
        Goal("x", **bounds)


def test_the_verdict_is_the_worst_goal() -> None:
    """Missed beats unclear beats met, with exit codes 1, 3 and 0; nothing to meet is unclear."""
    met, missed = judge(MOST, Reading(0.5)), judge(MOST, Reading(2.0))
    unclear = judge(LEAST, Reading(absent="no GPU"))
    cases = {(met,): 0, (met, met): 0, (met, unclear): 3, (unclear, missed, met): 1, (): 3}
    assert {goals: conclude(goals).exit_code for goals in cases} == cases
    assert conclude([met, unclear]).reason == "1 of 2 goals unclear: speedup"
    assert "no goals were given" in conclude([]).reason


@given(st.floats(-10, 10), st.floats(0, 5), st.floats(0, 5), st.floats(-10, 10))
def test_a_tighter_interval_never_turns_met_into_missed(value: float, below: float, above: float, bound: float) -> None:
    """An exact reading inside the interval of a decided one is decided alike."""
    wide = judge(Goal("x", max=bound), Reading(value, value - below, value + above)).outcome
    exact = judge(Goal("x", max=bound), Reading(value)).outcome
    assert wide in (exact, Outcome.UNCLEAR)
