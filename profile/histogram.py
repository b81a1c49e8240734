"""A histogram for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def histogram(samples_ns: Sequence[int], bins: int = 12, width: int = 40) -> list[str]:
    """Draw the distribution of samples as lines of plain ASCII.

    The bins share the range up to the 98th percentile evenly; one more line counts all that is slower, with the
    slowest sample, so that a tail neither disappears nor flattens the rest.

    Args:
        samples_ns: nanoseconds; none gives no lines.
        bins: lines at the most, not counting the one for the tail.
        width: characters of the longest bar.

    Returns:
        Lines such as `  1.204 -  1.236 ms | ######## 118`.
    """
    if not samples_ns:
        return []
    ms = np.asarray(samples_ns, dtype=np.float64) / 1e6
    knee = float(np.percentile(ms, 98))
    body, tail = ms[ms <= knee], ms[ms > knee]
    if body.min() == knee:
        body_lines = [_line(f"{knee:9.4g}  {'':9}", body.size, max(body.size, tail.size), width)]
        return body_lines + _tail(tail, body.size, width)
    counts, edges = np.histogram(body, bins=bins, range=(body.min(), knee))
    longest = max(int(counts.max()), tail.size)
    pairs = zip(edges[:-1], edges[1:], counts, strict=True)
    lines = [_line(f"{low:9.4g} - {high:9.4g}", int(count), longest, width) for low, high, count in pairs]
    return lines + _tail(tail, longest, width)


def _tail(tail: npt.NDArray[np.float64], longest: int, width: int) -> list[str]:
    if not tail.size:
        return []
    return [_line(f"{'above, to':>9}   {tail.max():9.4g}", tail.size, max(longest, tail.size), width)]


def _line(label: str, count: int, longest: int, width: int) -> str:
    bar = "#" * max(round(width * count / longest), 1 if count else 0)
    return f"{label} ms | {bar} {count}"
