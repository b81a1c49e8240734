"""The report that fits a pull-request comment, in GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .record import Outcome, RunRecord, StepRow
from .report_classes import class_tables, confusion_line
from .report_figures import figure_tables
from .report_numbers import (
    NONE,
    clean,
    count,
    figure_text,
    flatten,
    percent,
    percentile_name,
    ratio_text,
    shorten,
    size,
)
from .report_paying import paying_lines
from .report_precision import precision_lines, precision_tables
from .report_text import baseline_of, cautions, finished_text, goal_lines, latency_of, shipped, sizes, verdict_line

SYMBOLS: dict[Outcome, str] = {"met": "✅", "missed": "❌", "unclear": "⚠️"}
# Cells beyond this length make a comment unreadable; the full text is in the other reports.
CELL = 200
LAYERS = 8
CLASSES = 6


def escape(text: str, limit: int = CELL) -> str:
    """Return untrusted text as one line of Markdown that formats nothing, breaks no table and notifies nobody."""
    line = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", shorten(text, limit).replace("&", "&amp;"))
    line = re.sub(r"([\\`*|\[\]~#]|(?<!\w)_|_(?!\w))", r"\\\1", line)
    return line.replace("@", "@&#8203;").replace("://", ":&#8203;//")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Return a Markdown table; `right` are the columns aligned right. Cells are escaped here, and only here."""
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    lines = [head, rule, *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(record: RunRecord) -> str:
    """Return the Markdown report: verdict, goals, before and after, the artifact and where it was measured."""
    parts = [
        f"### {SYMBOLS[record.outcome]} {escape(verdict_line(record), 600)}",
        "\n".join(f"> {escape(caution)}  " for caution in cautions(record)),
        _goals(record),
        _before_after(record),
        "\n".join(f"{escape(line, 400)}  " for line in paying_lines(record)),
        *_classes(record),
        *_precision(record),
        *_figures(record),
        _parity(record),
        _artifact(record),
        _measured_on(record),
    ]
    return clean("\n\n".join(filter(None, parts)) + "\n")


def _measured_on(record: RunRecord) -> str:
    when = finished_text(record)
    where = f"on {escape(_environment(record), 400)}"
    return f"<sub>Measured {when + ' ' if when else ''}{where}</sub>" if record.environment else ""


def _goals(record: RunRecord) -> str:
    rows = [
        (f"{SYMBOLS[goal.outcome]} {line[0]}", *line[1:])
        for goal, line in zip(record.goals, goal_lines(record), strict=True)
    ]
    head = ("Outcome", "Goal", "Bound", "Measured (95 % interval)", "Margin", "Reason")
    return table(head, rows, frozenset((3, 4))) if rows else ""


def _before_after(record: RunRecord) -> str:
    rows = [*_file_rows(record), *_step_rows(record.steps), *_latency_rows(record)]
    return table(("", "Before", "After", ""), rows, frozenset((1, 2, 3))) if rows else ""


def _file_rows(record: RunRecord) -> Iterable[tuple[str, ...]]:
    ship, base, both = shipped(record), baseline_of(record), sizes(record)
    if both:
        yield "file", size(both[0]), size(both[1]), ratio_text(*both)
    if ship and ship.accuracy:
        before = base.accuracy if base else None
        yield "accuracy", percent(before), percent(ship.accuracy), f"drop {figure_text(ship.accuracy_drop, 'points')}"


def _step_rows(steps: Sequence[StepRow]) -> Iterable[tuple[str, ...]]:
    if len(steps) > 1:
        for name, before, after in (
            ("parameters", steps[0].params, steps[-1].params),
            ("MACs", steps[0].macs, steps[-1].macs),
        ):
            yield name, count(before), count(after), ratio_text(before, after)


def _latency_rows(record: RunRecord) -> Iterable[tuple[str, ...]]:
    for row in record.comparisons:
        pair = [latency_of(record, name, row.runtime) for name in (row.baseline, row.artifact)]
        before, after = ({p.q: p.ms for p in one.percentiles} if one else {} for one in pair)
        label = row.artifact if len(record.comparisons) > 1 else "latency"
        for q in sorted(before.keys() & after.keys()):
            factor = figure_text(row.speedup, "x") if percentile_name(q) == "p50" else NONE
            yield f"{label} {percentile_name(q)}, {row.runtime}", f"{before[q]:.3g} ms", f"{after[q]:.3g} ms", factor


def _figures(record: RunRecord) -> Iterable[str]:
    for one in figure_tables(record):
        yield f"**{escape(one.title)}**\n\n{table(one.head, one.rows, one.numbers)}"


def _classes(record: RunRecord) -> Iterable[str]:
    """Yield the classes that lost most of the first file that ships, without their numbers of examples."""
    for one in class_tables(record, CLASSES)[:1]:
        head, *rows = ((row[0], *row[2:]) for row in (one.head, *one.rows))
        yield f"**{escape(one.title)}**\n\n{table(head, rows, frozenset(range(1, 7)))}"
    yield escape(confusion_line(record), 400)


def _precision(record: RunRecord) -> Iterable[str]:
    for line, one in zip(precision_lines(record), precision_tables(record, LAYERS), strict=True):
        yield f"{escape(line, 400)}\n\n{table(one.head, one.rows, one.numbers)}"


def _parity(record: RunRecord) -> str:
    """Say of every file that is not the graph it was made from which layer broke."""
    said = [(row.file, note) for row in record.artifacts for note in row.notes if note.startswith("parity: ")]
    return "\n".join(f"**{escape(file)}** {escape(note, 600)}  " for file, note in said)


def _artifact(record: RunRecord) -> str:
    ships = [row for row in record.artifacts if row.ships]
    return "\n".join(
        f"**{escape(row.file)}** ({size(row.bytes)}, {escape(row.precision)}, for {escape(row.target)})  \n"
        f"sha256 <code>{escape(row.sha256)}</code>"
        for row in ships
    )


def _environment(record: RunRecord) -> str:
    return "; ".join(f"{name.rpartition('.')[2]} {value}" for name, value in flatten(record.environment))
