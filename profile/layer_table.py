"""A profile by layer as lines and rows of text for a terminal; the first row of a table is its head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .layer_profile import Layer, LayerProfile
from .roofline import Placement, Roofline, place

Row = tuple[str, ...]

NUMBERS = frozenset({2, 3, 4, 5, 6, 7, 9})
"""Columns of both tables that hold numbers, to be aligned right."""

_NONE = "-"
_NAME = 40


@dataclass(frozen=True)
class OperatorTotal:
    """All layers of one operator together.

    Attributes:
        count: how many layers.
        median_ns: the sum of their medians.
        share: of the time of all layers, 0 to 1.
        flops: None where one of them is not counted.
        bytes: None where one of them is not counted.
        int8: how many of them compute in int8.
    """

    operator: str
    count: int
    median_ns: float
    share: float
    flops: int | None
    bytes: int | None
    int8: int


def by_operator(layers: Iterable[Layer]) -> list[OperatorTotal]:
    """Sum layers up by operator, those that take longest first."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.operator, []).append(layer)
    totals = [_total(operator, group) for operator, group in groups.items()]
    return sorted(totals, key=lambda total: -total.median_ns)


def slowest(profile: LayerProfile, top: int | None = None) -> list[Layer]:
    """Return the layers that take longest, in that order; all of them if `top` is None."""
    return sorted(profile.layers, key=lambda layer: -layer.median_ns)[:top]


def layer_rows(profile: LayerProfile, roofline: Roofline | None = None, top: int | None = 20) -> list[Row]:
    """Return the table of the layers that take longest, and one row for all others.

    Args:
        profile: of one target.
        roofline: of the same device, type and threads; without one nothing is said of what bounds a layer.
        top: rows at the most, without head and rest; None shows all.
    """
    shown = slowest(profile, top)
    head = ("layer", "operator", "time", "share", "MFLOP", "FLOP/B", "GFLOP/s", "GB/s")
    rows = [_row(layer, roofline) for layer in shown]
    rest = slowest(profile)[len(shown) :]
    if rest:
        rows.append(_rest(rest, len(head) + (3 if roofline else 0)))
    return [head if roofline is None else (*head, "bound", "of roof", "note"), *rows]


def operator_rows(profile: LayerProfile) -> list[Row]:
    """Return the table of operators, those that take longest first."""
    totals = by_operator(profile.layers)
    return [
        ("operator", "", "layers", "time", "share", "MFLOP", "GFLOP/s", "GB/s"),
        *(
            (
                total.operator,
                f"{total.int8} int8" if total.int8 else "",
                str(total.count),
                time_text(total.median_ns),
                f"{total.share:.1%}",
                _number(total.flops, 1e6),
                _number(_rate(total.flops, total.median_ns), 1e9),
                _number(_rate(total.bytes, total.median_ns), 1e9),
            )
            for total in totals
        ),
    ]


def summary_lines(profile: LayerProfile, roofline: Roofline | None = None) -> list[str]:
    """Say how long an inference took without the profiler and with it, what is in no layer, the ceilings, and notes."""
    plain, profiled = profile.plain_median_ns, profile.profiled_median_ns
    lines = [
        f"inference without the profiler  {time_text(plain)}",
        f"with it                         {time_text(profiled)} ({profile.overhead:+.1%})",
        f"in no layer                     {time_text(profile.unattributed_ns)} "
        f"({profile.unattributed_ns / profiled:.1%} of the latter)",
        f"operations counted              {profile.flops / 1e6:,.4g} MFLOP"
        + (f", without {', '.join(profile.not_counted)}" if profile.not_counted else ""),
    ]
    ceilings = [] if roofline is None else _ceilings(profile, roofline)
    notes = (*profile.notes, *(roofline.notes if roofline else ()))
    return [*lines, *ceilings, *(f"note: {note}" for note in notes)]


def time_text(ns: float) -> str:
    """Return nanoseconds as `812 ns`, `41.5 us` or `3.21 ms`, in three digits."""
    for unit, scale in (("ns", 1.0), ("us", 1e3), ("ms", 1e6)):
        if abs(ns) < 999.5 * scale:
            return f"{_digits(ns / scale)} {unit}"
    return f"{_digits(ns / 1e9)} s"


def _ceilings(profile: LayerProfile, roofline: Roofline) -> list[str]:
    peaks = ", ".join(f"{peak.dtype} {_digits(peak.flops_per_s / 1e9)} GFLOP/s ({peak.how})" for peak in roofline.peaks)
    levels = ", ".join(f"{level.name} {_digits(level.bytes_per_s / 1e9)} GB/s" for level in roofline.levels)
    placed = [(layer, place(layer, roofline)) for layer in profile.layers]
    shares = {
        bound: sum(layer.share for layer, found in placed if found is not None and found.bound == bound)
        for bound in ("compute", "memory", "overhead")
    }
    left = 1 - sum(shares.values())
    bounds = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return [
        f"measured ceilings               {peaks}",
        f"                                {levels}",
        f"an operator that does nothing   {time_text(roofline.dispatch_ns)}",
        f"time by what bounds it          {bounds}" + (f", not known {left:.1%}" if left > 5e-4 else ""),
    ]


def _row(layer: Layer, roofline: Roofline | None) -> Row:
    row = (
        name_text(layer.title),
        layer.operator,
        time_text(layer.median_ns),
        f"{layer.share:.1%}",
        _number(layer.flops, 1e6),
        _number(layer.intensity),
        _number(layer.flops_per_s, 1e9),
        _number(layer.bytes_per_s, 1e9),
    )
    return row if roofline is None else (*row, *_placed(place(layer, roofline)), ", ".join(layer.facts))


def _placed(found: Placement | None) -> Row:
    return (_NONE, _NONE) if found is None else (found.bound, f"{found.share:.0%}")


def _rest(layers: list[Layer], width: int) -> Row:
    total = _total("", layers)
    known = (f"and {len(layers)} more", "", time_text(total.median_ns), f"{total.share:.1%}", _number(total.flops, 1e6))
    return (*known, *[""] * (width - len(known)))


def _total(operator: str, layers: list[Layer]) -> OperatorTotal:
    return OperatorTotal(
        operator=operator,
        count=len(layers),
        median_ns=sum(layer.median_ns for layer in layers),
        share=sum(layer.share for layer in layers),
        flops=_sum(layer.flops for layer in layers),
        bytes=_sum(layer.bytes for layer in layers),
        int8=sum("int8" in layer.facts for layer in layers),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _rate(amount: int | None, ns: float) -> float | None:
    return None if amount is None or not ns else amount / ns * 1e9


def name_text(name: str, limit: int = _NAME) -> str:
    """Return the end of a name that is too long: layers of a model differ there."""
    return name if len(name) <= limit else "…" + name[1 - limit :]


def _number(value: float | None, scale: float = 1.0) -> str:
    return _NONE if value is None else _digits(value / scale)


def _digits(value: float) -> str:
    """Return three significant digits without an exponent; whole digits are never rounded away."""
    if value == 0:
        return "0"
    power = int(f"{value:.2e}".partition("e")[2])
    return f"{value:,.{min(6, max(0, 2 - power))}f}"
