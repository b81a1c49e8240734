"""What a goal can be about, and on what it can be measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Runtime = Literal["ort-cpu", "ort-cuda", "tensorrt"]
FigureName = Literal["cold", "gaps", "throughput", "concurrency", "layers"]
"""What can be measured beside the warm latency; see `taking.TAKERS`."""


@dataclass(frozen=True)
class Metric:
    """One measurable quantity.

    Attributes:
        unit: how a goal's number is meant.
        bound: the side a goal can set: more is better (`min`) or less is better (`max`).
        on_runtime: whether it differs from runtime to runtime, so that a goal says `on`.
        needs_data: whether it is counted on a data set.
        low: goals lie above this.
        high: goals lie at or below this.
    """

    unit: str
    bound: Literal["min", "max"]
    on_runtime: bool = False
    needs_data: bool = False
    low: float = 0.0
    high: float = float("inf")


_LATENCY = Metric("ms", "max", on_runtime=True)
_SHARE = Metric("%", "min", needs_data=True, high=100.0)

METRICS: dict[str, Metric] = {
    "latency_p50_ms": _LATENCY,
    "latency_p90_ms": _LATENCY,
    "latency_p99_ms": _LATENCY,
    "speedup": Metric("x", "min", on_runtime=True),
    "throughput": Metric("examples/s", "min", on_runtime=True),
    "energy_mj": Metric("mJ", "max", on_runtime=True),
    "peak_memory_mb": Metric("MB", "max", on_runtime=True),
    "size_mb": Metric("MB", "max"),
    "size_ratio": Metric("of the baseline", "max"),
    "accuracy": _SHARE,
    "macro_recall": _SHARE,
    "macro_precision": _SHARE,
    "macro_f1": _SHARE,
    "lowest_recall": _SHARE,
    "agreement": _SHARE,
    "accuracy_drop": Metric("points", "max", needs_data=True, low=-100.0, high=100.0),
    "calibration_error": Metric("points", "max", needs_data=True, high=100.0),
}


def latency_quantile(metric: str) -> float | None:
    """Return 90 of `latency_p90_ms`, and None of a metric that is no latency."""
    found = re.fullmatch(r"latency_p(\d+)_ms", metric)
    return float(found[1]) if found else None
