from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shipworthy.benchmarks import (
    common,
    glue,
    int8_saturation,
    main_job,
    pipeline_overhead,
    pruning_quality,
    pruning_report,
    pruning_tools,
    recovery,
    timing,
)
from shipworthy.models.data import Split, open_data
from shipworthy.models.errors import BadInput
from shipworthy.models.summary import summarize
from shipworthy.profile.measure import Measurement
from shipworthy.profile.plan import Plan
from shipworthy.tests.small_nets import quadrants

FOLDER = Path(common.__file__).parent
SCRIPTS = ("main_job", "pipeline_overhead", "int8_saturation", "recovery", "pruning_quality")


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_answers_help_without_torch(name: str) -> None:
    """`--help` of a benchmark works, names its options, and is quick because nothing heavy is imported for it."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--quick" in done.stdout
    assert "--out" in done.stdout
    assert done.stdout.endswith("False\n")


@pytest.mark.skipif(importlib.util.find_spec("torch_pruning") is not None, reason="Torch-Pruning is installed")
def test_without_torch_pruning_the_remedy_is_named(tmp_path: Path) -> None:
    """The comparison ends before any work, with what to install, when the other tool is absent."""
    command = [sys.executable, str(FOLDER / "main_job.py"), "--workdir", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "this benchmark compares with Torch-Pruning, which is not installed: pip install torch-pruning==1.6.1\n"
    )
    assert not (tmp_path / "work").exists()


def test_without_a_model_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    """The saturation benchmark says how to get the model that it needs."""
    command = [sys.executable, str(FOLDER / "int8_saturation.py"), "--model", str(tmp_path / "none.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none.pt2: no such file; run `shipworthy build" in done.stderr


def test_the_machine_is_described_without_naming_it() -> None:
    """Results say which processor and versions they come from, and nothing about who ran them."""
    found = common.machine()
    assert {"shipworthy", "torch", "numpy"} <= set(found["versions"])
    assert str(Path.home()) not in str(found)
    assert found["versions"]["torch"] in common.machine_text(found)


def test_dot_products_are_told_from_other_instructions() -> None:
    """Only instructions that sum 8-bit products in 32 bits count."""
    assert common.int8_dot_products(["avx2", "avx512f", "avx512_bf16"]) == []
    assert common.int8_dot_products(["avx2", "avx_vnni"]) == ["avx_vnni"]


def test_tables_are_markdown() -> None:
    """Every row has as many cells as the head, and numbers are aligned right."""
    assert common.table(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"
    assert common.interval(7.514, 7.4, 7.619) == "7.51 (7.40 to 7.62)"
    assert common.interval(7.514, None, None) == "7.51"


def test_results_are_written_as_text_and_as_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark leaves a Markdown file for people and JSON with a schema version for programs."""
    common.write_results(tmp_path, "one", "# One\n", {"rows": [1]})
    assert (tmp_path / "one.md").read_text() == "# One\n"
    assert (tmp_path / "one.json").read_text() == '{\n "schema": 1,\n "rows": [\n  1\n ]\n}\n'
    assert capsys.readouterr().out == "# One\n\n"


def test_a_quick_recipe_is_the_recipe_with_four_steps(tmp_path: Path) -> None:
    """A smoke run differs from the example in nothing but the length of its training."""
    from shipworthy import read_recipe

    full, quick = (read_recipe(path) for path in (common.EXAMPLE, common.quick_recipe(common.EXAMPLE, tmp_path)))
    steps = {getattr(step.settings, "steps", 0) for step in quick.compress} - {0}
    assert steps == {4}
    assert [step.name for step in quick.compress] == [step.name for step in full.compress]
    assert quick.goals == full.goals


def test_overhead_accounts_for_every_second() -> None:
    """Stages, bookkeeping and the rest add up to the whole."""
    found = pipeline_overhead.overhead({"prune": 60.0, "distill": 37.0, "bookkeeping": 2.0, "total": 100.0})
    assert (found.stages_s, found.bookkeeping_s, found.elsewhere_s, found.share) == (97.0, 2.0, 1.0, 0.02)


def test_a_build_without_a_verdict_ends_the_benchmark(tmp_path: Path) -> None:
    """A refused recipe is not measured as if it had been a run; what it said is passed on."""
    recipe = tmp_path / "faulty.yaml"
    recipe.write_text(pipeline_overhead.FAULTY)
    with pytest.raises(SystemExit, match=r"(?s)ended with code 2:.*did you mean"):
        pipeline_overhead.fresh_build(recipe, tmp_path / "out")


def test_memory_of_children_counts() -> None:
    """The peak of a run holds what its child processes hold."""
    inner = "x = bytearray(80 * 2**20); import time; time.sleep(0.5)"
    outer = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {inner!r}]) + 3)"
    seen = pipeline_overhead.watch([sys.executable, "-c", outer], interval_s=0.02)
    assert seen.exit_code == 3
    assert seen.process_peak_bytes > 80 * 2**20
    assert seen.tree_peak_bytes > seen.process_peak_bytes


def test_the_probe_sees_what_a_command_imports() -> None:
    """Of the packages asked for, those that the command line used are told, and no others."""
    assert pipeline_overhead.imported(["--help"], ("torch", "typer")) == ["typer"]


def test_the_bare_loop_times_one_call_at_a_time() -> None:
    """A sample is one call's own time: its untimed twin, its neighbours and the warm-up are left out."""
    now = 0

    def taking(ns: int) -> None:
        nonlocal now
        now += ns

    runs = {"slow": lambda: taking(50), "fast": lambda: taking(10)}
    assert timing.timed_rounds(runs, 5, lambda: now) == {"slow": [50] * 5, "fast": [10] * 5}


def test_a_perfect_student_loses_only_the_labels_part() -> None:
    """With equal scores the softened part of the loss is zero, so that cross-entropy's share is left."""
    scores, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    loss = glue.distillation_loss(scores, scores, labels, glue.Glue(steps=1, batch=1))
    assert loss.item() == pytest.approx(0.1 * torch.nn.functional.cross_entropy(scores, labels).item(), rel=1e-5)


def test_calibration_examples_come_once_and_all() -> None:
    """Batches together are the images, and then there are no more."""
    images = np.arange(10, dtype=np.float32).reshape(10, 1)
    reader = glue.Examples(images, batch=4)
    parts = list(_all_of(reader))
    assert np.array_equal(np.concatenate(parts), images)
    assert reader.get_next() is None


def test_errors_are_relative_to_the_largest_score() -> None:
    """The error of one score is told as a share of the largest magnitude wanted."""
    found, wanted = np.array([[1.0, -4.0]], np.float32), np.array([[2.0, -4.0]], np.float32)
    assert int8_saturation.relative_error(found, wanted) == 0.25


def test_every_compared_file_has_a_name() -> None:
    """The table starts with the baseline and ends with ours, each int8 file of the glue between."""
    names = list(main_job.files(Path("work")))
    assert (names[0], names[-1]) == (main_job.BASELINE, main_job.OURS)
    assert set(main_job.GLUE) < set(names)


def _all_of(reader: glue.Examples) -> Iterator[np.ndarray]:
    while (part := reader.get_next()) is not None:
        yield part["x"]


# --- recovery


@pytest.mark.parametrize("name", recovery.VARIANTS)
def test_each_row_is_the_example_with_changes(name: str) -> None:
    """Every variant names settings there are; what it does not change is the example's."""
    change = recovery.VARIANTS[name]
    steps = recovery.passes(change, 7, 3)
    plain = {type(step): step for step in recovery.passes({}, 7, 3)}
    assert (steps[-1].steps, steps[-1].seed) == (7, 3)
    changed = {key for step in steps for key, value in vars(step).items() if value != getattr(plain[type(step)], key)}
    if len(steps) < len(plain):
        changed.add("blocks")
    assert changed == {key for part in change.values() for key in part}


def test_held_out_images_are_not_those_trained_on() -> None:
    """Every fifth image of the full set that the training images do not contain; too few of them end the run."""
    full, data = quadrants(256).train, quadrants(256)
    known = replace(data, train=Split(full.labels[:100], full.fetch))
    held = recovery.held_out(known, full, 30)
    assert torch.equal(held.pixels(torch.arange(30)), full.pixels(torch.arange(100, 250, 5)))
    assert torch.equal(held.labels, full.labels[100:250:5])
    with pytest.raises(SystemExit, match="needs the full Fashion-MNIST, 60,000 training images"):
        recovery.held_out(data, full, 30)


# --- pruning quality


def test_a_target_is_reached_from_below() -> None:
    """Of the ratios tried it is the one of the highest cost that is not above the target; of equals the lowest."""
    ratio = pruning_tools.ratio_reaching(lambda ratio: round(1000 * (1 - ratio) ** 2), 250)
    assert ratio == pytest.approx(0.5, abs=1e-3)
    assert round(1000 * (1 - ratio) ** 2) <= 250
    steps = pruning_tools.ratio_reaching(lambda ratio: 100 - 30 * int(4 * ratio), 75)
    assert steps == pytest.approx(0.25, abs=1e-3)


def test_costs_that_rise_again_are_survived() -> None:
    """A group that keeps all because it would lose all is no reason to miss a ratio that was good."""
    assert pruning_tools.ratio_reaching(lambda ratio: 40 if 0.4 < ratio < 0.6 else 100, 50) == pytest.approx(
        0.4, abs=1e-3
    )


def test_a_target_out_of_reach_is_refused() -> None:
    """The message says how low it went."""
    with pytest.raises(BadInput, match="leaves 5 MACs or fewer; the fewest found: 10"):
        pruning_tools.ratio_reaching(lambda _: 10, 5)


def test_candidates_differ_and_the_chosen_are_among_them() -> None:
    """Every setting is told apart by its words, and what the table uses was compared."""
    names = [f"{one.tool}: {one}" for one in pruning_tools.CANDIDATES]
    assert len(set(names)) == len(names)
    chosen = {one for tools in pruning_quality.CHOSEN.values() for one in tools.values()}
    assert chosen <= set(pruning_tools.CANDIDATES)
    assert all(one.tool == tool for tools in pruning_quality.CHOSEN.values() for tool, one in tools.items())


def test_the_other_tool_stays_below_the_target() -> None:
    """Torch-Pruning, where it is installed, leaves at most the share, and MACs are counted alike on both sides."""
    pytest.importorskip("torch_pruning")
    data, setting = open_data("fashion-mnist", "bundled"), pruning_tools.Setting("Torch-Pruning", "l2", "global", 8)
    pruned = pruning_tools.prune_with_theirs(setting, 0.25, data, 0)
    macs = pruning_tools.macs_of(pruned.module, torch.zeros(1, *data.input_shape))
    assert macs == summarize(pruned).macs
    assert 0.2 < macs / 123_860_736 <= 0.25


def test_the_mean_of_few_values_has_students_interval() -> None:
    """Two degrees of freedom: 4.303 standard errors; a single value has no interval."""
    mean, low, high = pruning_report.mean_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert pruning_report.mean_interval([0.5]) == (0.5, None, None)


def test_finished_rows_are_read_back(tmp_path: Path) -> None:
    """A run that was interrupted goes on: whole rows count, the one that was cut off does not."""
    file, rows = tmp_path / "rows.jsonl", [_row("shipworthy", 0, "01"), _row("shipworthy", 1, "01")]
    pruning_quality.add_row(file, rows[0])
    file.write_text(file.read_text() + '{"key": "cut o')
    pruning_quality.add_row(file, rows[1])
    assert pruning_quality.read_rows(file) == {row.key: row for row in rows}
    assert pruning_quality.read_rows(None) == {}


def test_runs_of_equal_seed_are_compared() -> None:
    """Differences are in points, ours less theirs; times are of interleaved rounds; the table has them all."""
    labels = np.array([0, 1, 2, 3])
    ours = [_row("shipworthy", seed, answers) for seed, answers in enumerate(("0123", "0120"))]
    theirs = [_row("Torch-Pruning", seed, answers) for seed, answers in enumerate(("0100", "0000"))]
    latency = {"uncompressed": _timed(400), "4x shipworthy": _timed(100), "4x Torch-Pruning": _timed(150)}
    seen = pruning_report.Seen(latency, 1000, 500, 1.0, labels)
    direct = pruning_report.against(ours, theirs, seen)
    assert direct.over_seeds[0] == direct.over_images[0] == pytest.approx(50.0)
    assert direct.over_seeds[1:] == pytest.approx((50.0, 50.0))
    assert direct.times_as_fast == (1.5, 1.5, 1.5)
    assert direct.outcome == "faster"
    line = pruning_report.line_of(ours, seen)
    assert (line.accuracy, line.speedup[0], line.p50_ms) == ((1.0, 0.75), 4.0, 1e-4)


def test_the_report_names_both_tools(tmp_path: Path) -> None:
    """The table has a line for each tool at each point, and the data no file names and no answers."""
    rows = [_row(tool, seed, "0123") for seed in range(2) for tool in ("shipworthy", "Torch-Pruning")]
    latency = {"uncompressed": _timed(400), "4x shipworthy": _timed(100), "4x Torch-Pruning": _timed(150)}
    seen = pruning_report.Seen(latency, 1000, 500, 1.0, np.array([0, 1, 2, 2]))
    pruning_report.report(tmp_path, rows, seen, pruning_report.How(7, "plain", False))
    text, data = ((tmp_path / f"pruning_quality.{kind}").read_text() for kind in ("md", "json"))
    assert (
        "| 4x | shipworthy | l2 | 4.00 | 125 | 50.0 | 75.00 [75.00, 75.00] | 1 | 0.000 | 4.00 (4.00 to 4.00) |" in text
    )
    assert "| 4x | Torch-Pruning | l2 |" in text
    assert "answers" not in data


def test_the_best_setting_comes_first(tmp_path: Path) -> None:
    """Settings are ordered by agreement with the original model, tool by tool."""
    rows = [replace(_row("shipworthy", 0, answers), setting=answers) for answers in ("0000", "0123")]
    labels = np.array([0, 1, 2, 3])
    pruning_report.report_choice(tmp_path, rows, labels, labels, pruning_report.How(7, "features", True))
    text = (tmp_path / "pruning_quality_choice_features.md").read_text()
    assert text.index("| 4x | shipworthy | 0123 |") < text.index("| 4x | shipworthy | 0000 |")


def _row(tool: str, seed: int, answers: str) -> pruning_quality.Row:
    return pruning_quality.Row(f"{tool} {seed}", "4x", tool, "l2", seed, 250, 125, 0.5, answers, 1.0, 2.0)


def _timed(ns: int) -> Measurement:
    return Measurement("file", "ort-cpu", None, None, Plan(), {}, (ns,) * 64, 1, "random", "budget", group="one")
