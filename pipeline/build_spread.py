"""How far several builds of one engine lie apart in latency, beside how well each was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from typing import Any, Literal

from ..models.errors import BadInput
from ..profile.measure import Measurement, measure_all
from ..profile.plan import Plan
from ..profile.sampling import Report
from ..profile.stats import median_interval


@dataclass(frozen=True)
class BuildSpread:
    """Medians of builds that were sampled interleaved.

    Attributes:
        runtime: that ran them.
        p50_ms: the median latency of each build.
        between: the slowest build's median over the fastest's, less 1.
        within: half the widest 95 % interval of a median, as a share of it; None where samples were too few for one.
    """

    runtime: str
    p50_ms: tuple[float, ...]
    between: float
    within: float | None

    @property
    def outcome(self) -> Literal["differ", "same", "unclear"]:
        """Whether the builds lie further apart than their intervals are wide."""
        if self.within is None:
            return "unclear"
        return "differ" if self.between > 2 * self.within else "same"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "outcome": self.outcome}

    def line(self) -> str:
        """Say it in one line."""
        ends = f"{min(self.p50_ms):.4g} to {max(self.p50_ms):.4g} ms"
        known = "" if self.within is None else f", each known to ± {self.within:.1%}"
        return f"{ends} on {self.runtime}, {self.between:.1%} apart{known}: {self.outcome}"


def spread_of_builds(
    engines: Sequence[str | PathLike[str]],
    runtime: str,
    plan: Plan | None = None,
    inputs: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> BuildSpread:
    """Measure engines that were built of one file, interleaved. On engines not run yet: it needs a GPU.

    Args:
        engines: two or more files.
        runtime: that runs them: `rtx` or `tensorrt`; any that takes files.
        plan: how; `Plan()` if None.
        inputs: arrays by name; random if None.
        report: told the share that is done, and a text.

    Raises:
        BadInput: fewer than two engines.
        RuntimeAbsent: no driver, no GPU, or the runtime is not installed.
        BadPlan: an engine cannot be loaded here, or the inputs do not fit.
    """
    if len(engines) < 2:
        raise BadInput(f"engines: got {len(engines)}, wanted two or more builds to compare")
    seen = measure_all([fspath(one) for one in engines], runtime, plan or Plan(), inputs, report=report)
    return spread(seen)


def spread(seen: Sequence[Measurement]) -> BuildSpread:
    """Compare measurements that were taken interleaved."""
    medians = [median_interval(one.samples_ns, one.tail) for one in seen]
    values = [one.value for one in medians]
    width = max(one.relative_half_width for one in medians)
    within = width if math.isfinite(width) else None
    return BuildSpread(seen[0].runtime, tuple(value / 1e6 for value in values), max(values) / min(values) - 1, within)
