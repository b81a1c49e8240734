"""The picture of a confusion matrix: a cell for each true and predicted class, the darker the more of its row."""

from __future__ import annotations

from collections.abc import Sequence

from .class_record import ClassScores
from .report_numbers import clean, shorten
from .report_svg import Element, canvas, child, label, markup, text

MOST_DRAWN = 20
LEFT, TOP, EDGE = 170.0, 118.0, 16.0
_LETTERS = 22
_PALE = 0.06
"""How much colour a cell has at the least, where it has any examples."""


def confusion_plot(found: ClassScores, title: str) -> str:
    """Return the picture as markup for a page that has its style (`report_classes.css`).

    What is right lies on the diagonal, in the colour of what is met; all else is in the colour of what is missed. The
    colour grows with the root of a cell's share of its row, so that few confusions are still seen.

    Args:
        found: of at most `MOST_DRAWN` classes.
        title: what it is of.
    """
    names = [row.name for row in found.rows]
    side = 44.0 if len(names) <= 12 else 32.0
    span = side * len(names)
    svg = canvas(LEFT + span + 70, TOP + span + EDGE, title, "confusion")
    label(svg, "small muted", (EDGE, 20), title, 110)
    for place, name in enumerate(names):
        middle = side * (place + 0.5)
        label(svg, "small", (EDGE, TOP + middle + 4), name, _LETTERS)
        _slanted(svg, (LEFT + middle, TOP - 8), name)
    counts = {(true, taken): count for true, taken, count in found.confusion}
    for true, row in enumerate(found.rows):
        for taken in range(len(names)):
            corner = (LEFT + side * taken, TOP + side * true)
            _cell(svg, corner, side, (true, taken), (counts.get((true, taken), 0), row.examples), names)
    return markup(svg)


def _slanted(svg: Element, at: tuple[float, float], name: str) -> None:
    words = text(svg, "small", at, shorten(name, 16))
    words.set("transform", f"rotate(-40 {at[0]:.1f} {at[1]:.1f})")
    if len(name) > 16:
        child(words, "title").text = clean(name)


def _cell(
    svg: Element,
    at: tuple[float, float],
    side: float,
    cell: tuple[int, int],
    counted: tuple[int, int],
    names: Sequence[str],
) -> None:
    (true, taken), (count, examples) = cell, counted
    share = count / examples if examples else 0.0
    depth = 0.0 if not count else _PALE + (0.4 if true == taken else 0.9) * share**0.5
    group = child(svg, "g")
    right = "taken rightly" if true == taken else f"taken for {names[taken]}"
    child(group, "title").text = clean(f"{names[true]} {right}: {count:,} of {examples:,} ({100 * share:.1f} %)")
    sizes = {"x": f"{at[0]:.1f}", "y": f"{at[1]:.1f}", "width": f"{side - 2:.1f}", "height": f"{side - 2:.1f}"}
    child(group, "rect", {"class": "field", **sizes})
    css = "right" if true == taken else "wrong"
    child(group, "rect", {"class": css, "fill-opacity": f"{min(depth, 0.75):.2f}", **sizes})
    if count:
        place = (at[0] + side / 2 - 1, at[1] + side / 2 + 3)
        text(group, "count" if count < 1000 or side > 40 else "count tiny", place, str(count), "middle")
