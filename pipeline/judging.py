"""From what was measured to what each goal of the recipe became."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..models.metrics import Estimate, agreement, paired_drop
from ..profile.goals import Goal, GoalVerdict, Reading, judge
from .measuring import Measured
from .stages import Exported

QUALITY = ("accuracy", "macro_recall", "agreement", "accuracy_drop")
MIB = 1_000_000


@dataclass(frozen=True)
class Evidence:
    """Everything that goals are judged by. `shipped` are the files that ship, by target; `cpu` is always there."""

    baseline: Exported
    shipped: Mapping[str, Exported]
    measured: Mapping[str, Measured]
    labels: object

    @property
    def artifact(self) -> Exported:
        """The file for ONNX Runtime."""
        return self.shipped["cpu"]


def judge_goals(goals: tuple[Goal, ...], evidence: Evidence) -> list[GoalVerdict]:
    """Judge every goal; one about quality is judged for each file that ships."""
    verdicts = []
    for goal in goals:
        if goal.metric in QUALITY:
            for target, file in evidence.shipped.items():
                about = Goal(goal.metric, goal.min, goal.max, target)
                verdicts.append(judge(about, quality(goal.metric, evidence, file)))
        else:
            verdicts.append(judge(goal, _reading(goal, evidence)))
    return verdicts


def quality(metric: str, evidence: Evidence, file: Exported) -> Reading:
    """Read accuracy, macro recall, agreement (percent) or the paired accuracy drop (points) of one file."""
    facts = file.checked.facts
    if "accuracy" not in facts:
        return Reading(absent="the recipe names no data")
    if metric == "agreement":
        return _percent(agreement(evidence.baseline.predictions(), file.predictions()))
    if metric == "accuracy_drop":
        drop = paired_drop(evidence.baseline.predictions(), file.predictions(), evidence.labels)  # type: ignore[arg-type]  # labels are an array
        return Reading(drop.value, drop.low, drop.high, "points")
    return _percent(Estimate(**facts[metric]))


def _percent(found: Estimate) -> Reading:
    return Reading(100 * found.value, 100 * found.low, 100 * found.high, "%")


def _reading(goal: Goal, evidence: Evidence) -> Reading:
    if goal.metric in ("size_mb", "size_ratio"):
        return _size(goal.metric, evidence)
    measured = evidence.measured.get(goal.on or "")
    if measured is None or measured.absent:
        return Reading(absent=measured.absent if measured else f"{goal.on} is not among profile.runtimes")
    return _ON_DEVICE[goal.metric](goal, evidence, measured)


def _size(metric: str, evidence: Evidence) -> Reading:
    size, whole = evidence.artifact.file.facts["bytes"], evidence.baseline.file.facts["bytes"]
    return Reading(size / MIB, unit="MB") if metric == "size_mb" else Reading(size / whole)


def _latency(goal: Goal, evidence: Evidence, measured: Measured) -> Reading:
    q = float(goal.metric.removeprefix("latency_p").removesuffix("_ms"))
    measurement = measured.latency[evidence.artifact.step]
    found = next((p for p in measurement.percentiles() if p.q == q), None)
    if found is None:
        return Reading(absent=f"{len(measurement.samples_ns)} samples are too few for p{q:g}; raise budget_seconds")
    if found.low_ms is None or found.high_ms is None:
        return Reading(absent=f"{len(measurement.samples_ns)} samples are too few for an interval; raise budget_seconds")
    return Reading(found.ms, found.low_ms, found.high_ms, "ms")


def _speedup(goal: Goal, evidence: Evidence, measured: Measured) -> Reading:
    found = measured.comparison(evidence.baseline.step, evidence.artifact.step)
    if found is None:
        return Reading(absent="nothing was compressed: the artifact is the baseline")
    if found.low is None or found.high is None:
        return Reading(absent="too few rounds for an interval; raise budget_seconds")
    return Reading(found.ratio, found.low, found.high, "x")


def _memory(goal: Goal, evidence: Evidence, measured: Measured) -> Reading:
    memory = measured.memory[evidence.artifact.step]
    if memory.failed or memory.peak_bytes is None:
        return Reading(absent=memory.failed or "the child process reported no peak")
    return Reading(memory.peak_bytes / MIB, unit="MB")


_ON_DEVICE: dict[str, Callable[[Goal, Evidence, Measured], Reading]] = {
    "latency_p50_ms": _latency,
    "latency_p90_ms": _latency,
    "latency_p99_ms": _latency,
    "speedup": _speedup,
    "peak_memory_mb": _memory,
}
