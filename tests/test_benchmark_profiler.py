"""The benchmark of the profiler: its pure parts, its harnesses, and smoke runs of what is cheap."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest
from onnx import parser

from shipworthy.benchmarks import (
    profiler,
    profiler_aa,
    profiler_bare,
    profiler_common,
    profiler_load,
    profiler_overhead,
    profiler_power,
    profiler_simulated,
    profiler_truth,
)
from shipworthy.benchmarks.profiler_common import Experiment, Row, Settings
from shipworthy.benchmarks.profiler_live import Try, spread
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner
from shipworthy.profile.sequential import looks

SCRIPT = Path(profiler.__file__)
QUICK = Plan(warmup_s=0.0, warmup_cap_s=0.02, budget_s=0.5, min_rounds=10, max_rounds=20)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small ONNX file of one input and one output."""
    path = tmp_path / "small.onnx"
    weights = ", ".join(["0.5", "-0.25"] * 32)
    graph = f"m (float[N, 8] x) => (float[N, 8] y) <float[8, 8] w = {{{weights}}}> {{ h = MatMul(x, w)\n y = Tanh(h) }}"
    onnx.save(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{graph}'), path)
    return path


def settings(folder: Path) -> Settings:
    """Return those of a smoke run."""
    return Settings(True, "cpu", folder, ("resnet20",), 2, 1, 0.03)


def test_help_names_every_experiment_without_torch() -> None:
    """`--help` is quick because nothing heavy is imported for it, and says what can be chosen."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPT)], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in (*profiler.EXPERIMENTS, "--quick", "--out", "--rows", "--device"))
    assert done.stdout.endswith("False\n")


def test_an_unknown_experiment_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name ends the run before any work, with the right ones."""
    monkeypatch.setattr(sys, "argv", ["profiler.py", "aa", "pwoer"])
    with pytest.raises(SystemExit, match="2"):
        profiler.main()
    assert "no such experiment: pwoer; wanted some of aa, power" in capsys.readouterr().err


def test_a_smoke_run_of_what_is_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coverage, peeking and overhead run as they would in full, and leave both files."""
    argv = ["profiler.py", "--quick", "--out", str(tmp_path), "coverage", "peeking", "overhead"]
    monkeypatch.setattr(sys, "argv", argv)
    profiler.main()
    text, data = (tmp_path / "profiler.md").read_text(), json.loads((tmp_path / "profiler.json").read_text())
    assert text.startswith("# The profiler, tested (smoke run: the figures mean nothing)")
    assert set(data["rows"]) == {"coverage", "peeking", "overhead"}
    assert all(row["series"] == sum(row["counts"]["p50"].values()) for row in data["rows"]["coverage"])
    assert [row["rate"] for row in data["rows"]["overhead"]] == [None, 1000]
    assert text.count("Goal: ") == 4


# --- rows


def test_only_missing_rows_are_made(tmp_path: Path) -> None:
    """A run that was interrupted goes on: whole rows count, the one that was cut off does not."""
    made: list[int] = []

    def work(unit: int) -> Row:
        made.append(unit)
        return {"value": unit}

    units = {"a": 1, "b": 2, "c": 3}
    one = Experiment("title", lambda _: units, lambda _: profiler_common.plainly(work), str)
    file = tmp_path / "rows.jsonl"
    profiler_common.add_row(file, {"key": "b", "value": 20})
    file.write_text(file.read_text() + '{"key": "a", "val')
    rows = profiler.rows_of(one, settings(tmp_path), file)
    assert made == [1, 3]
    assert [row["value"] for row in rows] == [1, 20, 3]
    assert profiler.rows_of(one, settings(tmp_path), file) == rows
    assert made == [1, 3]


def test_keys_tell_full_from_smoke_runs(tmp_path: Path) -> None:
    """A row of a smoke run never stands in for one of a full run."""
    quick = settings(tmp_path)
    full = Settings(False, "cpu", tmp_path, ("resnet20",), 2, 1, 0.03)
    for name, experiment in profiler.EXPERIMENTS.items():
        keys = set(experiment.units(full))
        assert keys, name
        assert all(key.startswith(name) for key in keys)
        assert keys.isdisjoint(experiment.units(quick))


# --- the load


def test_bursts_are_seeded_and_bounded() -> None:
    """Equal seeds give equal lengths, of every size between the bounds."""
    one, same, other = (list(islice(profiler_load.lengths(seed), 500)) for seed in (1, 1, 2))
    assert one == same != other
    assert profiler_load.SHORTEST_S <= min(one) < 0.01
    assert 1.0 < max(one) <= profiler_load.LONGEST_S


def test_the_load_ends_with_its_context() -> None:
    """As many processes as asked for run inside, and none afterwards."""
    with profiler_load.Bursts(processes=2) as load:
        pids = load.pids
        assert len(set(pids)) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        assert load.describe().startswith("2 processes")
    assert not any(psutil.pid_exists(pid) for pid in pids)


# --- a model against itself, and a planted slowdown


def test_a_claim_is_a_difference_of_more_than_two_percent() -> None:
    """The larger value over the smaller counts, whichever comes first."""
    found = profiler_aa._beyond(102.5, 100.0)
    assert found == profiler_aa._beyond(100.0, 102.5)
    assert found.difference == pytest.approx(0.025)
    assert found.claimed
    assert profiler_aa._beyond(100.0, 101.9).claimed is False


@pytest.mark.parametrize(("wrong", "verdict"), [(1, "met"), (2, "missed")])
def test_wrong_claims_are_counted(wrong: int, verdict: str) -> None:
    """One wrong claim in 20 tries reaches the goal, two do not; the largest claimed one is told."""
    rows = [_aa_row(0.03 * (i + 1), claimed=i < wrong) for i in range(20)]
    text = profiler_aa.aa_report(rows)
    assert f"| {profiler_aa.OURS} | {wrong} of 20 ({5 * wrong:.1f} %) | {3 * wrong:.1f} | 60.0 |" in text
    assert "| naive | 20 of 20 (100.0 %) | 50.0 | 50.0 |" in text
    assert f"**{verdict}**" in text


def _aa_row(difference: float, *, claimed: bool) -> Row:
    return {
        "model": "m", "runtime": "ort-cpu", "claims": {profiler_aa.OURS: [difference, claimed], "naive": [0.5, True]},
        "plan": "Plan()", "outcome": "slower" if claimed else "same", "stop_reason": "budget", "rounds": 9,
        "seconds": 1.0, "load": 1.0, "load_before": None, "by": "bursts",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_procedure_compares_a_file_with_itself(file: Path) -> None:
    """One try holds the claims of all procedures."""
    pair = profiler_aa.Pair((file, file), None, lambda _: profiler_bare.bare_session(file))
    row = profiler_aa._aa_try(pair, Try("m", "ort-cpu", 0), QUICK)
    assert set(row["claims"]) >= {profiler_aa.OURS, "torch Timer, medians", "median of equal time, one after the other"}
    assert all(difference >= 0 for difference, _ in row["claims"].values())
    assert row["outcome"] in ("faster", "slower", "same", "unclear")
    json.dumps(row)


def test_the_slowed_runner_waits_after_the_inference() -> None:
    """It runs the inference once, and the whole lasts the stated share longer than the inference."""
    inner: list[int] = []

    def work() -> None:
        began = time.perf_counter_ns()
        time.sleep(0.002)
        inner.append(time.perf_counter_ns() - began)

    with open_runner(work, "callable", QUICK) as runner:
        (whole,) = profiler_bare.timed(profiler_power.Slowed(runner, 0.5, "slow").run, 1)
    assert len(inner) == 1
    assert whole >= 1.5 * inner[0]


def test_a_large_slowdown_is_found(file: Path) -> None:
    """A runner that waits 50 times as long as the model takes is slower."""
    row = profiler_power.planted(file, 50.0, replace(QUICK, max_rounds=100, budget_s=5.0))
    assert row["outcome"] == "slower"
    assert row["ratio"] < 0.5
    row |= {"model": "m", "slowdown": 50.0, "load": 1.0, "load_before": 1.0, "by": "bursts"}
    assert "1 of 1 (100.0 %) | 1 slower" in profiler_power.power_report([row])


def test_spreads_are_least_median_and_most() -> None:
    """Three numbers stand for all."""
    assert spread([{"s": value} for value in (3.0, 1.25, 9.0)], "s") == "1.25, 3, 9"


# --- invented series


@pytest.mark.parametrize("law", list(profiler_simulated.LAWS))
def test_the_true_quantiles_are_those_of_large_samples(law: str) -> None:
    """Closed forms and drawn series agree."""
    draw, quantile = profiler_simulated.LAWS[law]
    series = draw(np.random.default_rng(0), 200_000)
    for q in (0.5, 0.9, 0.99):
        assert np.mean(series <= quantile(q)) == pytest.approx(q, abs=0.015)


def test_neighbours_are_as_alike_as_stated() -> None:
    """The logarithms' autocorrelation is phi."""
    series = np.log(profiler_simulated.autoregressive(0.9, 0.1, np.random.default_rng(0), 50_000))
    assert np.corrcoef(series[1:], series[:-1])[0, 1] == pytest.approx(0.9, abs=0.01)
    assert series.std() == pytest.approx(0.1, abs=0.005)


def test_an_interval_holds_misses_or_is_not_stated() -> None:
    """An interval with a single end counts as none."""
    place = profiler_simulated._place
    assert [place(1, 3, 2), place(3, 4, 2), place(0, 1, 2)] == ["holds", "above", "below"]
    assert place(None, 3, 2) == place(1, None, 2) == "unstated"


def test_every_look_of_a_plan_is_taken() -> None:
    """The looks are those that the plan's error is shared among."""
    for plan in (Plan(), QUICK, Plan(min_rounds=50, max_rounds=1200)):
        seen = list(profiler_simulated._looks(plan))
        assert len(seen) in (looks(plan), looks(plan) - 1)
        assert (seen[0], seen[-1]) == (plan.min_rounds, plan.max_rounds)


def test_a_large_effect_is_decided_at_once() -> None:
    """A median 10 % below its bound is met at the first look, in every series."""
    row = profiler_simulated.peeked(True, profiler_simulated.Peek("p50", 0.0, 0.05, 0.1, 5, 0))
    assert (row["mean_rounds"], row["wrong"], row["undecided"]) == (200.0, 0, 0)


# --- harnesses


@pytest.mark.skipif(profiler_bare.c_library() is None, reason="this onnxruntime has no C library of its own")
def test_the_c_functions_give_what_python_gives(file: Path) -> None:
    """The bare C loop runs the same model on the same input."""
    import onnxruntime

    library = profiler_bare.c_library()
    assert library is not None
    name, x = profiler_bare.input_of(file)
    bare = profiler_bare.CSession(library, file, name, x, "y")
    bare.run()
    wanted = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {name: x})[0]
    assert bare.first_outputs(8) == pytest.approx(wanted.ravel().tolist(), rel=1e-5)
    with pytest.raises(SystemExit, match=r"C function CreateSession failed: .*none\.onnx"):
        profiler_bare.CSession(library, file.with_name("none.onnx"), name, x, "y")


def test_harnesses_take_turns() -> None:
    """Each gives its samples at least once; samples of one clock are put together."""
    blocks = [lambda count: {"a": [1] * count}, lambda count: {"b": [2] * count, "c": [3]}]
    found = profiler_truth.in_turns(blocks, 0.0, random.Random(0))
    assert found == {"a": [[1] * profiler_truth.BLOCK], "b": [[2] * profiler_truth.BLOCK], "c": [[3]]}


def test_the_harnesses_run_one_file(file: Path) -> None:
    """Ours and the bare loops each give a block of samples."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        blocks = profiler_truth._cpu_blocks(stack, file)
        found = profiler_truth.in_turns(blocks, 0.0, random.Random(0))
    assert {profiler_truth.OURS, profiler_truth.PYTHON} <= set(found)
    assert all(len(samples) == profiler_truth.BLOCK and min(samples) > 0 for (samples,) in found.values())
    assert {one["ours"] for one in profiler_truth.differences(found)} == {profiler_truth.OURS}


@pytest.mark.parametrize(("ours", "verdict"), [(1.019, "met"), (1.021, "missed"), (0.97, "missed")])
def test_agreement_is_judged_both_ways(ours: float, verdict: str) -> None:
    """A median that is too low is as wrong as one that is too high."""
    turns = {profiler_truth.OURS: [[round(1e6 * ours)]] * 9, profiler_truth.PYTHON: [[1_000_000]] * 9}
    medians = {profiler_truth.OURS: ours, profiler_truth.PYTHON: 1.0}
    row = {"model": "m", "p50_ms": medians, "turns": 9, "differences": profiler_truth.differences(turns)}
    text = profiler_truth.truth_report([row])
    assert f"| {100 * (ours - 1):+.2f} ({100 * (ours - 1):+.2f} to {100 * (ours - 1):+.2f}) | 9 |" in text
    assert f"**{verdict}**" in text


# --- what the loop costs


def test_the_invented_clock_keeps_its_rate() -> None:
    """Three calls make a round, and as many rounds as asked for make a second."""
    clock = profiler_overhead.invented_clock(100)
    seen = [clock() for _ in range(300)]
    assert seen[-1] == pytest.approx(1e9, rel=0.02)
    assert seen == sorted(seen)


@pytest.mark.parametrize(("added", "verdict"), [(99, "met"), (101, "missed")])
def test_the_goals_of_the_loop(added: int, verdict: str) -> None:
    """Memory beyond 100 MB misses its goal; time inside a sample is judged apart from it."""
    times = {"rate": None, "rounds": 10, "sample_ns": 900, "clock_ns": 50, "loop_ns": 900, "loop_and_looks_ns": 1900}
    memory = {"rate": 1000, "rounds": 10, "samples": 10, "seconds": 600, "added_mb": added, "stop_reason": "max_rounds"}
    text = profiler_overhead.overhead_report([times, memory])
    assert "Goal: under 1 us inside a sample: **met**" in text
    assert f"at 1,000 samples a second: **{verdict}**" in text
    died = {"rate": 1000, "rounds": 10, "fault": "the process died"}
    assert "at 1,000 samples a second: **missed**" in profiler_overhead.overhead_report([times, died])
