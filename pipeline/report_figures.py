"""What the reports show of the figures beside the warm latency: their numbers, the slowest layers and the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .record import FigureRow, RunRecord
from .report_numbers import figure_text

if TYPE_CHECKING:
    from ..profile.layer_profile import LayerProfile
    from ..profile.roofline import Roofline

MOST_LAYERS = 10
_COLUMNS = (0, 1, 2, 3, 8, 9)  # of the table of layers: what it is, its time, what bounds it


@dataclass(frozen=True)
class Table:
    """A table of texts; `numbers` are the columns aligned right, `rows` as long as `head`."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: frozenset[int] = field(default_factory=frozenset)
    note: str = ""


def figure_tables(record: RunRecord) -> list[Table]:
    """Return the table of numbers, and for each runtime with layers one of the slowest; none without figures."""
    if not record.figures:
        return []
    rows = [cells for row in record.figures for cells in _rows(row)]
    note = "Each is of the file that ships in that runtime, and apart from the warm latency."
    numbers = Table("Other latencies", ("Figure", "Value (95 % interval)", "What"), rows, frozenset((1,)), note)
    return [numbers, *(_slowest(runtime, *found) for runtime, found in _profiles(record))]


def layer_plots(record: RunRecord) -> list[str]:
    """Return the picture of the layers for each runtime that has them."""
    from .layer_picture import layer_plot

    return [layer_plot(*found) for _, found in _profiles(record)]


def _rows(row: FigureRow) -> Iterator[tuple[str, ...]]:
    from .figure_rows import TITLES

    if row.absent is not None:
        yield f"{TITLES.get(row.name, row.name)}, {row.runtime}", "not measured", row.absent
    for value in row.values:
        yield f"{value.name}, {row.runtime}", figure_text(value.figure, value.unit), value.what


def _profiles(record: RunRecord) -> list[tuple[str, tuple[LayerProfile, Roofline | None]]]:
    """Return each runtime's profile by layer with its ceilings."""
    from .figure_rows import read_layers

    return [(row.runtime, read_layers(row.data)) for row in record.figures if row.name == "layers" and row.data]


def _slowest(runtime: str, profile: LayerProfile, roofline: Roofline | None) -> Table:
    from ..profile.layer_table import layer_rows

    rows = [
        tuple(row[column] for column in _COLUMNS if column < len(row))
        for row in layer_rows(profile, roofline, MOST_LAYERS)
    ]
    head = tuple(name.capitalize() for name in rows[0])
    return Table(f"Slowest layers, {runtime}", head, rows[1:], frozenset((2, 3, 5)))
