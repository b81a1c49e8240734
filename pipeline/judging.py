"""From what was measured to what each goal of the recipe became."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.metrics import Estimate, agreement, paired_drop
from ..models.schemes import QUANTIZED
from ..profile.goals import Goal, GoalVerdict, Outcome, Reading, judge
from ..profile.stats import mean_interval
from ..profile.throughput import per_second
from .measuring import Measured
from .recipe_metrics import latency_quantile
from .stages import Exported
from .store import Facts

QUALITY = (
    "accuracy",
    "macro_recall",
    "macro_precision",
    "macro_f1",
    "lowest_recall",
    "calibration_error",
    "agreement",
    "accuracy_drop",
)
MB = 1_000_000


@dataclass(frozen=True)
class Evidence:
    """Everything that goals are judged by.

    Attributes:
        baseline: the file of the uncompressed model.
        shipped: the files that ship, by target; `cpu` is always there.
        measured: what was measured, by runtime.
        labels: of the test examples `(examples,)`; None without data.
        classes: their names; none without data.
        changes: the facts of `changes_stage`, by target; none without data.
    """

    baseline: Exported
    shipped: Mapping[str, Exported]
    measured: Mapping[str, Measured]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] = ()
    changes: Mapping[str, Facts] = field(default_factory=dict)

    @property
    def artifact(self) -> Exported:
        """The file for ONNX Runtime."""
        return self.shipped["cpu"]

    @property
    def files(self) -> dict[str, Exported]:
        """The ONNX files that the user gets, by name."""
        ships = {"model.onnx" if target == "cpu" else f"model.{target}.onnx": f for target, f in self.shipped.items()}
        return {"baseline.onnx": self.baseline} | ships


def judge_goals(goals: tuple[Goal, ...], evidence: Evidence) -> list[GoalVerdict]:
    """Judge every goal; one about quality is judged for each file that ships.

    A file that is not the function it was exported from keeps the verdict from being met, see `doubts`.
    """
    verdicts = doubts(evidence) if goals else []
    for goal in goals:
        if goal.metric in QUALITY:
            for target, file in evidence.shipped.items():
                about = Goal(goal.metric, goal.min, goal.max, target)
                verdicts.append(judge(about, quality(goal.metric, evidence, file)))
        else:
            verdicts.append(judge(goal, _reading(goal, evidence)))
    return verdicts


def doubts(evidence: Evidence) -> list[GoalVerdict]:
    """Return an unclear verdict for every output of a file that differs from its graph by more than its tolerance.

    What integers cost is judged by goals on quality, so a quantized file is in doubt only where outputs are not finite.
    """
    return [
        _doubt(name, row, file.checked.facts.get("bad_layer"))
        for name, file in evidence.files.items()
        for row in file.checked.facts["parity"]
        if not row["passed"] and not (file.file.facts["precision"] in QUANTIZED and isfinite(row["relative"]))
    ]


def _doubt(name: str, row: Mapping[str, Any], layer: Mapping[str, Any] | None) -> GoalVerdict:
    goal, found = Goal("parity", max=row["tolerance"], on=name), row["relative"]
    said = f"differs from the graph it was made from by {found:.2g} of its largest value, wanted {goal.bound}"
    if not isfinite(found):
        said = "is infinite or not a number"
    reason = f"output {row['name']!r} of {name} {said}: what was measured is not the model that was asked for"
    if layer:
        which = "first bad" if layer["kind"] == "first" else "worst"
        reason += f"; {which} layer: {layer['name']} ({layer['operator']})"
    reading = Reading(found) if isfinite(found) else Reading(absent=said)
    margin = goal.max - found if goal.max is not None and isfinite(found) else None
    return GoalVerdict(goal, Outcome.UNCLEAR, margin, reason, reading)


def quality(metric: str, evidence: Evidence, file: Exported) -> Reading:
    """Read one file's share (percent), such as accuracy, its calibration error or its paired accuracy drop (points)."""
    facts = file.checked.facts
    if "accuracy" not in facts or evidence.labels is None:
        return Reading(absent="the recipe names no data")
    if metric == "agreement":
        return _percent(agreement(evidence.baseline.predictions(), file.predictions()))
    if metric == "accuracy_drop":
        drop = paired_drop(evidence.baseline.predictions(), file.predictions(), evidence.labels)
        return Reading(drop.value, drop.low, drop.high, "points")
    if facts[metric] is None:
        return Reading(absent="the file's scores are not all finite numbers")
    return _percent(Estimate(**facts[metric]), "points" if metric == "calibration_error" else "%")


def _percent(found: Estimate, unit: str = "%") -> Reading:
    return Reading(100 * found.value, 100 * found.low, 100 * found.high, unit)


def _reading(goal: Goal, evidence: Evidence) -> Reading:
    if goal.metric in ("size_mb", "size_ratio"):
        return _size(goal.metric, evidence)
    measured = evidence.measured.get(goal.on or "")
    if measured is None or measured.absent:
        return Reading(absent=measured.absent if measured else f"{goal.on} is not among profile.runtimes")
    return _ON_DEVICE[goal.metric](goal, evidence, measured)


def _size(metric: str, evidence: Evidence) -> Reading:
    size, whole = evidence.artifact.file.facts["bytes"], evidence.baseline.file.facts["bytes"]
    return Reading(size / MB, unit="MB") if metric == "size_mb" else Reading(size / whole, unit="x")


def _latency(goal: Goal, evidence: Evidence, measured: Measured) -> Reading:
    q = latency_quantile(goal.metric)
    measurement = measured.latency[evidence.artifact.step]
    found = next((p for p in measurement.percentiles() if p.q == q), None)
    if found is None:
        return Reading(absent=f"{len(measurement.samples_ns)} samples are too few for p{q:g}; raise budget_seconds")
    if found.low_ms is None and found.high_ms is None:
        return Reading(
            absent=f"{len(measurement.samples_ns)} samples are too few for an interval; raise budget_seconds"
        )
    return Reading(found.ms, found.low_ms, found.high_ms, "ms")


def _speedup(goal: Goal, evidence: Evidence, measured: Measured) -> Reading:
    found = measured.comparison(evidence.baseline.step, evidence.artifact.step)
    if found is None:
        if evidence.baseline.step == evidence.artifact.step:
            return Reading(absent="nothing was compressed: the artifact is the baseline")
        return Reading(absent="the uncompressed model was not measured there")
    if found.low is None and found.high is None:
        return Reading(absent="too few rounds for an interval; raise budget_seconds")
    return Reading(found.ratio, found.low, found.high, "x")


def _memory(goal: Goal, evidence: Evidence, measured: Measured) -> Reading:
    memory = measured.memory[evidence.artifact.step]
    if memory.failed or memory.peak_bytes is None:
        return Reading(absent=memory.failed or "the child process reported no peak")
    return Reading(memory.peak_bytes / MB, unit="MB")


def _throughput(goal: Goal, evidence: Evidence, measured: Measured) -> Reading:
    """Return examples a second, back to back: the batch over the mean latency."""
    seen = measured.latency[evidence.artifact.step]
    found = per_second(seen.plan.batch, mean_interval(seen.samples_ns, seen.tail))
    if found.low is None and found.high is None:
        return Reading(absent=f"{len(seen.samples_ns)} samples are too few for an interval; raise budget_seconds")
    return Reading(found.value, found.low, found.high, "examples/s")


def _energy(goal: Goal, evidence: Evidence, measured: Measured) -> Reading:
    found = measured.energy or {"absent": "it was not measured"}
    if found["absent"]:
        return Reading(absent=found["absent"])
    if found["low"] is None or found["high"] is None:
        return Reading(absent="the windows are worth too few for an interval of the energy")
    return Reading(1e3 * found["joules"], 1e3 * found["low"], 1e3 * found["high"], "mJ")


_ON_DEVICE: dict[str, Callable[[Goal, Evidence, Measured], Reading]] = {
    "latency_p50_ms": _latency,
    "latency_p90_ms": _latency,
    "latency_p99_ms": _latency,
    "speedup": _speedup,
    "throughput": _throughput,
    "energy_mj": _energy,
    "peak_memory_mb": _memory,
}
