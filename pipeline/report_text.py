"""What every report says of a run: the names of goals, the rows that belong together, and the verdict in a sentence."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from .record import ArtifactRow, ComparisonRow, Figure, GoalRow, LatencyRow, Outcome, RunRecord
from .report_numbers import (
    NONE,
    TIMES,
    clean,
    count,
    decimals_of,
    duration,
    figure_text,
    fixed,
    inverse,
    percent,
    ratio_text,
    scaled,
    shorten,
    significant,
    size,
    with_unit,
)

__all__ = [
    "GOAL_COLUMNS",
    "NONE",
    "baseline_names",
    "baseline_of",
    "bounds_of",
    "cautions",
    "comparison_of",
    "count",
    "duration",
    "figure_text",
    "finished_text",
    "goal_lines",
    "goal_name",
    "latency_of",
    "margin_text",
    "measured",
    "percent",
    "ratio_text",
    "shipped",
    "shorten",
    "size",
    "size_phrase",
    "sizes",
    "speed_phrase",
    "verdict_line",
    "verdict_parts",
]
GOAL_COLUMNS = ("outcome", "goal", "bound", "measured (95 % interval)", "margin", "reason")
_OUTCOMES: tuple[Outcome, ...] = ("missed", "unclear", "met")
_BOUND = re.compile(r"(at least|at most|>=|<=|min|max)\W*?([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", re.I)


def bounds_of(goal: GoalRow) -> tuple[float | None, float | None]:
    """Return the least and the most that the text of a goal's bound allows; None where it sets no such bound."""
    found: dict[bool, float] = {}
    for word, number in _BOUND.findall(goal.bound):
        found.setdefault(word.lower() in ("at least", ">=", "min"), float(number))
    return found.get(True), found.get(False)


def goal_name(goal: GoalRow) -> str:
    """Return the goal as a reader names it: `speedup on ort-cpu`."""
    return f"{goal.metric} on {goal.on}" if goal.on else goal.metric


def measured(goal: GoalRow) -> str:
    """Return what was measured for a goal, with digits enough to tell it from its bound."""
    return figure_text(goal.figure, goal.unit, [bound for bound in bounds_of(goal) if bound is not None])


def margin_text(goal: GoalRow) -> str:
    """Return the signed margin in the goal's unit; a real margin never reads as zero."""
    if goal.margin is None:
        return NONE
    decimals = 2 if goal.figure is None else max(1, decimals_of(goal.figure))
    number = fixed(goal.margin, decimals)
    if not number.strip("-0.,"):
        number = significant(goal.margin, 1)
    return with_unit(f"+{number}" if goal.margin > 0 else number, goal.unit)


def goal_lines(record: RunRecord) -> list[tuple[str, ...]]:
    """Return one row of texts per goal, in the order of `GOAL_COLUMNS`; missed and unclear goals are in place."""
    return [
        (goal.outcome.upper(), goal_name(goal), goal.bound, measured(goal), margin_text(goal), goal.reason)
        for goal in record.goals
    ]


def shipped(record: RunRecord) -> ArtifactRow | None:
    """Return the artifact that the verdict is about."""
    return next((row for row in record.artifacts if row.ships), None)


def comparison_of(record: RunRecord) -> ComparisonRow | None:
    """Return the first comparison of the shipped artifact with the baseline."""
    ship = shipped(record)
    return next((row for row in record.comparisons if ship and row.artifact == ship.name), None)


def baseline_names(record: RunRecord) -> set[str]:
    """Return the names under which rows of the record speak of the uncompressed model."""
    return {"baseline", *(row.baseline for row in record.comparisons)}


def baseline_of(record: RunRecord) -> ArtifactRow | None:
    """Return the uncompressed model's file."""
    names = baseline_names(record)
    return next((row for row in record.artifacts if row.name in names and not row.ships), None)


def sizes(record: RunRecord) -> tuple[int, int] | None:
    """Return the bytes of the baseline file and of the shipped one, where both are known."""
    ship, base = shipped(record), baseline_of(record)
    before = base.bytes if base else (record.steps[0].file_bytes if record.steps else 0)
    return (before, ship.bytes) if ship and before and ship.bytes else None


def latency_of(record: RunRecord, name: str, runtime: str) -> LatencyRow | None:
    """Return the latency row of one file in one runtime."""
    return next((row for row in record.latency if (row.name, row.runtime) == (name, runtime)), None)


def speed_phrase(row: ComparisonRow) -> str:
    """Say a comparison in words, such as `7.6x faster (7.4-7.8) on ort-cpu`."""
    where = f" on {shorten(row.runtime, 60)}"
    if row.outcome in ("same", "unclear"):
        word = "as fast as before" if row.outcome == "same" else "speed-up unclear"
        return f"{word}, {figure_text(row.speedup, 'x')}{where}"
    slower = 0 < row.speedup.value < 1
    number, _, ends = figure_text(inverse(row.speedup) if slower else row.speedup, "x").partition(" ")
    return f"{number} {'slower' if slower else 'faster'} {ends}".rstrip() + where


def size_phrase(before: int, after: int) -> str:
    """Say how file sizes compare, such as `12.1x smaller`."""
    if 0.99 < after / before < 1.01:
        return "same size"
    return f"{significant(max(before / after, after / before))}{TIMES} {'smaller' if after < before else 'larger'}"


def accuracy_phrase(drop: Figure) -> str:
    """Say a drop in points, such as `0.4 points of accuracy lost (0.1-0.7)`; below zero it is a gain."""
    number, _, ends = figure_text(drop if drop.value >= 0 else scaled(drop, -1)).partition(" ")
    return f"{number} points of accuracy {'lost' if drop.value >= 0 else 'gained'} {ends}".strip()


def _goals_phrase(record: RunRecord) -> str:
    if not record.goals:
        return "no goals set"
    parts = []
    for outcome in _OUTCOMES:
        rows = [goal for goal in record.goals if goal.outcome == outcome]
        names = ", ".join(shorten(goal_name(goal), 60) for goal in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        if rows:
            which = "" if outcome == "met" else f" ({names}{more})"
            parts.append(f"{len(rows)} of {len(record.goals)} goals {outcome}{which}")
    return "; ".join(parts)


def verdict_parts(record: RunRecord) -> tuple[str, str, str]:
    """Return the verdict as its word, what a reader must know first, and the rest.

    First comes what was gained and lost where the goals are met, and otherwise which goals are not.
    """
    ship, ratio, both = shipped(record), comparison_of(record), sizes(record)
    phrases = [
        speed_phrase(ratio) if ratio else "",
        size_phrase(*both) if both else "",
        accuracy_phrase(ship.accuracy_drop) if ship and ship.accuracy_drop else "",
    ]
    facts, goals = ", ".join(filter(None, phrases)), _goals_phrase(record)
    return (record.outcome.upper(), facts, goals) if record.outcome == "met" else (record.outcome.upper(), goals, facts)


def verdict_line(record: RunRecord) -> str:
    """Return the verdict in one sentence: `MET: 7.6x faster (7.4-7.8) on ort-cpu, 12.1x smaller, ...`."""
    word, first, rest = verdict_parts(record)
    return clean(shorten(f"{word}: {'; '.join(filter(None, (first, rest)))}.", 600))


def cautions(record: RunRecord) -> list[str]:
    """Return what disturbed the measuring of latency, by runtime: a figure from a busy machine holds for its load."""
    found = [f"{row.runtime}: {note}" for row in record.latency for note in row.notes]
    return list(dict.fromkeys(found))


def finished_text(record: RunRecord) -> str:
    """Return when the run ended, as `2026-01-31 12:00 UTC`; nothing where the record does not say."""
    try:
        return f"{datetime.fromisoformat(record.finished_at).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return ""
