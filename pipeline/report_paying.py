"""What the reports say of passes that claim speed, and of the share of arithmetic that runs in int8."""

from __future__ import annotations

from .record import PaysRow, RunRecord
from .report_figures import Table
from .report_numbers import NONE, count, figure_text


def paying_lines(record: RunRecord) -> list[str]:
    """Return a line for each pass that is not known to pay, with its reasons, and the share of MACs in int8."""
    unsure = [row for row in record.pays if row.outcome != "faster"]
    return [*(line for row in unsure for line in pays_lines(row)), *integer_lines(record)]


def pays_lines(row: PaysRow) -> list[str]:
    """Return what became of a pass, and why, each in a line."""
    return [row.line, *(f"{row.name}: {reason}" for reason in row.reasons)]


def integer_lines(record: RunRecord, whole: bool = False) -> list[str]:
    """Return the share of MACs in int8 by runtime; `whole` adds the operators that stayed in float."""
    from ..profile.integer_share import IntegerShare
    from ..profile.not_faster import share_lines

    found = [share_lines(IntegerShare.from_dict(plain)) for plain in record.integers]
    return [line for lines in found for line in (lines if whole else lines[:1])]


def paying_tables(record: RunRecord) -> list[Table]:
    """Return the tables of what passes brought and of what stayed in float; either may be empty."""
    return [_pays(record), _in_float(record)]


def _pays(record: RunRecord) -> Table:
    head = ("Pass", "Against", "Runtime", "Speed-up", "Outcome", "Became", "Why it is no faster")
    rows = [
        (
            row.name,
            row.against,
            row.runtime or NONE,
            figure_text(row.speedup, "x"),
            row.outcome,
            "kept" if row.kept else "dropped",
            "; ".join(row.reasons) or NONE,
        )
        for row in record.pays
    ]
    note = (
        "Latency of the file before each pass over that of its own, sampled interleaved; above 1 is faster. "
        "A pass that is no faster is dropped, unless the recipe insists or has a goal on size that it serves; weights "
        "alone in integers are for size, and dropped only where the goals are on speed."
    )
    return Table("What passes brought", head, rows, frozenset((3,)), note)


def _in_float(record: RunRecord) -> Table:
    head = ("Operator", "Name", "Runtime", "MACs", "Why it is not in int8")
    rows = [
        (
            node["operator"],
            node["module"] or node["name"],
            plain["runtime"],
            NONE if node["macs"] is None else count(node["macs"]),
            node["reason"],
        )
        for plain in record.integers
        for node in plain["in_float"]
    ]
    return Table("Not in int8", head, rows, frozenset((3,)), ". ".join(integer_lines(record)) + ".")
