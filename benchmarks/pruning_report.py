"""The tables of `pruning_quality.py`: means over seeds, paired differences, and times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import interval, machine, machine_text, table, write_results
from shipworthy.benchmarks.pruning_tools import OURS, THEIRS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shipworthy.benchmarks.pruning_quality import Row
    from shipworthy.profile.measure import Measurement

BASELINE, USUAL = "uncompressed", "plain"

Range = tuple[float, float | None, float | None]
"""A value with the ends of its 95 % interval, where it has one."""

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t by degrees of freedom, from 1; beyond them the last is used, which is a little wide."""

HEAD = (
    "MACs", "tool", "setting", "x fewer", "parameters", "accuracy % after pruning", "after recovery", "pruning took s",
    "p50 ms", "speed-up, 95 %",
)  # fmt: skip
HEAD_DIRECT = ("MACs", "accuracy, points more: 95 % over seeds", "over images", "times as fast, 95 %", "outcome")
HEAD_CHOICE = (
    "MACs", "tool", "setting", "seed", "MACs left", "accuracy % after pruning", "after recovery",
    "agrees with the original %",
)  # fmt: skip


@dataclass(frozen=True)
class How:
    """What all rows of a report have in common."""

    steps: int
    recovery: str
    quick: bool

    @property
    def smoke(self) -> str:
        """Return a warning for the title of a smoke run."""
        return " (smoke run: the figures mean nothing)" if self.quick else ""

    @property
    def suffix(self) -> str:
        """Return what the file's name ends with, where the recovery is not the usual one."""
        return "" if self.recovery == USUAL else f"_{self.recovery}"


@dataclass(frozen=True)
class Seen:
    """What was found beside the rows: times by `POINT TOOL` and of `uncompressed`, the uncompressed model, labels."""

    latency: Mapping[str, Measurement]
    macs: int
    params: int
    accuracy: float
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Line:
    """A line of the table: one tool at one point, means over seeds; accuracies are shares, one for each seed."""

    point: str
    tool: str
    setting: str
    macs: tuple[int, ...]
    params: tuple[int, ...]
    before: tuple[float, ...]
    accuracy: tuple[float, ...]
    prune_s: float
    p50_ms: float
    speedup: Range


@dataclass(frozen=True)
class Direct:
    """Ours against theirs at one point: accuracy in points more, and times as fast."""

    point: str
    over_seeds: Range
    over_images: Range
    times_as_fast: Range
    outcome: str


def report(out: Path, rows: Sequence[Row], seen: Seen, how: How) -> None:
    """Write the final table and the data."""
    where, points = machine(), list(dict.fromkeys(row.point for row in rows))
    lines = [line_of(_of(rows, point, tool), seen) for point in points for tool in (OURS, THEIRS)]
    direct = [against(_of(rows, point, OURS), _of(rows, point, THEIRS), seen) for point in points]
    base = seen.latency[BASELINE]
    text = [
        f"# Pruned to equal shares of MACs, recovered equally{how.smoke}\n",
        machine_text(where),
        f"Recovery of both: {how.steps} steps, settings `{how.recovery}`; seeds: {len({row.seed for row in rows})}. "
        f"The uncompressed model has {100 * seen.accuracy:.2f} % of {len(seen.labels):,} test images right, "
        f"{seen.macs:,} MACs and {seen.params:,} parameters, and takes {base.p50_ms:.3f} ms. Times are of the first "
        "seed's fp32 files, batch 1, one thread, interleaved.\n",
        table(HEAD, (_cells(line, seen) for line in lines)),
        "Ours against Torch-Pruning:\n",
        table(HEAD_DIRECT, (_direct_cells(one) for one in direct)),
        "After recovery: the mean over seeds and [the lowest, the highest]. Over seeds: Student's interval of the "
        "differences between runs of equal seed, for these test images. Over images: of each image's mean difference, "
        "for these seeds.\n",
    ]
    data = {
        **asdict(how), "machine": where, "lines": [asdict(line) for line in lines],
        "uncompressed": {"macs": seen.macs, "params": seen.params, "accuracy": seen.accuracy, "p50_ms": base.p50_ms},
        "direct": [asdict(one) for one in direct], "rows": [_plain(row, seen.labels) for row in rows],
        "test_images": len(seen.labels), "rounds": len(base.samples_ns), "notes": list(base.notes),
    }  # fmt: skip
    write_results(out, f"pruning_quality{how.suffix}", "\n".join(text), data)


def line_of(rows: Sequence[Row], seen: Seen) -> Line:
    """Put together one tool's runs at one point."""
    from shipworthy.profile.stats import median_ratio_interval

    first, base = rows[0], seen.latency[BASELINE]
    mine = seen.latency[f"{first.point} {first.tool}"]
    ratio = median_ratio_interval(base.samples_ns, mine.samples_ns)
    return Line(
        point=first.point, tool=first.tool, setting=first.setting, macs=tuple(row.macs for row in rows),
        params=tuple(row.params for row in rows), before=tuple(row.before for row in rows),
        accuracy=tuple(float(right(row, seen.labels).mean()) for row in rows),
        prune_s=fmean(row.prune_s for row in rows), p50_ms=mine.p50_ms,
        speedup=(ratio.value, ratio.low, ratio.high),
    )  # fmt: skip


def against(ours: Sequence[Row], theirs: Sequence[Row], seen: Seen) -> Direct:
    """Compare the tools at one point, run by run of equal seed."""
    import numpy as np

    from shipworthy.profile.compare import compare_measurements

    pairs = list(zip(ours, theirs, strict=True))
    differences = 100 * np.array([right(a, seen.labels) - right(b, seen.labels) for a, b in pairs])
    names = [f"{row.point} {row.tool}" for row in pairs[0]]
    ratio = compare_measurements(seen.latency[names[1]], seen.latency[names[0]], 0.02)
    return Direct(
        point=pairs[0][0].point,
        over_seeds=mean_interval([float(one) for one in differences.mean(1)]),
        over_images=wide_mean_interval(differences.mean(0)),
        times_as_fast=(ratio.ratio, ratio.low, ratio.high),
        outcome=ratio.outcome,
    )


def right(row: Row, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 for each image that the recovered model has right, `(images,)`, and 0 for the others."""
    import numpy as np

    found: NDArray[np.float64] = (np.array([int(one) for one in row.answers]) == labels).astype(np.float64)
    return found


def mean_interval(values: Sequence[float]) -> Range:
    """Return the mean of a few values with Student's 95 % interval; one value has none."""
    if len(values) < 2:
        return fmean(values), None, None
    mean, t = fmean(values), T975[min(len(values) - 1, len(T975)) - 1]
    half = t * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def wide_mean_interval(values: NDArray[np.float64]) -> Range:
    """Return the mean of many values `(n,)` with the normal 95 % interval."""
    mean, half = float(values.mean()), 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def report_choice(
    out: Path, rows: Sequence[Row], labels: NDArray[np.int64], original: NDArray[np.int64], how: How
) -> None:
    """Write how the settings compare on images held out, of each point and tool the best first."""
    where = machine()
    found = [_plain(row, labels) | {"agreement": float(right(row, original).mean())} for row in rows]
    found.sort(key=lambda one: (one["point"], one["tool"], -one["agreement"]))
    text = [
        f"# Settings of both tools, compared on images held out{how.smoke}\n",
        machine_text(where),
        f"{len(labels):,} training images that are not trained on here; the uncompressed model, which was trained on "
        f"them, has {100 * float((original == labels).mean()):.2f} % right. {how.steps} steps of recovery each, "
        f"settings `{how.recovery}`.\n",
        table(HEAD_CHOICE, map(_choice_cells, found)),
    ]
    data = {**asdict(how), "machine": where, "held_out": len(labels), "rows": found}
    write_results(out, f"pruning_quality_choice{how.suffix}", "\n".join(text), data)


def _of(rows: Sequence[Row], point: str, tool: str) -> list[Row]:
    return sorted((row for row in rows if (row.point, row.tool) == (point, tool)), key=lambda row: row.seed)


def _plain(row: Row, labels: NDArray[np.int64]) -> dict[str, Any]:
    told = {name: value for name, value in asdict(row).items() if name not in ("answers", "file")}
    return told | {"accuracy": float(right(row, labels).mean())}


def _cells(line: Line, seen: Seen) -> tuple[str, ...]:
    low, high = min(line.accuracy), max(line.accuracy)
    return (
        line.point, line.tool, line.setting, f"{seen.macs / fmean(line.macs):.2f}", f"{fmean(line.params):,.0f}",
        f"{100 * fmean(line.before):.1f}", f"{100 * fmean(line.accuracy):.2f} [{100 * low:.2f}, {100 * high:.2f}]",
        f"{line.prune_s:.0f}", f"{line.p50_ms:.3f}", interval(*line.speedup),
    )  # fmt: skip


def _choice_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f"{100 * row[name]:.2f}" for name in ("before", "accuracy", "agreement"))
    return (row["point"], row["tool"], row["setting"], str(row["seed"]), f"{row['macs']:,}", *shares)


def _direct_cells(one: Direct) -> tuple[str, ...]:
    ranges = (interval(*found) for found in (one.over_seeds, one.over_images, one.times_as_fast))
    return (one.point, *ranges, one.outcome)
