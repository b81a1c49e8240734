"""The picture of a profile by layer: which layers take longest, and where each stands below the measured ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .report_numbers import clean, count, shorten, significant
from .report_svg import Element, Scale, canvas, child, even_ticks, label, markup, path, shape, text
from .roofline_picture import draw_roofline, drawn

if TYPE_CHECKING:
    from ..profile.layer_profile import Layer, LayerProfile
    from ..profile.roofline import Placement, Roofline

_STYLE = Path(__file__).parent / "templates" / "layers.css"

EDGE, TOP, LEGEND, ROW = 24.0, 104.0, 28.0, 38.0
START, STOP, HALF = 250.0, 440.0, 620.0
PLOT = (650.0, 1090.0)
WIDTH = 1230.0
MOST = 14
BOUNDS = {
    "compute": "bound by computation",
    "memory": "bound by memory",
    "overhead": "far below both ceilings",
    "unknown": "not known",
}


def layer_svg(profile: LayerProfile, roofline: Roofline | None) -> str:
    """Return the picture as one SVG file that needs no other.

    Args:
        profile: of one target.
        roofline: of the same device and threads; without one the layers' bars stand alone.
    """
    svg = _drawing(profile, roofline)
    size = dict(zip(("width", "height"), svg.attrib["viewBox"].split()[2:], strict=True))
    svg.attrib |= {"xmlns": "http://www.w3.org/2000/svg", **size}
    style = Element("style")
    style.text = _STYLE.read_text(encoding="utf-8")
    svg.insert(0, style)
    svg.insert(1, Element("rect", {"class": "page", "width": "100%", "height": "100%"}))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{markup(svg)}\n'


def layer_plot(profile: LayerProfile, roofline: Roofline | None) -> str:
    """Return the picture as markup for a page that has its style (`report_layers.css`)."""
    return markup(_drawing(profile, roofline, "layers"))


def _drawing(profile: LayerProfile, roofline: Roofline | None, css: str = "") -> Element:
    from ..profile.layer_table import slowest

    shown = slowest(profile, MOST)
    placed = {id(layer): _bound(layer, roofline) for layer in profile.layers}
    notes = _notes(profile, roofline, len(profile.layers) - len(shown))
    top = TOP + LEGEND * (roofline is not None)
    bottom = top + ROW * max(len(shown), MOST if roofline else 0)
    width, height = WIDTH if roofline else HALF + EDGE, bottom + 44 + 18 * len(notes)
    title = f"Where the time goes: {profile.name} in {profile.runtime}"
    svg = canvas(width, height, f"{title}; {'; '.join(map(_said, shown))}", css)
    _head(svg, title, profile, roofline)
    _bars(svg, shown, placed, (top, bottom))
    if roofline is not None:
        draw_roofline(svg, profile.layers, roofline, placed, (*PLOT, top - 6, bottom - 22))
    for place, note in enumerate(notes):
        label(svg, "small muted", (EDGE, bottom + 42 + 18 * place), note, int(width // 6))
    return svg


def _bound(layer: Layer, roofline: Roofline | None) -> tuple[str, Placement | None]:
    from ..profile.roofline import place

    if roofline is None:
        return "plain", None
    found = place(layer, roofline)
    return ("unknown" if found is None else found.bound), found


def _said(layer: Layer) -> str:
    return f"{layer.title} {layer.share:.1%}"


def _head(svg: Element, title: str, profile: LayerProfile, roofline: Roofline | None) -> None:
    """Draw the title, the times of whole inferences, and what colours mean."""
    label(svg, "title", (EDGE, 36), title, 60 if roofline is None else 110)
    label(svg, "small muted", (EDGE, 58), _whole(profile), 104 if roofline is None else 200)
    if roofline is None:
        return
    x = EDGE
    for bound, words in BOUNDS.items():
        shape(svg, "rect", bound, x=x, y=73, width=22, height=11)
        text(svg, "small", (x + 29, 82.5), words)
        x += 56 + 6.0 * len(words)


def _whole(profile: LayerProfile) -> str:
    plain, profiled = (f"{significant(ns / 1e6)} ms" for ns in (profile.plain_median_ns, profile.profiled_median_ns))
    outside = profile.unattributed_ns / profile.profiled_median_ns
    plan = f"batch {profile.plan.batch}, {profile.plan.threads} thread{'s' * (profile.plan.threads > 1)}"
    return f"An inference takes {plain}, with the profiler {profiled}, of which {outside:.1%} is in no layer; {plan}."


def _bars(
    svg: Element, shown: Sequence[Layer], placed: dict[int, tuple[str, Placement | None]], span: tuple[float, float]
) -> None:
    top, bottom = span
    scale = Scale(0, max((layer.share for layer in shown), default=1.0) or 1.0, START, STOP)
    for tick in even_ticks(0, scale.high * 100, 3):
        x = scale(tick / 100)
        path(svg, "axis" if tick == 0 else "grid", f"M{x:.1f} {top - 6:.1f}V{bottom:.1f}")
        text(svg, "small muted", (x, top - 12), f"{tick:g} %", "middle")
    for place, layer in enumerate(shown):
        _bar(svg, layer, placed[id(layer)], scale, top + ROW * place)


def _bar(svg: Element, layer: Layer, placed: tuple[str, Placement | None], scale: Scale, top: float) -> None:
    """Draw one layer: its name, what it is, its share and time, and how far below its roof it is."""
    bound, found = placed
    group = child(svg, "g")
    child(group, "title").text = clean(_tooltip(layer, found))
    text(group, "strong", (EDGE, top + 14), _tail(layer.title, 32))
    operations = "" if layer.flops is None else f", {count(layer.flops, 'FLOP')}"
    text(group, "small muted", (EDGE, top + 29), shorten(f"{layer.operator}{operations}, {layer.dtype}", 38))
    stop = scale(layer.share)
    shape(group, "rect", bound, x=scale.start, y=top + 5, width=max(1.0, stop - scale.start), height=22)
    text(group, "small halo", (stop + 7, top + 14), f"{layer.share:.1%}, {significant(layer.median_ns / 1e3)} us")
    standing = "" if found is None else f"{bound}, {found.share:.0%} of the roof"
    text(group, "small muted halo", (stop + 7, top + 28), standing)


def _tooltip(layer: Layer, found: Placement | None) -> str:
    shapes = [f"{one.dtype} {list(one.shape)}" for one in (*layer.inputs, *layer.outputs) if one is not None]
    roof = [] if found is None else [f"{found.share:.0%} of what the roof of {found.level} allows"]
    return "\n".join([f"{layer.name}: {layer.operator}", *layer.facts, *roof, *shapes])


def _tail(name: str, limit: int) -> str:
    """Return the end of a name that is too long: layers differ there."""
    return name if len(name) <= limit else "…" + name[1 - limit :]


def _notes(profile: LayerProfile, roofline: Roofline | None, more: int) -> list[str]:
    rest = [f"and {more} more layer{'s' * (more > 1)}, each shorter"] if more else []
    if roofline is None:
        return rest
    peaks = [f"{peak.dtype} {count(peak.flops_per_s, 'FLOP/s')} ({peak.how})" for peak in roofline.peaks]
    levels = [f"{level.name} {count(level.bytes_per_s, 'B/s')} ({level.how})" for level in roofline.levels]
    shown = {id(layer) for layer in drawn(profile.layers, roofline)}
    others = [layer.share for layer in profile.layers if id(layer) not in shown]
    why = "without counted operations, or too slow to be shown"
    unseen = f"; {len(others)} layers are left out, {sum(others):.1%} of the time: {why}" if others else ""
    right = f"right: (+n) stands for n shorter layers in the same place{unseen}"
    return [*rest, f"ceilings, the best of what was tried here: {', '.join(peaks)}", f"{', '.join(levels)}", right]
