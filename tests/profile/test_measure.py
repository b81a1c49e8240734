"""Measurements and comparisons of real files, and of calls on an invented clock."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipworthy.profile.compare import compare, compare_all, compare_measurements, compare_with_stored, ratio_outcome
from shipworthy.profile.errors import BadPlan, ProfileError
from shipworthy.profile.goals import Goal
from shipworthy.profile.measure import Measurement, interleave, measure, measure_all
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner
from shipworthy.profile.sequential import Question, looks
from shipworthy.profile.stats import Estimate

Chain = Callable[[int], Path]


def refused(words: str) -> Any:
    """Expect BadPlan with these words."""
    return pytest.raises(BadPlan, match=re.escape(words))


def invented(name: str, samples_ns: np.ndarray[Any, Any]) -> Measurement:
    """Make a measurement of given samples."""
    numbers = tuple(int(value) for value in samples_ns)
    return Measurement(name, "callable", None, None, Plan(), {}, numbers, 0, "given", "precision")


def test_a_file_is_measured(model: Path, quick: Plan) -> None:
    """A measurement keeps every sample and names file, hash, plan, environment and why sampling ended."""
    seen = measure(model, plan=quick)
    assert 10 <= len(seen.samples_ns) <= 30
    assert all(sample > 0 for sample in seen.samples_ns)
    assert (seen.file, seen.runtime, seen.plan, seen.inputs) == (str(model), "ort-cpu", quick, "random")
    assert seen.stop_reason in ("precision", "max_rounds")
    assert seen.warmup_rounds >= 1
    assert seen.details["providers"] == ["CPUExecutionProvider"]
    assert min(seen.samples_ns) / 1e6 <= seen.p50_ms <= max(seen.samples_ns) / 1e6
    assert seen.p90_ms is None
    assert seen.p99_ms is None


def test_a_measurement_survives_json(model: Path, quick: Plan) -> None:
    """What `to_dict` writes is plain JSON that reads back equal; another schema is refused."""
    seen = measure(model, plan=quick)
    data = json.loads(json.dumps(seen.to_dict(), allow_nan=False))
    assert Measurement.from_dict(data) == seen
    assert data["percentiles"][0]["ms"] == seen.p50_ms
    with refused("measurement: got schema 99, wanted 1; measure again"):
        Measurement.from_dict(data | {"schema": 99})
    with refused("measurement: it is not what to_dict writes"):
        Measurement.from_dict({"schema": 1, "name": "x"})


def test_percentiles_appear_with_enough_samples() -> None:
    """p50, p90 and p99 are in milliseconds with their intervals, once there are 662 samples."""
    seen = invented("m", np.random.default_rng(0).exponential(2e6, 2000))
    found = {one.q: one for one in seen.percentiles()}
    assert list(found) == [50, 90, 99]
    assert found[50].ms == seen.p50_ms == pytest.approx(2 * np.log(2), rel=0.1)
    assert seen.p90_ms == pytest.approx(2 * np.log(10), rel=0.1)
    assert found[99].low_ms is not None
    assert found[99].high_ms is not None
    assert found[99].low_ms < found[99].ms < found[99].high_ms


def test_runners_on_an_invented_clock_are_measured_exactly() -> None:
    """Interleaved calls that take 3 ms and 1 ms give samples of 3 ms and 1 ms, a ratio of 3, and one group."""
    now = [0]

    def takes(nanoseconds: int) -> None:
        now[0] += nanoseconds

    plan = Plan(min_rounds=20, max_rounds=50, least_s=0)
    with (
        open_runner(takes, "callable", plan, (3_000_000,)) as slow,
        open_runner(takes, "callable", plan, (1_000_000,)) as fast,
    ):
        a, b = interleave((slow, fast), plan, clock=lambda: now[0])
    assert (set(a.samples_ns), set(b.samples_ns)) == ({3_000_000}, {1_000_000})
    assert len(a.samples_ns) == len(b.samples_ns) == 20
    assert a.group == b.group != ""
    assert a.stop_reason == "precision"
    found = compare_measurements(a, b, plan.same_margin)
    assert (found.ratio, found.low, found.high, found.outcome) == (3.0, 3.0, 3.0, "faster")


def test_notes_say_what_disturbed_a_measurement() -> None:
    """A budget that ended sampling, warm-up that did not settle and too many threads are noted."""
    now = [0]

    def takes() -> None:
        now[0] += 1_000_000_000

    plan = Plan(threads=9999, warmup_cap_s=2.0, budget_s=5.0)
    with open_runner(takes, "callable", plan) as runner:
        notes = "; ".join(interleave((runner,), plan, clock=lambda: now[0])[0].notes)
    assert "warm-up had not settled after 2 s" in notes
    assert "the budget of 5 s ended sampling after 3 rounds" in notes
    assert "9999 threads were asked for" in notes


def test_interleave_refuses_what_it_cannot_pair(model: Path, quick: Plan) -> None:
    """No runners, or runners opened with another plan, would make a record that lies."""
    with refused("interleave: got no runners"):
        interleave((), quick)
    with open_runner(model, "ort-cpu", Plan()) as runner, refused("chain1.onnx was opened with another plan"):
        interleave((runner,), quick)


def test_an_inference_that_fails_is_a_profile_error(write: Callable[[str, str], Path], quick: Plan) -> None:
    """A file that loads and then fails on its inputs ends with the file's name, not with a traceback of the runtime."""
    path = write(
        "reshape",
        "main (float[N, 4] x) => (float[a, b] y) <int64[2] s = {3, 5}> { y = Reshape(x, s) }",
    )
    with pytest.raises(ProfileError, match=r"reshape\.onnx: an inference failed"):
        measure(path, plan=quick)


def test_a_deeper_file_is_slower(chain: Chain) -> None:
    """Of two real files the one with forty times the work is found to be slower, in both directions."""
    plan = Plan(warmup_s=0.02, warmup_cap_s=0.2, budget_s=1.5, min_rounds=60, max_rounds=300, precision=0.05)
    found = compare(chain(80), chain(2), plan=plan)
    assert found.outcome == "faster"
    assert found.ratio > 1.5
    assert json.loads(json.dumps(found.to_dict()))["b"]["name"] == "chain2.onnx"
    assert "chain2.onnx is faster than chain80.onnx by a factor of" in found.reason
    back = compare_measurements(found.b, found.a, plan.same_margin)
    assert back.outcome == "slower"
    assert "chain80.onnx is slower than chain2.onnx" in back.reason


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (1.05, 1.2, "faster"),
        (1.001, 1.05, "faster"),
        (0.7, 0.9, "slower"),
        (0.99, 1.01, "same"),
        (1.005, 1.015, "same"),
        (0.97, 1.01, "unclear"),
        (0.9, 1.1, "unclear"),
        (None, None, "unclear"),
    ],
)
def test_the_interval_decides_the_outcome(low: float | None, high: float | None, outcome: str) -> None:
    """Same within 1 +- margin, faster or slower when wholly on one side of 1, else unclear."""
    assert ratio_outcome(Estimate(1.0, low, high), 0.02) == outcome


def test_the_reason_fits_the_outcome() -> None:
    """Every outcome comes with its numbers in plain words."""
    generator = np.random.default_rng(0)
    a = invented("a", generator.normal(1e6, 1e3, 100))
    same = compare_measurements(a, replace(a, name="b"), 0.02)
    assert (same.outcome, "wholly within 1 +- 0.02" in same.reason) == ("same", True)
    noisy = invented("b", generator.normal(1e6, 3e5, 100))
    unclear = compare_measurements(a, noisy, 0.02)
    assert (unclear.outcome, "contains 1 and reaches beyond" in unclear.reason) == ("unclear", True)
    few = compare_measurements(replace(a, samples_ns=(1, 2)), replace(a, samples_ns=(1, 2)), 0.02)
    assert (few.outcome, few.reason) == ("unclear", "2 paired rounds are too few for an interval; raise the budget")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"plan": Plan(batch=8)}, "plan.batch"),
        ({"samples_ns": (1, 2, 3)}, "rounds"),
        ({"group": "another"}, "group"),
        ({"environment": {"cpu": "another"}}, "cpu"),
        ({"environment": {"versions": {"onnxruntime": "0.1"}}}, "onnxruntime version"),
    ],
)
def test_measurements_that_are_not_paired_are_refused(changes: dict[str, Any], what: str) -> None:
    """Results of different machines, versions, plans or runs are not compared."""
    a = invented("a", np.full(50, 1e6))
    with refused(f"a and a cannot be compared: {what} differs"):
        compare_measurements(a, replace(a, **changes), 0.02)


def test_several_are_compared_with_the_first_in_one_run(chain: Chain) -> None:
    """Each of two others is compared with the first, from one interleaved run."""
    plan = Plan(warmup_s=0.02, warmup_cap_s=0.2, budget_s=2.0, min_rounds=60, max_rounds=300, precision=0.05)
    slow, fast = compare_all((chain(20), chain(80), chain(2)), plan=plan)
    assert (slow.outcome, fast.outcome) == ("slower", "faster")
    assert slow.a == fast.a
    assert slow.b.group == fast.b.group
    with refused("compare: got 1 target, wanted at least two"):
        compare_all((chain(2),))


def test_intervals_that_hold_together_are_wider() -> None:
    """Of five comparisons read as one answer each has a wider interval than it has alone."""
    generator = np.random.default_rng(0)
    a, b = (invented(name, generator.normal(1e6, 1e5, 400)) for name in "ab")
    alone, together = compare_measurements(a, b, 0.02), compare_measurements(a, b, 0.02, together=5)
    assert alone.ratio == together.ratio
    assert (together.low or 9) < (alone.low or 0)
    assert (together.high or 0) > (alone.high or 9)


def test_no_false_alarm_among_many_equals() -> None:
    """Comparing twenty equal files with one finds a difference somewhere in few of many tries."""
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(60):
        first, *others = (invented("m", generator.normal(1e6, 3e5, 150)) for _ in range(21))
        found = [compare_measurements(first, other, 0.0, together=20).outcome for other in others]
        alarms += any(one in ("faster", "slower") for one in found)
    assert alarms <= 8


@pytest.mark.parametrize(
    ("factor", "outcome"), [(1.0, "same"), (1.04, "same"), (1.0526, "unclear"), (1.2, "slower"), (0.8, "faster")]
)
def test_a_stored_run_allows_for_what_differs_between_runs(factor: float, outcome: str) -> None:
    """A difference within the allowance is none, one wholly beyond it is one, between them it stays unclear."""
    generator = np.random.default_rng(2)
    stored = invented("m", generator.normal(1e6, 1e4, 400))
    now = invented("m", factor * generator.normal(1e6, 1e4, 400))
    assert compare_with_stored(stored, now, 0.05).outcome == outcome


def test_the_ratio_of_two_independent_medians_is_covered() -> None:
    """The interval of the ratio to a stored run contains the truth in about 95 % of tries."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(300):
        stored, now = (invented("m", generator.normal(mean, 1e5, 120)) for mean in (2e6, 1e6))
        found.append(compare_with_stored(stored, now))
    assert 0.92 <= np.mean([(one.low or 9) <= 2 <= (one.high or 0) for one in found]) <= 0.99


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"environment": {"cpu": "another"}}, "cpu"),
        ({"runtime": "torch"}, "runtime"),
        ({"inputs": "random"}, "inputs"),
        ({"plan": Plan(threads=2)}, "plan.threads"),
    ],
)
def test_a_stored_run_of_elsewhere_is_refused(changes: dict[str, Any], what: str) -> None:
    """Only runs of one machine, runtime, kind of inputs and plan are compared; budgets may differ."""
    a = invented("a", np.full(50, 1e6))
    assert compare_with_stored(a, replace(a, plan=Plan(budget_s=1.0))).outcome == "same"
    with refused(f"cannot be compared: {what} differs"):
        compare_with_stored(a, replace(a, **changes))


def test_goals_end_sampling_and_widen_the_intervals(chain: Chain) -> None:
    """Sampling ends when every goal is decided, and the intervals then allow for the looks in between."""
    plan = Plan(
        warmup_s=0.02, warmup_cap_s=0.2, least_s=0, budget_s=5.0, min_rounds=30, max_rounds=100_000, precision=0.0
    )
    seen = measure_all((chain(2),), "ort-cpu", plan, questions=[Question(Goal("latency_p50_ms", max=1000.0))])[0]
    assert (seen.stop_reason, seen.looks) == ("decided", looks(plan))
    one_look, all_looks = (one.percentiles()[0] for one in (replace(seen, looks=1), seen))
    assert (all_looks.low_ms or 9e9) <= (one_look.low_ms or 0) <= (one_look.high_ms or 9e9) <= (all_looks.high_ms or 0)


def test_a_stored_measurement_is_checked() -> None:
    """Samples that are none, not above zero or too large, and other entries of the wrong kind, are refused."""
    data = invented("m", np.full(50, 1e6)).to_dict()
    assert Measurement.from_dict(data).looks == 1
    wrong: dict[str, Any] = {"samples_ns": [], "looks": 0, "environment": None, "details": []}
    for changed in [*({name: value} for name, value in wrong.items()), {"samples_ns": [-5]}, {"samples_ns": [10**30]}]:
        with refused("measurement: it is not what to_dict writes"):
            Measurement.from_dict(data | changed)


def test_the_percentile_asked_for_is_reported() -> None:
    """Who asks for a precise p95 gets a p95 beside the usual ones."""
    seen = replace(invented("m", np.random.default_rng(0).exponential(2e6, 2000)), plan=Plan(quantile=95.0))
    assert [one.q for one in seen.percentiles()] == [50, 90, 95, 99]
