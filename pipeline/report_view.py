"""What the template of the HTML report shows: the verdict, key figures, goals, charts and settings as texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from .plots import goal_plot, latency_plot, step_panels
from .record import ArtifactRow, Outcome, RunRecord
from .report_classes import confusion_plots
from .report_figures import layer_plots
from .report_junit import run_seconds
from .report_numbers import (
    NONE,
    duration,
    figure_text,
    flatten,
    percent,
    percentile_name,
    shorten,
    significant,
    size,
)
from .report_paying import paying_lines
from .report_precision import precision_lines, precision_plots
from .report_tables import tables_of
from .report_text import (
    baseline_names,
    baseline_of,
    cautions,
    comparison_of,
    finished_text,
    goal_lines,
    latency_of,
    shipped,
    size_phrase,
    sizes,
    speed_phrase,
    verdict_line,
    verdict_parts,
)

SYMBOLS: dict[Outcome, str] = {"met": "✓", "missed": "✕", "unclear": "?"}


@dataclass(frozen=True)
class Tile:
    """One key figure: what it is, its value, and before and after."""

    name: str
    value: str
    note: str


def view(record: RunRecord) -> dict[str, Any]:
    """Return what the HTML template needs."""
    word, first, rest = verdict_parts(record)
    return {
        "title": f"{word} · {_model_name(record)}",
        "model": _model_name(record),
        "line": verdict_line(record),
        "word": word,
        "first": first,
        "rest": rest,
        "cautions": cautions(record),
        "outcome": record.outcome,
        "exit_code": record.exit_code,
        "symbols": SYMBOLS,
        "took": duration(run_seconds(record)) if record.seconds else "",
        "finished": finished_text(record),
        "tiles": _tiles(record),
        "goals": _goals(record),
        "ships": [_ship(row) for row in record.artifacts if row.ships],
        "latency_plots": [Markup(svg) for svg in _latency_plots(record)],
        "step_plots": [Markup(svg) for svg in step_panels(record.steps)],
        "precision_plots": [Markup(svg) for svg in precision_plots(record)],
        "confusion_plots": [Markup(svg) for svg in confusion_plots(record)],
        "layer_plots": [Markup(svg) for svg in layer_plots(record)],
        "tables": [table for table in tables_of(record) if table.rows],
        "sections": _sections(record),
        "recipe": _recipe(record),
        "recipe_sha256": record.recipe_sha256,
        "notes": _notes(record),
    }


def _model_name(record: RunRecord) -> str:
    return shorten(str(record.model.get("source") or record.model.get("name") or "model"), 120)


def _tiles(record: RunRecord) -> list[Tile]:
    return [tile for tile in (_speed(record), _size(record), _accuracy(record), _memory(record)) if tile]


def _speed(record: RunRecord) -> Tile | None:
    row = comparison_of(record)
    if row is None:
        return None
    medians = [_median(record, name, row.runtime) for name in (row.baseline, row.artifact)]
    said = speed_phrase(row).rpartition(" on ")[0]
    return Tile("Speed", said, f"{medians[0]} → {medians[1]} median, {shorten(row.runtime, 40)}")


def _median(record: RunRecord, name: str, runtime: str) -> str:
    row = latency_of(record, name, runtime)
    found = [mark.ms for mark in row.percentiles if percentile_name(mark.q) == "p50"] if row else []
    return f"{significant(found[0])} ms" if found else NONE


def _size(record: RunRecord) -> Tile | None:
    both = sizes(record)
    return Tile("File size", size_phrase(*both), f"{size(both[0])} → {size(both[1])}") if both else None


def _accuracy(record: RunRecord) -> Tile | None:
    ship, base = shipped(record), baseline_of(record)
    if ship is None or ship.accuracy is None:
        return None
    after = percent(ship.accuracy)
    if ship.accuracy_drop is None:
        return Tile("Accuracy", after, "through the artifact")
    before = percent(base.accuracy) if base else NONE
    return Tile("Accuracy drop", figure_text(ship.accuracy_drop, "points"), f"{_bare(before)} → {_bare(after)}")


def _bare(text: str) -> str:
    return text.partition(" (")[0]


def _memory(record: RunRecord) -> Tile | None:
    ship, row = shipped(record), comparison_of(record)
    peaks = [one for one in record.latency if ship and one.name == ship.name and one.peak_memory_bytes]
    if not peaks:
        return None
    after = peaks[0]
    before = latency_of(record, row.baseline, after.runtime) if row else None
    note = f"baseline {size(before.peak_memory_bytes)}" if before and before.peak_memory_bytes else "fresh process"
    return Tile("Peak memory", size(after.peak_memory_bytes or 0), f"{note}, {shorten(after.runtime, 40)}")


def _goals(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {"outcome": goal.outcome, "cells": line, "plot": Markup(goal_plot(goal))}
        for goal, line in zip(record.goals, goal_lines(record), strict=True)
    ]


def _ship(row: ArtifactRow) -> list[tuple[str, str]]:
    facts = [("File", row.file), ("SHA-256", row.sha256), ("Size", f"{size(row.bytes)} ({row.bytes:,} bytes)")]
    return [*facts, ("Precision", row.precision), ("Target", row.target), *(("Note", note) for note in row.notes)]


def _latency_plots(record: RunRecord) -> list[str]:
    names = baseline_names(record)
    plots = [latency_plot(record.latency, names, width, css) for width, css in ((980, "wide"), (350, "narrow"))]
    return [plot for plot in plots if plot]


def _sections(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    details = {row.name: row.details for row in record.artifacts if row.details}
    stages = {name: duration(seconds) for name, seconds in record.seconds.items()}
    named = (("Environment", record.environment), ("Model", record.model), ("Data", record.data))
    every = (*named, ("Artifact details", details), ("Time by stage", stages))
    return [(title, list(flatten(values))) for title, values in every if values]


def _recipe(record: RunRecord) -> str:
    # Through JSON, so that what is shown is what report.json holds: no tuples, no classes.
    values = json.loads(json.dumps(record.recipe))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100) if values else ""


def _notes(record: RunRecord) -> list[str]:
    others = [f"{row.name}: {note}" for row in record.artifacts for note in row.notes if not row.ships]
    return [*precision_lines(record), *paying_lines(record), *record.notes, *others]
