"""What the reports show of classes: a table, where they are confused, and the picture of that."""

from __future__ import annotations

from collections.abc import Iterator

from .class_picture import MOST_DRAWN, confusion_plot
from .class_record import ClassRow, ClassScores
from .record import ArtifactRow, Figure, RunRecord
from .report_figures import Table
from .report_numbers import NONE, figure_text, percent, scaled, shorten
from .report_text import baseline_of

MOST_ROWS = 20
MOST_PAIRS = 10
_HEAD = ("Class", "Examples", "Recall, %", "Change", "Precision, %", "Change", "F1, %", "Change")


def class_tables(record: RunRecord, most: int = MOST_ROWS) -> list[Table]:
    """Return a table of classes for each file that ships, those that lost most where there are more than `most`."""
    return [_table(row.file, found, most) for row, found in _scored(record)]


def confusion_tables(record: RunRecord) -> list[Table]:
    """Return the pairs of classes that are confused most, for each file with too many classes to draw them all."""
    return [_pairs(row, found, record) for row, found in _scored(record) if len(found.rows) > MOST_DRAWN]


def confusion_plots(record: RunRecord) -> list[str]:
    """Return the picture of the confusion matrix of each file that ships."""
    return [
        confusion_plot(found, f"{row.file}: true classes in rows, what they are taken for in columns")
        for row, found in _scored(record)
        if len(found.rows) <= MOST_DRAWN
    ]


def confusion_line(record: RunRecord, most: int = 3) -> str:
    """Return the pairs that are confused most, in one line; nothing without classes or errors."""
    row, found = next(_scored(record), (None, None))
    if row is None or found is None:
        return ""
    pairs = [f"{shorten(a, 40)} taken for {shorten(b, 40)} ({n:,} of {of:,})" for a, b, n, of in _confused(found, most)]
    return f"Most confused: {', '.join(pairs)}" if pairs else ""


def mean_table(record: RunRecord) -> Table:
    """Return the means over classes of every file, and how far its probabilities can be believed."""
    rows = [
        (
            row.name,
            *map(percent, (found.macro_precision, found.macro_f1, found.lowest_recall)),
            figure_text(found.calibration_error and scaled(found.calibration_error, 100)),
            figure_text(found.changes.get("calibration_error")),
        )
        for row in record.artifacts
        if (found := row.classes)
    ]
    head = ("Artifact", "Macro precision", "Macro F1", "Lowest recall", "Calibration error, points", "Change")
    note = (
        "Macro: the mean over classes. Lowest recall: of the class that is recognised worst. Calibration error: how "
        "far the probability of the top class is from how often it is right, expected over 15 bins of probability; its "
        "change is paired, and above zero worse."
    )
    return Table("Means over classes, and calibration", head, rows, frozenset(range(1, 6)), note)


def _scored(record: RunRecord) -> Iterator[tuple[ArtifactRow, ClassScores]]:
    for row in record.artifacts:
        if row.ships and row.classes:
            yield row, row.classes


def _table(file: str, found: ClassScores, most: int) -> Table:
    shown = found.rows
    if len(shown) > most:
        shown = sorted(shown, key=_gain)[:most]
    moved = found.changes.get
    mean = (
        f"mean of all {len(found.rows)}",
        f"{sum(row.examples for row in found.rows):,}",
        *(_share(found.macro_recall), figure_text(moved("macro_recall"))),
        *(_share(found.macro_precision), figure_text(moved("macro_precision"))),
        *(_share(found.macro_f1), figure_text(moved("macro_f1"))),
    )
    left = len(found.rows) - len(shown)
    note = (
        "Recall: the share of a class's examples that is recognised. Precision: the share of what is taken for it that "
        "is right. F1: their harmonic mean. Changes: points against baseline.onnx on the same examples; below zero is "
        "worse. "
        "In brackets 95 % intervals, of each figure alone: of twenty, one may lie outside."
    )
    more = f" The {len(shown)} classes whose F1 fell most; {left:,} more are in report.json." if left else ""
    return Table(f"Classes: {file}", _HEAD, [*map(_cells, shown), mean], frozenset(range(1, 8)), note + more)


def _gain(row: ClassRow) -> float:
    if row.f1_change:
        return row.f1_change.value
    return row.f1.value if row.f1 else 0.0


def _cells(row: ClassRow) -> tuple[str, ...]:
    return (
        shorten(row.name, 60),
        f"{row.examples:,}",
        *(_share(row.recall), figure_text(row.recall_change)),
        *(_share(row.precision), figure_text(row.precision_change)),
        *(_share(row.f1), figure_text(row.f1_change)),
    )


def _share(figure: Figure | None) -> str:
    return figure_text(scaled(figure, 100)) if figure else NONE


def _confused(found: ClassScores, most: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield the true and the predicted class, the examples, and those of the true class, most first."""
    wrong = sorted((cell for cell in found.confusion if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell))
    for true, taken, count in wrong[:most]:
        yield found.rows[true].name, found.rows[taken].name, count, found.rows[true].examples


def _pairs(row: ArtifactRow, found: ClassScores, record: RunRecord) -> Table:
    base = baseline_of(record)
    cells = base.classes.confusion if base and base.classes else []
    before = {(found.rows[t].name, found.rows[p].name): n for t, p, n in cells}
    rows = [
        (
            shorten(a, 60),
            shorten(b, 60),
            f"{n:,}",
            f"{100 * n / of:.1f} %",
            f"{before.get((a, b), 0):,}" if cells else NONE,
        )
        for a, b, n, of in _confused(found, MOST_PAIRS)
    ]
    head = ("True class", "Taken for", "Examples", "Of its class", "In the baseline")
    return Table(f"Most confused: {row.file}", head, rows, frozenset((2, 3, 4)))
