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

from shipworthy.profile.compare import compare, compare_measurements, ratio_outcome
from shipworthy.profile.errors import BadPlan, ProfileError
from shipworthy.profile.measure import Measurement, interleave, measure
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner
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

    plan = Plan(min_rounds=20, max_rounds=50)
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
        ({"plan": Plan(batch=8)}, "plan"),
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
