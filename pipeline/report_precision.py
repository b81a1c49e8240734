"""What the reports and the terminal say of layers that stay in fp32: lines, a table and the picture."""

from __future__ import annotations

from .layer_choice import MixedPrecision, foremost
from .precision_picture import gain_text, precision_plot, unit_of
from .record import RunRecord
from .report_figures import Table
from .report_numbers import NONE, significant

MOST_ROWS = 20


def precision_lines(record: RunRecord) -> list[str]:
    """Return a line for each pass that searched."""
    return [f"{name}: {found.line}" for name, found in _searches(record)]


def precision_plots(record: RunRecord) -> list[str]:
    """Return the picture of each pass that searched."""
    return [precision_plot(found, f"Layers by sensitivity and gain: {name}") for name, found in _searches(record)]


def precision_tables(record: RunRecord, most: int = MOST_ROWS) -> list[Table]:
    """Return a table of layers for each pass that searched, those that cost most and those that stay in fp32."""
    return [precision_table(found, f"Layers that cost most: {name}", most) for name, found in _searches(record)]


def precision_table(found: MixedPrecision, title: str, most: int) -> Table:
    """Return a table of up to so many layers, those that cost most first; the note says which are left out."""
    unit, factor = unit_of(found)
    rows = [
        (
            one.module or NONE,
            one.layer,
            significant(one.sensitivity * factor),
            gain_text(one) or NONE,
            "fp32" if one.kept else "int8",
        )
        for one in foremost(found, most)
    ]
    head = ("Module", "Layer", f"Sensitivity, {unit}", "Gain, µs (95 % interval)", "Precision")
    more = len(found.layers) - len(rows)
    left = f" {more} more layers are in report.json." if more else ""
    return Table(title, head, rows, frozenset((2, 3)), f"{_explained(found)}{left}")


def _explained(found: MixedPrecision) -> str:
    gain = "Gain: what its integers spare in the file that is otherwise all integers, measured interleaved."
    if all(one.gain_us is None for one in found.layers):
        gain = "Gains were not measured: there is no device for the target here."
    return (
        "Sensitivity: how far the classes' probabilities move from fp32 (Kullback-Leibler) with that layer alone in "
        f"integers, the mean of {found.compared:,} examples. {gain}"
    )


def _searches(record: RunRecord) -> list[tuple[str, MixedPrecision]]:
    return [
        (plain["name"] + " (dropped)" * plain["dropped"], MixedPrecision.from_dict(plain))
        for plain in record.mixed_precision
    ]
