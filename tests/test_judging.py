from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipworthy.export.artifact import Target
from shipworthy.pipeline.judging import Evidence, doubts, judge_goals, quality
from shipworthy.pipeline.measuring import Measured, ended_too_soon, questions
from shipworthy.pipeline.record import ArtifactRow, ParityRow, RunRecord
from shipworthy.pipeline.stages import Exported
from shipworthy.pipeline.store import Stage
from shipworthy.profile.goals import Goal, GoalVerdict, Outcome, conclude
from shipworthy.profile.measure import Measurement
from shipworthy.profile.memory import Memory
from shipworthy.profile.plan import Plan
from shipworthy.profile.sequential import Question

SMALL = Goal("size_mb", max=1000)
LABELS = np.arange(100) % 4


def exported(folder: Path, step: str, target: Target = "cpu", wrong: int = 0, **facts: Any) -> Exported:
    """Return a file whose predictions are wrong on the first `wrong` of 100 examples."""
    place = folder / f"{step}-{target}"
    place.mkdir()
    np.save(place / "predictions.npy", (LABELS + (np.arange(100) < wrong)) % 4)
    row = {"name": "output", "relative": 1e-6, "tolerance": 1e-4, "passed": True} | facts.pop("row", {})
    share = {"value": 1 - wrong / 100, "low": 0.9 - wrong / 100, "high": 1.0}
    found = (
        {"parity": [row], "accuracy": share, "macro_recall": share} if facts.pop("data", True) else {"parity": [row]}
    )
    file = {"bytes": 1000, "precision": "fp32"} | facts
    stages = (Stage(name, place, each, "", 0.0) for name, each in (("model", {}), ("export", file), ("check", found)))
    return Exported(step, target, *stages)


def measurement(step: str, samples: list[int]) -> Measurement:
    """Return invented samples of one interleaved group."""
    return Measurement(step, "ort-cpu", None, None, Plan(), {}, tuple(samples), 1, "random", "budget", group="one")


def evidence(folder: Path, measured: Measured | None = None, **changes: Any) -> Evidence:
    """Return a baseline and an artifact of a quarter of its size, with changes to the artifact."""
    files = {"cpu": exported(folder, "quantize", bytes=250, **changes)}
    return Evidence(exported(folder, "baseline"), files, {"ort-cpu": measured} if measured else {}, LABELS)


def only(goal: Goal, found: Evidence) -> GoalVerdict:
    """Judge one goal."""
    (verdict,) = judge_goals((goal,), found)
    return verdict


def test_sizes_are_exact(tmp_path: Path) -> None:
    """Size is in megabytes of a million bytes, and its ratio a factor of the baseline's."""
    found = evidence(tmp_path)
    size, ratio = only(Goal("size_mb", max=0.00025), found), only(Goal("size_ratio", max=0.2), found)
    assert (size.outcome, size.reading.value, size.reading.unit) == (Outcome.MET, 0.00025, "MB")
    assert (ratio.outcome, ratio.reading.value, ratio.reading.unit) == (Outcome.MISSED, 0.25, "x")


def test_quality_is_judged_for_every_file_that_ships(tmp_path: Path) -> None:
    """One goal on quality gives one verdict a target, and the worst decides."""
    shipped = {"cpu": exported(tmp_path, "quantize"), "tensorrt": exported(tmp_path, "quantize", "tensorrt", wrong=30)}
    found = Evidence(exported(tmp_path, "baseline"), shipped, {}, LABELS)
    verdicts = judge_goals((Goal("accuracy_drop", max=10),), found)
    assert [(one.goal.on, one.outcome, one.reading.value) for one in verdicts] == [
        ("cpu", Outcome.MET, 0.0),
        ("tensorrt", Outcome.MISSED, 30.0),
    ]
    assert conclude(verdicts).outcome is Outcome.MISSED


def test_a_drop_is_paired_and_shares_are_per_cent(tmp_path: Path) -> None:
    """The drop counts examples that one file gets right and the other wrong; agreement and accuracy are in per cent."""
    found = evidence(tmp_path, wrong=5)
    drop, same, right = (quality(name, found, found.artifact) for name in ("accuracy_drop", "agreement", "accuracy"))
    assert (drop.value, same.value, right.value) == (5.0, 95.0, 95.0)
    assert (drop.unit, same.unit, right.unit) == ("points", "%", "%")
    assert (drop.low or 0) < 5 < (drop.high or 0)


def test_what_was_scored_is_judged(tmp_path: Path) -> None:
    """Means over classes and the lowest recall are in per cent, a calibration error in points or absent."""
    found = evidence(tmp_path)
    facts = found.artifact.checked.facts
    facts |= {name: {"value": 0.9, "low": 0.8, "high": 1.0} for name in ("macro_f1", "lowest_recall")}
    facts["calibration_error"] = {"value": 0.03, "low": 0.02, "high": 0.04}
    assert only(Goal("macro_f1", min=75), found).outcome is Outcome.MET
    assert only(Goal("lowest_recall", min=85), found).outcome is Outcome.UNCLEAR
    error = only(Goal("calibration_error", max=5), found)
    assert (error.outcome, error.reading.value, error.reading.unit) == (Outcome.MET, 3.0, "points")
    facts["calibration_error"] = None
    assert "not all finite" in only(Goal("calibration_error", max=5), found).reason


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (Goal("accuracy", min=50), "the recipe names no data"),
        (Goal("latency_p50_ms", max=1, on="ort-cuda"), "ort-cuda is not among profile.runtimes"),
        (Goal("latency_p99_ms", max=1, on="ort-cpu"), "9 samples are too few for p99; raise budget_seconds"),
        (Goal("speedup", min=1, on="ort-cpu"), "nothing was compressed"),
        (Goal("peak_memory_mb", max=1, on="ort-cpu"), "killed by SIGKILL"),
        (Goal("energy_mj", max=1, on="ort-cpu"), "it was not measured"),
    ],
)
def test_what_was_not_measured_is_unclear_with_its_reason(goal: Goal, words: str, tmp_path: Path) -> None:
    """A goal without a reading is never met, and says what was lacking."""
    baseline = exported(tmp_path, "baseline", data=False)
    seen = {"baseline": measurement("baseline", [1000] * 9)}
    memory = {"baseline": Memory(10, failed="the child process was killed by SIGKILL")}
    found = Evidence(baseline, {"cpu": baseline}, {"ort-cpu": Measured("ort-cpu", seen, memory)}, None)
    verdict = only(goal, found)
    assert (verdict.outcome, verdict.margin) == (Outcome.UNCLEAR, None)
    assert words in verdict.reason


def test_latency_speedup_and_memory_are_of_the_artifact(tmp_path: Path) -> None:
    """The median is the artifact's, the speed-up the paired ratio of baseline to artifact, the peak its child's."""
    slow, fast = ([factor * (1000 + i % 7) for i in range(1000)] for factor in (3000, 1000))
    seen = {"baseline": measurement("baseline", slow), "quantize": measurement("quantize", fast)}
    energy = {"joules": 0.002, "low": 0.0019, "high": 0.0022, "absent": None}
    measured = Measured("ort-cpu", seen, {"quantize": Memory(10, peak_bytes=5_000_000)}, energy=energy)
    found = evidence(tmp_path, measured)
    bounds: dict[str, dict[str, float]] = {
        "latency_p50_ms": {"max": 1.1},
        "latency_p99_ms": {"max": 1.0},
        "speedup": {"min": 2.9},
        "peak_memory_mb": {"max": 5.0},
        "throughput": {"min": 900},
        "energy_mj": {"max": 2.1},
    }
    readings = {name: only(Goal(name, **bound, on="ort-cpu"), found) for name, bound in bounds.items()}
    assert {name: verdict.outcome.value for name, verdict in readings.items()} == {
        "latency_p50_ms": "met",
        "latency_p99_ms": "missed",
        "speedup": "met",
        "peak_memory_mb": "met",
        "throughput": "met",
        "energy_mj": "unclear",
    }
    assert readings["speedup"].reading.value == pytest.approx(3)
    assert [readings[name].reading.unit for name in readings] == ["ms", "ms", "x", "MB", "examples/s", "mJ"]


def test_a_file_that_differs_from_its_graph_is_never_met(tmp_path: Path) -> None:
    """A failed parity makes a met run unclear, names the file and how far it is off, and leaves a missed run missed."""
    found = evidence(tmp_path, row={"relative": 0.3, "passed": False})
    doubt, size = judge_goals((SMALL,), found)
    assert (doubt.goal.metric, doubt.goal.on, doubt.outcome) == ("parity", "model.onnx", Outcome.UNCLEAR)
    assert "model.onnx differs from the graph it was made from by 0.3 of its largest value, wanted at most 0.0001" in doubt.reason  # fmt: skip # noqa: E501
    assert doubt.margin == pytest.approx(-0.2999)
    assert size.outcome is Outcome.MET
    assert conclude([doubt, size]).exit_code == 3
    assert conclude(judge_goals((SMALL, Goal("size_ratio", max=0.001)), found)).exit_code == 1
    assert judge_goals((), found) == []


@pytest.mark.parametrize("value", [inf, nan])
def test_outputs_that_are_not_finite_are_in_doubt_in_any_precision(value: float, tmp_path: Path) -> None:
    """Integers may cost accuracy, which goals judge, but no file may give infinities; no number is made up for them."""
    broken = evidence(tmp_path, precision="int8", row={"relative": value, "passed": False})
    (doubt,) = doubts(broken)
    assert (doubt.outcome, doubt.margin, doubt.reading.value) == (Outcome.UNCLEAR, None, None)
    assert "is infinite or not a number" in doubt.reason


def test_a_coarse_int8_file_is_left_to_the_goals_on_quality(tmp_path: Path) -> None:
    """An int8 file that is far from its graph, but finite, is not in doubt by that alone; the baseline's file is."""
    coarse = exported(tmp_path, "quantize", precision="int8", row={"relative": 0.7, "passed": False})
    broken = exported(tmp_path, "baseline", row={"relative": 0.01, "passed": False})
    assert [one.goal.on for one in doubts(Evidence(broken, {"cpu": coarse}, {}, LABELS))] == ["baseline.onnx"]


def test_json_has_null_where_a_file_gives_no_finite_numbers() -> None:
    """A record with infinities in its parity is valid JSON that says so; its failure stays."""
    row = ParityRow("output", 8, inf, nan, 0.0, 0.0, 1e-4, False)
    artifact = ArtifactRow("model", "model.onnx", "", 1, "fp32", "cpu", [row])
    record = RunRecord(1, "unclear", 3, {}, "", {}, {}, [], [artifact], [], [], [], {}, {}, [])
    found = json.loads(record.to_json(), parse_constant=pytest.fail)["artifacts"][0]["parity"][0]
    assert (found["max_abs"], found["relative"], found["cosine"], found["passed"]) == (None, None, 0.0, False)


def test_samples_decide_what_can_be_decided_by_samples() -> None:
    """Goals on latency, speed-up and throughput here go on being sampled for; those on size or elsewhere do not."""
    goals = [
        Goal("latency_p90_ms", max=2, on="ort-cpu"),
        Goal("latency_p50_ms", max=2, on="ort-cuda"),
        Goal("speedup", min=3, on="ort-cpu"),
        Goal("throughput", min=500, on="ort-cpu"),
        Goal("size_mb", max=1),
    ]
    found = questions(goals, "ort-cpu", 3, 4)
    assert [(one.goal.metric, one.runner, one.quantile, one.against) for one in found] == [
        ("latency_p90_ms", 2, 90.0, None),
        ("speedup", 2, 50.0, 0),
        ("mean latency", 2, None, None),
    ]
    assert found[2].goal.max == 8.0  # four examples in 8 ms are 500 a second
    assert [one.goal.metric for one in questions(goals, "ort-cpu", 1, 1)] == ["latency_p90_ms", "mean latency"]


def test_samples_that_ended_early_for_other_goals_are_taken_again() -> None:
    """Stored samples that leave a new goal undecided are too few, unless the budget is what ended them."""
    generator = np.random.default_rng(0)
    seen = replace(measurement("m", generator.normal(1e6, 1e5, 300).astype(int).tolist()), stop_reason="decided")
    near, far = (Question(Goal("latency_p50_ms", max=bound)) for bound in (1.0, 2.0))
    assert ended_too_soon([seen], [near])
    assert not ended_too_soon([seen], [far])
    assert not ended_too_soon([replace(seen, stop_reason="budget")], [near])
    assert not ended_too_soon([seen], [])
