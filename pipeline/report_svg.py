"""Inline SVG for the report: shapes, texts and scales. Colours are CSS classes, so light, dark and print share one.

Charts are drawn here rather than by a plotting library because a library bakes colours and measured text widths into
the file; these take both from the page. Every text goes through ElementTree, which escapes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from .report_numbers import clean, shorten, significant

Element = ElementTree.Element
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values `low`..`high` to places `start`..`stop`; values beyond are clipped."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, max(value, self.low)))
        share = min(1.0, (at - low) / (high - low)) if high > low else 0.5
        return self.start + share * (self.stop - self.start)


def canvas(width: float, height: float, label: str, css: str = "") -> Element:
    """Return an empty drawing that scales with the page; `label` is what a screen reader says."""
    box = f"0 0 {width:g} {height:g}"
    return Element("svg", {"class": f"chart {css}".strip(), "viewBox": box, "role": "img", "aria-label": clean(label)})


def markup(svg: Element) -> str:
    """Return the drawing as markup for an HTML page."""
    return ElementTree.tostring(svg, "unicode")


def child(parent: Element, tag: str, places: dict[str, str] | None = None) -> Element:
    """Add any other element."""
    return ElementTree.SubElement(parent, tag, places or {})


def shape(parent: Element, tag: str, css: str, **places: float) -> Element:
    """Add one shape whose places are rounded to a tenth, so that equal records give equal bytes."""
    return ElementTree.SubElement(parent, tag, {"class": css, **{name: f"{at:.1f}" for name, at in places.items()}})


def path(parent: Element, css: str, steps: str) -> Element:
    """Add a path."""
    return ElementTree.SubElement(parent, "path", {"class": css, "d": steps})


def text(parent: Element, css: str, at: tuple[float, float], words: str, anchor: Anchor = "start") -> Element:
    """Add a text at its baseline."""
    places = {"class": css, "x": f"{at[0]:.1f}", "y": f"{at[1]:.1f}", "text-anchor": anchor}
    element = ElementTree.SubElement(parent, "text", places)
    element.text = clean(words)
    return element


def label(parent: Element, css: str, at: tuple[float, float], words: str, limit: int) -> None:
    """Add a text of at most `limit` characters; a longer one is cut, and whole in its tooltip."""
    short = shorten(words, limit)
    element = text(parent, css, at, short)
    if short != words:
        ElementTree.SubElement(element, "title").text = clean(words)


def whisker(parent: Element, css: str, ends: tuple[float, float], y: float, arm: float = 4) -> None:
    """Add an interval as a horizontal line with two short arms."""
    low, high = ends
    steps = f"M{low:.1f} {y:.1f}H{high:.1f}"
    path(parent, css, steps + "".join(f"M{x:.1f} {y - arm:.1f}v{2 * arm:.1f}" for x in ends))


def even_ticks(low: float, high: float, wanted: int = 3) -> list[float]:
    """Return at least `wanted` round values within `low`..`high`, in the widest such step of 1, 2 or 5 tens."""
    if not high > low:
        return [low]
    power = 10.0 ** math.ceil(math.log10(high - low))
    for step in (factor * power / 10**down for down in range(3) for factor in (1, 0.5, 0.2)):
        ticks = [at * step for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        if len(ticks) >= wanted:
            break
    return ticks


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at least 3 and, where that can be, at most `most` round values for a logarithmic axis from low to high."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) > most and len(found) >= 2:
            break
        found = ticks
    return found if len(found) >= 3 else even_ticks(low, high)


def tick_text(value: float) -> str:
    """Return the label of a tick."""
    short = significant(value, 6)
    return short.rstrip("0").rstrip(".") if "." in short else short
