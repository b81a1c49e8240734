"""The picture of mixed precision: what each layer costs in integers, what it spares, and which stay in fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .layer_choice import LayerChoice, MixedPrecision, foremost
from .report_numbers import clean, fixed, significant
from .report_svg import Element, Scale, canvas, child, even_ticks, label, markup, path, shape, text, tick_text

WIDTH, EDGE, TOP, ROW, BAR = 1000.0, 16.0, 132.0, 22.0, 10.0
BADGE = 244.0
COSTS, GAINS = (290.0, 510.0), (640.0, 860.0)
WIDE = (290.0, 860.0)
MOST = 120
_REPEATED = 30
"""Rows above which the axes stand below them too."""


def precision_plot(found: MixedPrecision, title: str) -> str:
    """Return the picture as markup for a page that has its style (`report_precision.css`).

    One row for each layer, in the graph's order; of more than `MOST` those that cost most, and all that stay in fp32.

    Args:
        found: what a search found.
        title: what it is of.
    """
    chosen = set(foremost(found, MOST))
    shown = [one for one in found.layers if one in chosen]
    more, bottom = len(found.layers) - len(shown), TOP + ROW * len(shown)
    height = bottom + (26 if len(shown) > _REPEATED else 8) + 18 * bool(more)
    svg = canvas(WIDTH, height, f"{title}; {found.line}", "precision")
    timed = any(one.gain_us is not None for one in shown)
    _head(svg, title, found, timed)
    _bands(svg, shown)
    unit, factor = unit_of(found)
    costs = Scale(0, max((one.sensitivity * factor for one in shown), default=0.0) or 1.0, *(COSTS if timed else WIDE))
    _axis(svg, costs, f"sensitivity, {unit}", bottom, len(shown) > _REPEATED)
    gains = _gain_scale(shown)
    if timed:
        _axis(svg, gains, "gain of its integers, µs", bottom, len(shown) > _REPEATED)
    for place, one in enumerate(shown):
        _row(svg, one, (costs, factor), gains, TOP + ROW * place)
    if more:
        text(svg, "small muted", (EDGE, height - 4), f"and {more} more layers in integers, each of which costs less")
    return markup(svg)


def unit_of(found: MixedPrecision) -> tuple[str, float]:
    """Return the unit that sensitivities are said in, and how many of it a nat is."""
    most = max((one.sensitivity for one in found.layers), default=0.0)
    return ("nat", 1.0) if most >= 1 else ("mnat", 1e3) if most >= 1e-3 else ("µnat", 1e6)


def gain_text(one: LayerChoice) -> str:
    """Return a gain with its interval in microseconds, such as `+33 (20 to 46)`; nothing where none was measured."""
    if one.gain_us is None:
        return ""
    ends = [end for end in (one.gain_low_us, one.gain_high_us) if end is not None]
    digits = 1 if max(abs(one.gain_us), *map(abs, ends), 0.0) < 10 else 0
    number = fixed(one.gain_us, digits)
    sign = "+" if one.gain_us > 0 and number.strip("0.") else ""
    between = f" ({' to '.join(fixed(end, digits) for end in ends)})" if len(ends) == 2 else ""
    return f"{sign}{number}{between}"


def _head(svg: Element, title: str, found: MixedPrecision, timed: bool) -> None:
    """Draw the title, what came out, and what colours mean."""
    label(svg, "title", (EDGE, 24), title, 90)
    label(svg, "small muted" if found.met else "small missed", (EDGE, 46), found.line, 165)
    x = EDGE
    pale = [("whole pale", "pale: the interval contains zero")] if timed else []
    for css, words in (("whole", "in integers"), ("float", "stays in fp32"), *pale):
        shape(svg, "rect", css, x=x, y=61, width=22, height=11)
        text(svg, "small", (x + 29, 70.5), words)
        x += 56 + 6.0 * len(words)


def _bands(svg: Element, shown: Sequence[LayerChoice]) -> None:
    for place, one in enumerate(shown):
        if one.kept:
            shape(svg, "rect", "band", x=EDGE - 8, y=TOP + ROW * place, width=WIDTH - 2 * EDGE + 16, height=ROW)


def _axis(svg: Element, scale: Scale, title: str, bottom: float, repeated: bool) -> None:
    text(svg, "small", (scale.start, TOP - 30), title)
    for tick in even_ticks(scale.low, scale.high, 3):
        x = scale(tick)
        path(svg, "axis" if tick == 0 else "grid", f"M{x:.1f} {TOP - 6:.1f}V{bottom + 4:.1f}")
        for y in (TOP - 12, bottom + 18)[: 1 + repeated]:
            text(svg, "small muted", (x, y), tick_text(tick), "middle")


def _gain_scale(shown: Sequence[LayerChoice]) -> Scale:
    """Return the axis of gains: wide enough for all; of intervals, as far as three times the largest gain."""
    gains = [one.gain_us for one in shown if one.gain_us is not None]
    most = 3 * max(map(abs, gains), default=1.0)
    ends = [end for one in shown for end in (one.gain_low_us, one.gain_high_us) if end is not None and abs(end) <= most]
    return Scale(min([0.0, *gains, *ends]), max([0.0, *gains, *ends]) or 1.0, *GAINS)


def _row(svg: Element, one: LayerChoice, costs: tuple[Scale, float], gains: Scale, top: float) -> None:
    scale, factor = costs
    group, middle = child(svg, "g"), top + ROW / 2
    child(group, "title").text = clean(_tooltip(one))
    text(group, "strong" if one.kept else "", (EDGE, middle + 4), _tail(one.title, 32))
    text(group, "small badge" if one.kept else "small muted", (BADGE, middle + 4), "fp32" if one.kept else "int8")
    css, stop = "float" if one.kept else "whole", scale(one.sensitivity * factor)
    shape(group, "rect", css, x=scale.start, y=middle - BAR / 2, width=max(1.0, stop - scale.start), height=BAR)
    text(group, "small", (stop + 6, middle + 4), significant(one.sensitivity * factor, 2))
    if one.gain_us is not None and math.isfinite(one.gain_us):
        _gain(group, one, f"{css} pale" if one.gains is None else css, gains, middle)


def _gain(group: Element, one: LayerChoice, css: str, scale: Scale, middle: float) -> None:
    """Draw a gain from zero, to the left where integers are slower, with its interval."""
    ends = sorted((scale(0), scale(one.gain_us or 0.0)))
    shape(group, "rect", css, x=ends[0], y=middle - BAR / 2, width=max(1.0, ends[1] - ends[0]), height=BAR)
    if one.gain_low_us is not None and one.gain_high_us is not None:
        known = (one.gain_low_us, one.gain_high_us)
        # An interval that goes on beyond the axis has no arm there.
        arms = "".join(f"M{scale(x):.1f} {middle - 3:.1f}v6" for x in known if scale.low <= x <= scale.high)
        path(group, "over", f"M{scale(known[0]):.1f} {middle:.1f}H{scale(known[1]):.1f}{arms}")
    text(group, "small", (WIDTH - EDGE, middle + 4), gain_text(one), "end")


def _tooltip(one: LayerChoice) -> str:
    lines = [
        f"{one.title} ({one.layer}): {'fp32' if one.kept else 'int8'}",
        f"{one.sensitivity:.3g} nat alone in integers",
        *([f"its integers spare {gain_text(one)} µs"] if gain_text(one) else []),
    ]
    return "\n".join(lines)


def _tail(name: str, limit: int) -> str:
    """Return the end of a name that is too long: layers differ there."""
    return name if len(name) <= limit else "…" + name[1 - limit :]
