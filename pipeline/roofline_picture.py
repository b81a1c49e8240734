"""The right half of the picture of layers: a roofline on logarithmic axes, each layer a dot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .report_numbers import clean, count
from .report_svg import Element, Scale, child, log_ticks, path, shape, text, tick_text

if TYPE_CHECKING:
    from ..profile.layer_profile import Layer
    from ..profile.roofline import MemoryLevel, Placement, Roofline

NAMED = 5
LETTER = 6.0  # units of a wide letter of a label
_DECADES = 3.5
_ALIKE = 7.0
_LINE = 15.0
_INDENT = 16.0
_ON_LABEL, _ON_LINE, _ON_DOT, _OUTSIDE = 1e4, 40.0, 150.0, 1e6


@dataclass(frozen=True)
class Box:
    """A rectangle on the drawing."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Tell whether two rectangles overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, other: Box) -> bool:
        """Tell whether this one lies wholly in another."""
        inside = other.left <= self.left and self.right <= other.right
        return inside and other.top <= self.top and self.bottom <= other.bottom


Taken = tuple[Box, float]
"""A place that is taken, and what it costs to cover it."""


@dataclass(frozen=True)
class Dot:
    """A layer on the drawing."""

    layer: Layer
    css: str
    x: float
    y: float
    radius: float


def draw_roofline(
    svg: Element,
    layers: Sequence[Layer],
    roofline: Roofline,
    placed: Mapping[int, tuple[str, Placement | None]],
    frame: tuple[float, float, float, float],
) -> None:
    """Draw axes, ceilings and layers into a part of a drawing.

    Args:
        svg: the drawing.
        layers: see `drawn`.
        roofline: the ceilings.
        placed: the class of each layer's dot, by the layer's `id`.
        frame: left, right, top and bottom of the plot itself; axes and peaks are labelled outside of it.
    """
    left, right, top, bottom = frame
    shown = drawn(layers, roofline)
    across, up = _scales(shown, roofline, frame)
    _axes(svg, across, up)
    taken = list(_ceilings(svg, roofline, across, up))
    dots = _dots(shown, placed, across, up)
    for dot in dots:
        _dot(svg, dot)
    _names(svg, dots, taken, Box(left, top, right, bottom))


def drawn(layers: Sequence[Layer], roofline: Roofline) -> list[Layer]:
    """Return the layers with a place on the axes: operations and bytes are counted, and it is not too slow."""
    lowest = max(peak.flops_per_s for peak in roofline.peaks) / 10**_DECADES
    return [layer for layer in layers if layer.intensity and (layer.flops_per_s or 0.0) >= lowest]


def _scales(
    layers: Sequence[Layer], roofline: Roofline, frame: tuple[float, float, float, float]
) -> tuple[Scale, Scale]:
    """Return both axes: wide enough for all layers and for the corner of each roof."""
    left, right, top, bottom = frame
    peak = max(one.flops_per_s for one in roofline.peaks)
    corners = [peak / level.bytes_per_s for level in roofline.levels]
    places = [*corners, *(layer.intensity or 1.0 for layer in layers)]
    lowest = min([peak / 30, *(layer.flops_per_s or peak for layer in layers)]) / 2
    across = Scale(min(places) / 3, max(places) * 3, left, right, log=True)
    return across, Scale(lowest / 1e9, peak * 2.2 / 1e9, bottom, top, log=True)


def _axes(svg: Element, across: Scale, up: Scale) -> None:
    for tick in log_ticks(across.low, across.high, 9):
        path(svg, "grid", f"M{across(tick):.1f} {up.start:.1f}V{up.stop:.1f}")
        text(svg, "small muted", (across(tick), up.start + 16), tick_text(tick), "middle")
    for tick in log_ticks(up.low, up.high, 9):
        path(svg, "grid", f"M{across.start:.1f} {up(tick):.1f}H{across.stop:.1f}")
        text(svg, "small muted", (across.start - 7, up(tick) + 4), tick_text(tick), "end")
    path(svg, "axis", f"M{across.start:.1f} {up.stop:.1f}V{up.start:.1f}H{across.stop:.1f}")
    text(svg, "small muted", ((across.start + across.stop) / 2, up.start + 34), "operations per byte", "middle")
    text(svg, "small muted", (across.start - 7, up.stop - 8), "GFLOP/s", "end")


def _ceilings(svg: Element, roofline: Roofline, across: Scale, up: Scale) -> Iterator[Taken]:
    """Draw the roofs and yield where they and their labels are."""
    peaks = sorted(roofline.peaks, key=lambda one: -one.flops_per_s)
    fastest, above = roofline.levels[0].bytes_per_s, -math.inf
    for peak in peaks:
        y, corner = up(peak.flops_per_s / 1e9), across(peak.flops_per_s / fastest)
        path(svg, "roof", f"M{corner:.1f} {y:.1f}H{across.stop:.1f}")
        above = max(y + 4, above + _LINE)
        text(svg, "small", (across.stop + 6, above), f"{peak.dtype} {count(peak.flops_per_s, 'FLOP/s')}")
        yield Box(corner, y - 2, across.stop, y + 2), 40 * _ON_LINE
    for place, level in enumerate(roofline.levels):
        yield from _slope(svg, level, place, peaks[0].flops_per_s, (across, up))


def _slope(svg: Element, level: MemoryLevel, place: int, peak: float, scales: tuple[Scale, Scale]) -> Iterator[Taken]:
    """Draw the roof of one level of memory, from the edge of the plot to the highest peak, its label along it."""
    across, up = scales
    first = max(across.low, up.low * 1e9 / level.bytes_per_s)
    last = min(across.high, peak / level.bytes_per_s)
    if first >= last:
        return
    x, y = across(first), up(first * level.bytes_per_s / 1e9)
    to_x, to_y = across(last), up(last * level.bytes_per_s / 1e9)
    path(svg, f"roof dash{place}", f"M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}")
    words = f"{level.name} {count(level.bytes_per_s, 'B/s')}"
    angle, length = math.atan2(to_y - y, to_x - x), math.hypot(to_x - x, to_y - y)
    # The first level's label stands above its line and the others below theirs: neighbours may be close.
    along, off = min(_INDENT, length / 10), -6 if place == 0 else 14
    at = (x + along * math.cos(angle) - off * math.sin(angle), y + along * math.sin(angle) + off * math.cos(angle))
    turned = text(svg, "small halo", at, words)
    turned.set("transform", f"rotate({math.degrees(angle):.1f} {at[0]:.1f} {at[1]:.1f})")
    # What slants takes a row of small squares.
    for step in range(0, int(length), 8):
        yield _square(x + step * math.cos(angle), y + step * math.sin(angle), 4), _ON_LINE
    for step in range(0, int(LETTER * len(words)), 12):
        yield _square(at[0] + step * math.cos(angle), at[1] + step * math.sin(angle), 10), _ON_LABEL


def _square(x: float, y: float, half: float) -> Box:
    return Box(x - half, y - half, x + half, y + half)


def _dots(
    layers: Sequence[Layer], placed: Mapping[int, tuple[str, Placement | None]], across: Scale, up: Scale
) -> list[Dot]:
    """Return the largest first; a dot's area is in proportion to the layer's time."""
    largest = max((layer.share for layer in layers), default=1.0) or 1.0
    return [
        Dot(
            layer,
            placed[id(layer)][0],
            across(layer.intensity or across.low),
            up((layer.flops_per_s or 0.0) / 1e9),
            max(2.5, 13 * math.sqrt(layer.share / largest)),
        )
        for layer in sorted(layers, key=lambda one: -one.share)
    ]


def _dot(svg: Element, dot: Dot) -> None:
    drawn = shape(svg, "circle", dot.css, cx=dot.x, cy=dot.y, r=dot.radius)
    rate = count(dot.layer.flops_per_s or 0.0, "FLOP/s")
    child(drawn, "title").text = clean(f"{dot.layer.title}: {rate} at {dot.layer.intensity:.3g} operations per byte")


def _names(svg: Element, dots: Sequence[Dot], taken: list[Taken], frame: Box) -> None:
    """Name the largest layers, each where it covers least: no other name, no label, few dots, close by."""
    taken += [(_square(dot.x, dot.y, dot.radius), _ON_DOT) for dot in dots]
    names: list[Box] = []
    for dot, alike in _groups(dots)[:NAMED]:
        words = _short(dot.layer.title) + (f" (+{alike})" if alike else "")
        box = min(_candidates(dot, LETTER * len(words)), key=lambda one: _cost(one, dot, taken, names, frame))
        names.append(box)
        to_x, to_y = _nearest(box, dot)
        path(svg, "leader", f"M{dot.x:.1f} {dot.y:.1f}L{to_x:.1f} {to_y:.1f}")
        before = box.right < dot.x
        text(
            svg,
            "small halo",
            (box.right - 2 if before else box.left + 2, box.bottom - 4),
            words,
            "end" if before else "start",
        )


def _groups(dots: Sequence[Dot]) -> list[tuple[Dot, int]]:
    """Return the largest dots, and how many smaller ones lie in the same place and go without a name."""
    found: list[tuple[Dot, int]] = []
    for dot in dots:
        near = (i for i, (one, _) in enumerate(found) if math.hypot(one.x - dot.x, one.y - dot.y) < _ALIKE)
        place = next(near, None)
        if place is None:
            found.append((dot, 0))
        else:
            found[place] = found[place][0], found[place][1] + 1
    return found


def _short(name: str) -> str:
    return name if len(name) <= 24 else "…" + name[-23:]


def _candidates(dot: Dot, width: float) -> Iterator[Box]:
    for distance in (14, 24, 36, 50, 66, 84, 104, 126, 150):
        for step in range(16):
            angle = step * math.pi / 8
            x, y = dot.x + (dot.radius + distance) * math.cos(angle), dot.y + (dot.radius + distance) * math.sin(angle)
            left = x if math.cos(angle) > 0.3 else x - width if math.cos(angle) < -0.3 else x - width / 2
            yield Box(left, y - 8, left + width + 4, y + 8)


def _cost(box: Box, dot: Dot, taken: Sequence[Taken], names: Sequence[Box], frame: Box) -> float:
    covered = sum(cost for other, cost in taken if box.meets(other))
    to_x, to_y = _nearest(box, dot)
    leader = [_square(dot.x + (to_x - dot.x) * i / 12, dot.y + (to_y - dot.y) * i / 12, 1) for i in range(13)]
    overlaps = sum(one.meets(name) for name in names for one in (box, *leader))
    away = math.hypot(to_x - dot.x, to_y - dot.y)
    return _OUTSIDE * (not box.within(frame)) + _ON_LABEL * overlaps + covered + away


def _nearest(box: Box, dot: Dot) -> tuple[float, float]:
    """Return the point of a rectangle that is nearest to a dot."""
    return min(max(dot.x, box.left), box.right), min(max(dot.y, box.top + 2), box.bottom - 2)
