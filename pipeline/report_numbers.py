"""Numbers and texts of every report: the one place that decides digits, units, intervals and what a text may carry."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .record import Figure

DASH = "\u2013"
TIMES = "\u00d7"
NONE = DASH
# Not allowed in XML 1.0, not encodable as UTF-8, or able to reorder the text around them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def clean(text: str) -> str:
    """Replace the characters that no report may carry, such as control characters, with U+FFFD."""
    return _UNSAFE.sub("\ufffd", text)


def shorten(text: str, limit: int) -> str:
    """Return `text` on one line with at most `limit` characters, the last an ellipsis where something was cut."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def significant(value: float, digits: int = 3) -> str:
    """Return `value` in plain decimals with `digits` significant ones; whole digits are never rounded away."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    # The exponent after rounding: 0.9996 has the three digits of 1.00.
    power = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return fixed(value, max(0, digits - 1 - power))


def fixed(value: float, decimals: int) -> str:
    """Return `value` with `decimals` decimals, thousands apart, and no minus before a zero."""
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text


def count(value: float, unit: str = "") -> str:
    """Return a number with an SI prefix, such as `1.08 M` or, with a unit, `363 kB`."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale * 0.9995:
            return f"{significant(value / scale)} {prefix}{unit}"
    return f"{value if isinstance(value, int) else significant(value)} {unit}".strip()


def size(value: float) -> str:
    """Return a number of bytes with a decimal (SI) prefix."""
    return count(value, "B")


def duration(seconds: float) -> str:
    """Return seconds as `0.42 s`, `8.1 s`, `4 min 12 s` or `1 h 04 min`."""
    if seconds < 59.5:
        return f"{significant(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def with_unit(number: str, unit: str) -> str:
    """Join a number and its unit; a factor stands close (`7.6x`)."""
    return f"{number}{TIMES}" if unit in ("x", TIMES) else f"{number} {unit}".strip()


def decimals_of(figure: Figure, against: Collection[float] = ()) -> int:
    """Return how many decimals tell what is known: one digit of the half-width, and 3 significant at most.

    With `against` there are as many as it takes for no end of the interval to round onto a bound it does not touch,
    since a table that reads `1.0 <= 1.0, missed` would not be believed.
    """
    largest = max(abs(edge) for edge in edges(figure))
    decimals = 2 if largest == 0 else 2 - math.floor(math.log10(largest))
    half = (max(edges(figure)) - min(edges(figure))) / 2
    if half > 0:
        decimals = min(decimals, math.ceil(-math.log10(half)))
    decimals = max(0, decimals)
    while decimals < 9 and any(_hides(edge, bound, decimals) for edge in edges(figure) for bound in against):
        decimals += 1
    return decimals


def edges(figure: Figure) -> list[float]:
    """Return the value and the known ends of its interval."""
    return [edge for edge in (figure.value, figure.low, figure.high) if edge is not None]


def _hides(edge: float, bound: float, decimals: int) -> bool:
    return edge != bound and round(edge, decimals) == round(bound, decimals)


def interval(low: float, high: float, decimals: int) -> str:
    """Return `7.4-7.8`, or `-0.2 to 0.4` where a dash would be read as a minus."""
    joint = " to " if low < 0 or high < 0 else DASH
    return f"{fixed(low, decimals)}{joint}{fixed(high, decimals)}"


def figure_text(figure: Figure | None, unit: str = "", against: Collection[float] = ()) -> str:
    """Return a figure with its interval and unit, such as `2.31 ms (2.30-2.32)`."""
    if figure is None:
        return NONE
    decimals = decimals_of(figure, against)
    text = with_unit(fixed(figure.value, decimals), unit)
    if figure.low is not None and figure.high is not None:
        return f"{text} ({interval(figure.low, figure.high, decimals)})"
    ends = (("at least", figure.low), ("at most", figure.high))
    return text + "".join(f" ({word} {fixed(end, decimals)})" for word, end in ends if end is not None)


def scaled(figure: Figure, factor: float) -> Figure:
    """Return the figure times `factor`; a negative factor swaps the ends of the interval."""
    low, high = (figure.low, figure.high) if factor > 0 else (figure.high, figure.low)
    return Figure(figure.value * factor, *(None if edge is None else edge * factor for edge in (low, high)))


def inverse(figure: Figure) -> Figure:
    """Return 1 / figure, the ends of the interval swapped."""
    return Figure(1 / figure.value, *(1 / edge if edge else None for edge in (figure.high, figure.low)))


def percent(figure: Figure | None) -> str:
    """Return a share (0 to 1) as a percentage with its interval."""
    return NONE if figure is None else figure_text(scaled(figure, 100), "%")


def ratio_text(before: float, after: float) -> str:
    """Return how `after` stands to `before`: `÷ 4.0`, its opposite `x 1.2` or `=`."""
    if not before or not after or abs(after / before - 1) < 0.0005:
        return "=" if before == after or (before and after) else NONE
    return f"÷ {significant(before / after)}" if after < before else f"{TIMES} {significant(after / before)}"


def percentile_name(q: float) -> str:
    """Return `p50`, `p99` or `p99.9` for a percentile given as a share or in per cent."""
    return f"p{q * 100 if q <= 1 else q:.6g}"


def settings_text(settings: Mapping[str, Any], limit: int = 160) -> str:
    """Return settings as `ratio 0.5, score taylor` on one line."""
    return shorten(", ".join(f"{key} {plain(value)}" for key, value in settings.items()), limit) or NONE


def plain(value: Any) -> str:
    """Return any plain value as short text: numbers in four digits, lists with commas, nothing as a dash."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or NONE
    return ", ".join(map(plain, value)) or NONE if isinstance(value, list | tuple) else str(value)


def flatten(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Yield nested settings as (`cpu.name`, text) pairs in their order."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", plain(value)
