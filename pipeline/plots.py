"""The charts of the report: latency distributions, what each step did, and each goal against its bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from .record import Figure, GoalRow, LatencyRow, StepRow
from .report_numbers import (
    count,
    duration,
    edges,
    figure_text,
    fixed,
    percentile_name,
    ratio_text,
    scaled,
    significant,
    size,
)
from .report_svg import (
    Anchor,
    Element,
    Scale,
    canvas,
    even_ticks,
    label,
    log_ticks,
    markup,
    path,
    shape,
    text,
    tick_text,
    whisker,
)
from .report_text import bounds_of, goal_name, measured

LANE = 124.0
TALL = 56.0
BIN = 3.0
ROW = 26.0
PANEL = 340.0


def latency_plot(rows: Sequence[LatencyRow], baselines: Collection[str], width: float, css: str = "") -> str:
    """Return the latency distributions of all rows, one lane each, on one logarithmic axis.

    Each lane has a histogram over bins of equal ratio, scaled to its own peak, and below it a mark for every sample,
    so that a tail of one sample is seen. The median and the percentiles that the record has are marked.

    Args:
        rows: latencies; rows without samples are left out.
        baselines: names drawn as the baseline rather than as an artifact.
        width: of the drawing, in user units; texts do not shrink below it.
        css: a class for the drawing.
    """
    rows = [row for row in rows if row.samples_ns]
    if not rows:
        return ""
    low, high = (edge(max(1, edge(row.samples_ns)) / 1e6 for row in rows) for edge in (min, max))
    scale = Scale(low / 1.04, high * 1.04, 6, width - 6, log=True)
    svg = canvas(width, LANE * len(rows) + 36, "Latency distributions: " + "; ".join(map(_lane_title, rows)), css)
    _axis(svg, scale, log_ticks(scale.low, scale.high, int(width // 62)), (4, LANE * len(rows)))
    text(svg, "small muted", (width / 2, LANE * len(rows) + 32), "milliseconds, logarithmic", "middle")
    for place, row in enumerate(rows):
        _lane(svg, row, scale, LANE * place, "base" if row.name in baselines else "ship")
    return markup(svg)


def _lane_title(row: LatencyRow) -> str:
    return f"{row.name} in {row.runtime}"


def _axis(svg: Element, scale: Scale, ticks: Sequence[float], span: tuple[float, float]) -> None:
    top, bottom = span
    for tick in ticks:
        x = scale(tick)
        path(svg, "grid", f"M{x:.1f} {top:.1f}V{bottom:.1f}")
        anchor: Anchor = "start" if x < scale.start + 8 else "end" if x > scale.stop - 8 else "middle"
        text(svg, "small muted", (x, bottom + 14), tick_text(tick), anchor)


def _lane(svg: Element, row: LatencyRow, scale: Scale, top: float, css: str) -> None:
    places = [scale(sample / 1e6) for sample in row.samples_ns]
    floor = top + LANE - 24
    label(svg, "strong", (scale.start, top + 15), _lane_title(row), int((scale.stop - 90) // 9))
    text(svg, "small muted", (scale.stop, top + 15), f"{len(places):,} samples", "end")
    bins = Counter(int((x - scale.start) // BIN) for x in places)
    peak = max(bins.values())
    for place, tall in sorted(bins.items()):
        tall_px = max(1.0, TALL * tall / peak)
        shape(svg, "rect", f"{css}-fill", x=scale.start + place * BIN, y=floor - tall_px, width=BIN, height=tall_px)
    path(svg, f"{css}-rug", "".join(f"M{x:.1f} {floor + 2:.1f}v7" for x in sorted({round(x, 1) for x in places})))
    _marks(svg, row, scale, floor, css)


def _marks(svg: Element, row: LatencyRow, scale: Scale, floor: float, css: str) -> None:
    marks = sorted(row.percentiles, key=lambda mark: mark.q)
    places = [scale(mark.ms) for mark in marks]
    for x in places:
        path(svg, f"{css}-mark", f"M{x:.1f} {floor - TALL - 4:.1f}V{floor + 9:.1f}")
    words = " · ".join(f"{percentile_name(mark.q)} {significant(mark.ms)}" for mark in marks) + " ms" * bool(marks)
    # 6.6 units are a wide letter of the label's size: where the words may not fit, they end at the edge instead.
    fits = bool(places) and places[0] + 6.6 * len(words) <= scale.stop
    text(svg, "small", (places[0] if fits else scale.stop, floor - TALL - 8), words, "start" if fits else "end")


@dataclass(frozen=True)
class Quantity:
    """What a panel shows of each step: its title, the figure, how to say it, and how to say its change."""

    title: str
    of: Callable[[StepRow], Figure | None]
    say: Callable[[float], str]
    change: Callable[[float, float], str]
    zoomed: bool = False


def _latency(step: StepRow) -> Figure | None:
    return step.latency_p50_ms


QUANTITIES = (
    Quantity("Parameters", lambda step: Figure(step.params), count, ratio_text),
    Quantity("MACs", lambda step: Figure(step.macs), count, ratio_text),
    Quantity("File size", lambda step: Figure(step.file_bytes), size, ratio_text),
    Quantity("Latency, median", _latency, lambda value: f"{significant(value)} ms", ratio_text),
    Quantity(
        "Accuracy",
        lambda step: scaled(step.accuracy, 100) if step.accuracy else None,
        lambda value: f"{fixed(value, 2)} %",
        lambda before, after: f"{fixed(after - before, 2)} pt" if after < before else f"+{fixed(after - before, 2)} pt",
        zoomed=True,
    ),
    Quantity("Time the step took", lambda step: Figure(step.seconds), duration, lambda before, after: ""),
)


def step_panels(steps: Sequence[StepRow]) -> list[str]:
    """Return one small chart per quantity, the steps in the same rows; one without figures is left out."""
    return [_panel(quantity, steps) for quantity in QUANTITIES if steps and any(map(quantity.of, steps))]


def _panel(quantity: Quantity, steps: Sequence[StepRow]) -> str:
    figures = [quantity.of(step) for step in steps]
    known = [edge for figure in figures if figure for edge in edges(figure)]
    low, high = min(known), max(known)
    pad = (high - low) * 0.08 or abs(high) * 0.001 or 1.0
    scale = Scale(low - pad, high + pad, 104, 208) if quantity.zoomed else Scale(0, high or 1, 104, 208)
    bottom = 30 + ROW * len(steps)
    said = [f"{step.name} {quantity.say(figure.value)}" for step, figure in zip(steps, figures, strict=True) if figure]
    svg = canvas(PANEL, bottom + 18, f"{quantity.title}: {', '.join(said)}")
    text(svg, "strong", (0, 14), quantity.title + (" (axis zoomed)" if quantity.zoomed else ""))
    if quantity.zoomed:
        _axis(svg, scale, even_ticks(scale.low, scale.high, 2), (26, bottom))
    else:
        path(svg, "axis", f"M{scale.start:.1f} 26V{bottom:.1f}")
    for place, (step, figure) in enumerate(zip(steps, figures, strict=True)):
        y = 30 + ROW * place + ROW / 2
        label(svg, "small", (0, y + 4), step.name, 14)
        _step(svg, quantity, scale, y, (figure, figures[0] if place else None))
    return markup(svg)


def _step(svg: Element, quantity: Quantity, scale: Scale, y: float, pair: tuple[Figure | None, Figure | None]) -> None:
    figure, before = pair
    if figure is None:
        text(svg, "small muted", (278, y + 4), "not measured", "end")
        return
    css = "ship" if before else "base"
    if quantity.zoomed:
        shape(svg, "circle", f"{css}-dot", cx=scale(figure.value), cy=y, r=4)
    else:
        width = max(1.0, scale(figure.value) - scale.start)
        shape(svg, "rect", f"{css}-bar", x=scale.start, y=y - 7, width=width, height=14, rx=2)
    if figure.low is not None and figure.high is not None:
        whisker(svg, f"{css}-line" if quantity.zoomed else "over", (scale(figure.low), scale(figure.high)), y)
    text(svg, "small", (280, y + 4), quantity.say(figure.value), "end")
    if before:
        text(svg, "small muted", (PANEL, y + 4), quantity.change(before.value, figure.value), "end")


def goal_plot(goal: GoalRow) -> str:
    """Return a goal's interval against its bound, the good side shaded; empty where one is unknown.

    The axis starts at zero, so that the distance is seen in proportion, unless the bound and the interval would then
    be too close to tell apart.
    """
    bounds = [bound for bound in bounds_of(goal) if bound is not None]
    if not bounds or goal.figure is None:
        return ""
    known = [*edges(goal.figure), *bounds]
    low, high = min(known), max(known)
    if low >= 0 and high - low > 0.2 * high:
        low = 0.0
    pad = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    scale = Scale(low if low == 0 else low - pad, high + pad, 1, 159)
    svg = canvas(160, 30, f"{goal_name(goal)}: {measured(goal)}, bound {goal.bound}", "spark")
    least, most = bounds_of(goal)
    start, stop = (scale.start if least is None else scale(least), scale.stop if most is None else scale(most))
    shape(svg, "rect", "good", x=start, y=5, width=max(0.0, stop - start), height=20)
    path(svg, "axis", f"M{scale.start:.1f} 25H{scale.stop:.1f}")
    for bound in bounds:
        path(svg, "bound", f"M{scale(bound):.1f} 2V28")
    if goal.figure.low is not None and goal.figure.high is not None:
        whisker(svg, f"{goal.outcome}-line", (scale(goal.figure.low), scale(goal.figure.high)), 15, 5)
    shape(svg, "circle", f"{goal.outcome}-dot", cx=scale(goal.figure.value), cy=15, r=3.5)
    return markup(svg)


def step_latency_text(step: StepRow) -> str:
    """Return a step's median latency with its interval."""
    return figure_text(step.latency_p50_ms, "ms")
