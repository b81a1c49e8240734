"""The picture of `inspect --picture`: one row for each group of channels, with its share of parameters and of MACs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..models.errors import BadInput
from ..models.files import write_text
from .group_view import channel_groups, counted, others_text, share_text, state, unknown_text
from .report_numbers import clean, shorten
from .report_svg import Element, Scale, canvas, child, even_ticks, label, markup, path, shape, text

if TYPE_CHECKING:
    from ..compress.group_table import GroupRow, GroupTable

_STYLE = Path(__file__).parent / "templates" / "groups.css"

WIDTH, EDGE, TOP, ROW = 1010.0, 24.0, 128.0, 38.0
START, STOP = 455.0, 880.0
MOST = 120
EXPLAINED = "In the order of the graph. Groups overlap: a weight is in the group it reads and in the one it makes."
MEMBERS = 12
WORDS = {
    "heads": "{} heads",
    "head size": "head size {}",
    "groups": "{} groups",
    "in a group": "{} in a group",
    "inputs": "{} inputs",
    "factor": "factor of {}",
}


def check_picture(place: Path) -> Path:
    """Return the path of a picture to be written.

    Raises:
        BadInput: its name does not end in `.svg`.
    """
    if place.suffix.lower() != ".svg":
        raise BadInput(f"--picture: got {place}, wanted a file name that ends in .svg")
    return place


def write_picture(table: GroupTable, source: str, place: Path) -> None:
    """Write the picture of a model's groups as one SVG file that needs no other.

    Raises:
        BadInput: the folder cannot be written.
    """
    write_text(place, draw_groups(table, source))


def draw_groups(table: GroupTable, source: str) -> str:
    """Return the picture as SVG: groups in the order of the graph; of more than `MOST`, those of the largest shares."""
    rows = channel_groups(table)
    largest = set(sorted(rows, key=lambda row: row.share, reverse=True)[:MOST])
    kept = [row for row in rows if row in largest]
    notes = [*_left_out(rows, kept), *filter(None, [others_text(table), unknown_text(table)])]
    bottom = TOP + ROW * len(kept)
    height = bottom + 34 + 18 * len(notes)
    title = f"Groups of channels: {source}"
    svg = canvas(WIDTH, height, f"{title}; {_tally(rows)}")
    svg.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "width": f"{WIDTH:g}", "height": f"{height:g}"}
    _head(svg, title, rows)
    scale = Scale(0, max((row.share for row in kept), default=1.0) or 1.0, START, STOP)
    _axis(svg, scale, bottom)
    for place, row in enumerate(kept):
        _row(svg, row, scale, TOP + ROW * place)
    for place, note in enumerate(notes):
        label(svg, "small muted", (EDGE, bottom + 38 + 18 * place), note, 150)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{markup(svg)}\n'


def _left_out(rows: list[GroupRow], kept: list[GroupRow]) -> list[str]:
    more = len(rows) - len(kept)
    return [f"and {counted(more, 'smaller group', 'smaller groups')}"] if more else []


def _tally(rows: list[GroupRow]) -> str:
    frozen = sum(row.frozen is not None for row in rows)
    return f"{counted(len(rows) - frozen, 'group', 'groups')} can be pruned, {counted(frozen, 'is', 'are')} frozen"


def _head(svg: Element, title: str, rows: list[GroupRow]) -> None:
    """Draw the title, what is counted, and what the bars mean."""
    child(svg, "style").text = _STYLE.read_text(encoding="utf-8")
    for name in ("params", "macs"):
        _hatch(svg, name)
    child(svg, "rect", {"class": "page", "width": "100%", "height": "100%"})
    label(svg, "title", (EDGE, 36), title, 88)
    text(svg, "small muted", (EDGE, 58), f"{_tally(rows)}. {EXPLAINED}")
    x = EDGE
    for css, words in (
        ("params-fill", "share of parameters (upper bar)"),
        ("macs-fill", "share of MACs (lower bar)"),
        ("params-frozen", "hatched: frozen, for the reason given"),
    ):
        shape(svg, "rect", css, x=x, y=73, width=22, height=11)
        text(svg, "small", (x + 29, 82.5), words)
        x += 50 + 6.0 * len(words)


def _hatch(svg: Element, name: str) -> None:
    size = {"width": "6", "height": "6", "patternUnits": "userSpaceOnUse"}
    path(child(svg, "pattern", {"id": f"{name}-hatch", **size}), f"{name}-line", "M-1 7L7 -1M-1 1L1 -1M5 7L7 5")


def _axis(svg: Element, scale: Scale, bottom: float) -> None:
    for tick in even_ticks(0, scale.high * 100, 4):
        x = scale(tick / 100)
        path(svg, "axis" if tick == 0 else "grid", f"M{x:.1f} {TOP - 6:.1f}V{bottom:.1f}")
        for y in (TOP - 12, bottom + 16):
            text(svg, "small muted", (x, y), f"{tick:g} %", "middle")


def _row(svg: Element, row: GroupRow, scale: Scale, top: float) -> None:
    """Draw one group: its name, what it is, and two bars with their shares in words."""
    group = child(svg, "g", {"class": "group"})
    child(group, "title").text = clean(_tooltip(row))
    text(group, "strong", (EDGE, top + 14), _tail(row.name.replace(f" [{row.kind}]", ""), 48))
    text(group, "small muted", (EDGE, top + 29), shorten(f"{_what(row)}, {state(row)}", 66))
    style = "frozen" if row.frozen else "fill"
    for name, share, words, y in (
        ("params", row.params_share, "params", top + 5),
        ("macs", row.macs_share, "MACs", top + 19),
    ):
        stop = scale(share)
        shape(group, "rect", f"{name}-{style}", x=START, y=y, width=stop - START, height=11)
        text(group, "small value", (stop + 7, y + 9.5), f"{share_text(share)} {words}")


def _what(row: GroupRow) -> str:
    return WORDS.get(row.kind, "{} channels").format(f"{row.width:,}")


def _tail(name: str, limit: int) -> str:
    """Return the end of a name that is too long: modules differ there."""
    return name if len(name) <= limit else "…" + name[1 - limit :]


def _tooltip(row: GroupRow) -> str:
    members = [f"{member.tensor} (dimension {member.dim})" for member in row.members]
    more = [f"and {len(members) - MEMBERS:,} more"] if len(members) > MEMBERS else []
    return "\n".join([f"{row.name}: {_what(row)}, {state(row)}", *members[:MEMBERS], *more])
