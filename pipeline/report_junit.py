"""The goals as a JUnit file, which every CI server shows: missed is a failure, unclear an error, never a pass."""

from __future__ import annotations

from xml.etree import ElementTree

from .record import GoalRow, Outcome, RunRecord
from .report_numbers import clean
from .report_text import goal_name, margin_text, measured, verdict_line

_TAGS: dict[Outcome, str] = {"missed": "failure", "unclear": "error"}


def junit_text(record: RunRecord) -> str:
    """Return the JUnit XML of a run: one test case per goal, or the verdict alone where there are no goals."""
    suites = ElementTree.Element("testsuites", _totals(record))
    suite = ElementTree.SubElement(suites, "testsuite", _totals(record))
    for goal in record.goals:
        case = _case(suite, f"{goal_name(goal)} {goal.bound}")
        _say(case, goal.outcome, goal.reason, _facts(goal))
    if not record.goals:
        _say(_case(suite, "verdict"), record.outcome, verdict_line(record), "\n".join(record.notes))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + clean(ElementTree.tostring(suites, "unicode")) + "\n"


def run_seconds(record: RunRecord) -> float:
    """Return how long the run took: its own total where it kept one, else the sum of its stages."""
    return record.seconds.get("total", sum(record.seconds.values()))


def _totals(record: RunRecord) -> dict[str, str]:
    outcomes = [goal.outcome for goal in record.goals] or [record.outcome]
    return {
        "name": "shipworthy",
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("missed")),
        "errors": str(outcomes.count("unclear")),
        "skipped": "0",
        "time": f"{run_seconds(record):.3f}",
    }


def _case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    # A goal has no duration of its own: all goals are judged from the measurements of the run.
    return ElementTree.SubElement(suite, "testcase", {"classname": "shipworthy.goals", "name": name, "time": "0.000"})


def _say(case: ElementTree.Element, outcome: Outcome, message: str, text: str) -> None:
    tag = _TAGS.get(outcome, "system-out")
    attributes = {} if tag == "system-out" else {"type": outcome, "message": message}
    ElementTree.SubElement(case, tag, attributes).text = text if attributes else f"{text}\n{message}"


def _facts(goal: GoalRow) -> str:
    return f"measured {measured(goal)}, bound {goal.bound}, margin {margin_text(goal)}"
