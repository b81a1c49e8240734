"""The tables of the HTML report, every cell a text: steps, artifacts, scores, parity, latency, comparisons, figures."""

from __future__ import annotations

from collections.abc import Sequence

from .plots import step_latency_text
from .record import ArtifactRow, Figure, LatencyRow, RunRecord
from .report_classes import class_tables, confusion_tables, mean_table
from .report_figures import Table, figure_tables
from .report_numbers import NONE, count, duration, figure_text, percent, percentile_name, settings_text, shorten, size
from .report_paying import paying_tables
from .report_precision import precision_tables


def tables_of(record: RunRecord) -> list[Table]:
    """Return the tables of a run in the order of the page; some may be empty."""
    return [
        _steps(record),
        _artifacts(record),
        _scores(record),
        mean_table(record),
        *class_tables(record),
        *confusion_tables(record),
        _parity(record),
        _latency(record.latency),
        _comparisons(record),
        *paying_tables(record),
        *precision_tables(record),
        *figure_tables(record),
    ]


def _steps(record: RunRecord) -> Table:
    head = ("Step", "Settings", "Parameters", "MACs", "File", "Accuracy", "Latency p50", "Took", "Facts")
    rows = [
        (
            name,
            settings_text(step.settings),
            count(step.params),
            count(step.macs),
            size(step.file_bytes),
            percent(step.accuracy),
            step_latency_text(step),
            duration(step.seconds),
            settings_text(step.facts),
        )
        for name, step in (
            *((step.name, step) for step in record.steps),
            *((f"{step.name} (dropped)", step) for step in record.dropped),
        )
    ]
    return Table("Steps", head, rows, frozenset(range(2, 8)), "Every figure is of that step's own exported file.")


def _artifacts(record: RunRecord) -> Table:
    head = ("Artifact", "File", "SHA-256", "Size", "Precision", "Target", "Parity")
    rows = [
        (
            f"{row.name} (ships)" if row.ships else row.name,
            row.file,
            shorten(row.sha256, 13),
            size(row.bytes),
            row.precision,
            row.target,
            _parity_word(row),
        )
        for row in record.artifacts
    ]
    return Table("Artifacts", head, rows, frozenset((3,)), "Whole hashes are in report.json.")


def _scores(record: RunRecord) -> Table:
    head = ("Artifact", "Accuracy", "Drop, points", "Macro recall", "Agreement")
    rows = [
        (
            row.name,
            percent(row.accuracy),
            figure_text(row.accuracy_drop),
            percent(row.macro_recall),
            percent(row.agreement),
        )
        for row in record.artifacts
        if row.accuracy or row.macro_recall or row.agreement or row.accuracy_drop
    ]
    note = (
        "Computed through the file itself. Drop: paired, against the baseline file. "
        "Agreement: how often the top class is that of the baseline."
    )
    return Table("Scores", head, rows, frozenset(range(1, 5)), note)


def _parity_word(row: ArtifactRow) -> str:
    if not row.parity:
        return "not checked"
    return "passed" if all(one.passed for one in row.parity) else "FAILED"


def _parity(record: RunRecord) -> Table:
    head = ("Artifact", "Output", "Samples", "Max abs", "Relative", "Tolerance", "Rounding", "Cosine", "Top-1 agreement", "Result")  # fmt: skip # noqa: E501
    rows = [
        (
            artifact.name,
            row.output,
            f"{row.samples:,}",
            *(f"{value:.2e}" for value in (row.max_abs, row.relative, row.tolerance)),
            NONE if row.noise is None else f"{row.noise:.2e}",
            f"{row.cosine:.6f}",
            NONE if row.top1_agreement is None else f"{100 * row.top1_agreement:.2f} %",
            "passed" if row.passed else "FAILED",
        )
        for artifact in record.artifacts
        for row in artifact.parity
    ]
    said = [f" {row.file}: {note}." for row in record.artifacts for note in row.notes if note.startswith("parity")]
    note = (
        "Outputs of each file against the torch graph that it was made from. Rounding: how far rounding to the file's "
        f"precision alone moves the graph's outputs.{''.join(said)}"
    )
    return Table("Parity", head, rows, frozenset(range(2, 9)), note)


def _latency(rows: Sequence[LatencyRow]) -> Table:
    columns = sorted({mark.q for row in rows for mark in row.percentiles})
    head = ("File", "Runtime", "Samples", *(f"{percentile_name(q)}, ms" for q in columns), "Peak memory", "Notes")
    return Table(
        "Latency and memory",
        head,
        [_latency_cells(row, columns) for row in rows],
        frozenset(range(2, len(columns) + 4)),
        "Order-statistic intervals of 95 %. A percentile that the samples do not support is left out.",
    )


def _latency_cells(row: LatencyRow, columns: Sequence[float]) -> tuple[str, ...]:
    marks = {mark.q: Figure(mark.ms, mark.low_ms, mark.high_ms) for mark in row.percentiles}
    peak = NONE if row.peak_memory_bytes is None else size(row.peak_memory_bytes)
    found = (figure_text(marks.get(q)) for q in columns)
    return row.name, row.runtime, f"{len(row.samples_ns):,}", *found, peak, "; ".join(row.notes) or NONE


def _comparisons(record: RunRecord) -> Table:
    head = ("Artifact", "Baseline", "Runtime", "Speed-up", "Outcome", "Reason")
    rows = [
        (row.artifact, row.baseline, row.runtime, figure_text(row.speedup, "x"), row.outcome, row.reason)
        for row in record.comparisons
    ]
    note = "Baseline latency over artifact latency, sampled interleaved and paired; above 1 is faster."
    return Table("Comparison", head, rows, frozenset((3,)), note)
