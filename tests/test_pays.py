"""Passes that make a file no faster are dropped and said; comparisons are real, or planted where time would decide."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from typer.testing import CliRunner

from shipworthy.export.onnx_file import to_onnx
from shipworthy.models.files import sha256_of
from shipworthy.models.model import capture
from shipworthy.pipeline import paying
from shipworthy.pipeline.build import build
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.paying import Payment, pays
from shipworthy.pipeline.progress import Silent
from shipworthy.pipeline.recipe import Recipe, RecipeFaults, read_recipe
from shipworthy.pipeline.recipe_hash import led_to
from shipworthy.pipeline.record import RunRecord
from shipworthy.pipeline.report import html_text, markdown_text
from shipworthy.pipeline.stages import Exported
from shipworthy.pipeline.store import Stage, open_store
from shipworthy.profile.compare import Comparison, compare_measurements
from shipworthy.profile.devices import cuda_absent
from shipworthy.tests.tiny_project import Recorder, write_project, write_recipe

PRUNE: dict[str, Any] = {"ratio": 0.5, "round_to": 4, "min_channels": 4, "reconstruct": 0}
QUANTIZE: dict[str, Any] = {"calibration": 32}
SPEED = {"speedup": {"min": 0.001}}
QUICK = {"runtimes": ["ort-cpu"], "budget_seconds": 0.5}


def _no_faster(*args: Any) -> Comparison:
    return replace(compare_measurements(*args), outcome="slower", ratio=0.98, low=0.96, high=1.01)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a project in which no pass pays, built once: later builds reuse its comparisons."""
    folder = tmp_path_factory.mktemp("pays")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paying, "compare_measurements", _no_faster)
        yield folder


def made(project: Path, prune: Mapping[str, Any], quantize: Mapping[str, Any], **changes: Any) -> RunRecord:
    """Build with these passes."""
    compress = [{"prune": {**PRUNE, **prune}}, {"quantize": {**QUANTIZE, **quantize}}]
    sections = {"compress": compress, "goals": SPEED, "profile": QUICK, "export": None} | changes
    return build(write_recipe(project, **sections), project / "out")


def test_a_pass_that_does_not_pay_is_dropped_and_said(project: Path) -> None:
    """The model goes on as it was before; every report has the line, the reasons and the dropped file's figures."""
    found = made(project, {}, {})
    assert [step.name for step in found.steps] == ["baseline"]
    assert [step.name for step in found.dropped] == ["prune", "quantize"]
    assert [(row.name, row.against, row.kept) for row in found.pays] == [("prune", "baseline", False), ("quantize", "baseline", False)]  # fmt: skip # noqa: E501
    line = "pass dropped: prune: no faster (0.98x, 0.96-1.01)"
    assert found.pays[0].line == line
    assert all(row.reasons for row in found.pays)
    assert all(line in text for text in (markdown_text(found), html_text(found)))
    assert "quantize (dropped)" in html_text(found)
    assert found.dropped[1].file_bytes > 0
    stored = json.loads((project / "out" / "report.json").read_text())
    assert [row["kept"] for row in stored["pays"]] == [False, False]
    assert sha256_of(project / "out" / "model.onnx") == sha256_of(project / "out" / "baseline.onnx")


def test_the_terminal_says_it_too(project: Path) -> None:
    """Once while it works and once at the end, on a comparison that an earlier run made as well."""
    write_recipe(project, compress=[{"prune": PRUNE}], goals=SPEED, profile=QUICK, export=None)
    shown = CliRunner().invoke(app, ["build", str(project / "recipe.yaml"), "-w", str(project / "out")])
    line = "pass dropped: prune: no faster (0.98x, 0.96-1.01)"
    assert line in shown.stdout.splitlines()
    assert line in shown.stderr
    assert any(text.startswith("prune: ") for text in shown.stdout.splitlines())


def test_a_recipe_that_insists_keeps_its_pass(project: Path) -> None:
    """It is kept and said, in its own settings too; the other pass is still dropped."""
    found = made(project, {"insist": True}, {})
    assert [step.name for step in found.steps] == ["baseline", "prune"]
    assert found.pays[0].line == "prune: no faster (0.98x, 0.96-1.01); kept, as the recipe insists"
    assert found.recipe["compress"][0]["prune"]["insist"] is True
    assert (found.pays[1].against, found.pays[1].kept) == ("prune", False)


@pytest.mark.parametrize("goal", [{"size_mb": {"max": 1000}}, {"peak_memory_mb": {"max": 1e6}}])
def test_a_goal_on_size_keeps_what_serves_it(goal: dict[str, Any], project: Path) -> None:
    """A pruned file is smaller and kept for that; the quantized one of so small a net is not, and goes."""
    found = made(project, {}, {}, goals=goal)
    assert [step.name for step in found.steps] == ["baseline", "prune"]
    assert found.pays[0].line.endswith(f"; kept for the size ({next(iter(goal))})")
    assert found.steps[1].file_bytes < found.steps[0].file_bytes < found.dropped[0].file_bytes + 10_000


def test_what_cannot_be_compared_is_kept_and_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that profiles nothing which runs here keeps its passes."""
    progress = Recorder()
    notes: list[str] = []
    monkeypatch.setattr(progress, "note", notes.append)
    recipe = write_recipe(
        project, compress=[{"prune": PRUNE}, {"quantize": QUANTIZE}], goals={"size_mb": {"max": 1000}},
        profile={"runtimes": ["tensorrt"], "budget_seconds": 0.5},
    )  # fmt: skip
    found = build(recipe, project / "out", progress)
    assert [step.name for step in found.steps] == ["baseline", "prune", "quantize"]
    line = "prune: not compared; the recipe profiles no runtime that could run both files; kept"
    assert (found.pays[0].line, found.pays[0].outcome, found.pays[0].runtime) == (line, "not compared", None)
    assert line in notes
    assert not [name for name in progress.made if name.startswith("pays")]


@pytest.mark.parametrize(("precision", "holds", "said"), [
    (None, "fp16", "model.tensorrt.onnx is fp16, as `quantize` was dropped; export.tensorrt.precision: int8 keeps it"),
    ("int8", "int8", "model.tensorrt.onnx is int8, as export.tensorrt.precision says: `quantize` was dropped for the"),
])  # fmt: skip
def test_the_file_for_tensorrt_follows_unless_the_recipe_says(
    precision: str | None, holds: str, said: str, project: Path
) -> None:
    """Integers that do not pay on the CPU stay in the other file only where its precision is written down."""
    export = {"onnx": {"dynamic_batch": [1, 8]}, "tensorrt": {"precision": precision} if precision else {}}
    found = made(project, {}, {}, export=export)
    row = next(row for row in found.artifacts if row.name == "model.tensorrt")
    assert row.precision == holds
    assert row.accuracy
    assert any(note.startswith(said) for note in found.notes)
    kinds = {node.op_type for node in onnx.load(project / "out" / "model.tensorrt.onnx").graph.node}
    assert ("QuantizeLinear" in kinds) == (holds == "int8")


def test_the_share_in_integers_is_of_the_file_that_ships(project: Path) -> None:
    """A quantized file that is kept says how much of it runs in int8, in every report."""
    found = made(project, {}, {"insist": True})
    (told,) = found.integers
    assert (told["runtime"], told["share"], told["in_float"]) == ("ort-cpu", 1.0, ())
    line = "100 % of MACs run in int8 on ort-cpu (3 of 3 operators)"
    assert line in markdown_text(found)
    assert line in html_text(found)
    assert json.loads((project / "out" / "report.json").read_text())["integers"][0]["macs"] == told["macs"]


def _exported(folder: Path, name: str, width: int) -> Exported:
    """Export two convolutions of this width, as a finished step would be."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.ReLU(), torch.nn.Conv2d(width, width, 3))
    path = folder / name / "model.onnx"
    path.parent.mkdir()
    file = to_onnx(capture(net.eval(), (torch.zeros(2, 3, 24, 24),), dynamic_batch=True), path)
    facts = {"sha256": file.sha256, "bytes": file.bytes, "precision": "fp32", "inputs": [{"name": "input"}]}
    stage = Stage(name, path.parent, facts, name, 0.0)
    return Exported(name, "cpu", stage, stage, stage)


def test_a_file_with_far_more_work_is_found_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really measured: over 150 times the work is no faster one way round, and faster the other."""
    monkeypatch.setattr(paying, "compare_measurements", compare_measurements)
    recipe = _recipe(tmp_path, [{"prune": PRUNE}], budget_seconds=10.0)
    small, large = _exported(tmp_path, "small", 4), _exported(tmp_path, "large", 64)
    with open_store(tmp_path / "out", Silent()) as store:
        worse, better = (
            pays(store, recipe, recipe.compress[0], files, None) for files in ((small, large), (large, small))
        )
    assert worse
    assert better
    assert (worse.outcome, worse.kept, better.outcome, better.kept) == ("slower", False, "faster", True)
    assert worse.reasons[0].startswith("no fewer MACs run than before")
    assert (worse.ratio or 1) < 1 < (better.ratio or 1)
    assert better.line.startswith("small: faster (")


def test_an_unclear_speed_up_keeps_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be faster is not thrown away, and the doubt is said."""

    def unclear(*args: Any) -> Comparison:
        return replace(compare_measurements(*args), outcome="unclear", ratio=1.0, low=0.9, high=1.1)

    monkeypatch.setattr(paying, "compare_measurements", unclear)
    recipe, small = _recipe(tmp_path, [{"prune": PRUNE}]), _exported(tmp_path, "small", 4)
    with open_store(tmp_path / "out", Silent()) as store:
        found = pays(store, recipe, recipe.compress[0], (small, small), None)
    assert found
    assert (found.kept, found.line) == (True, "small: speed-up unclear (1.00x, 0.90-1.10); kept")


def test_a_pass_that_claims_no_speed_is_not_compared(tmp_path: Path) -> None:
    """Distilling changes weights alone."""
    recipe = _recipe(tmp_path, [{"distill": {"steps": 1}}])
    small = _exported(tmp_path, "small", 4)
    with open_store(tmp_path / "out", Silent()) as store:
        assert pays(store, recipe, recipe.compress[0], (small, small), None) is None


def _recipe(folder: Path, compress: list[Any], **profile: Any) -> Recipe:
    write_project(folder)
    return read_recipe(write_recipe(folder, compress=compress, goals=SPEED, profile=QUICK | profile, export=None))


def test_insisting_is_in_the_hash_and_its_absence_is_not(tmp_path: Path) -> None:
    """Recipes that do not insist keep their hash; what led to a file does not depend on it."""
    plain, off, on = (_recipe(tmp_path, [{"prune": {**PRUNE, **more}}]) for more in ({}, {"insist": False}, {"insist": True}))  # fmt: skip # noqa: E501
    assert plain.sha256 == off.sha256 != on.sha256
    assert "insist" not in plain.to_dict()["compress"][0]["prune"]
    assert led_to(plain, "prune") == led_to(on, "prune")


def test_a_dropped_pass_led_to_nothing(tmp_path: Path) -> None:
    """What comes after a dropped pass is what comes without it."""
    both = _recipe(tmp_path, [{"prune": PRUNE}, {"distill": {"steps": 1}}])
    alone = _recipe(tmp_path, [{"distill": {"steps": 1}}])
    dropped = replace(both, compress=(replace(both.compress[0], dropped=True), both.compress[1]))
    assert led_to(dropped, "distill") == led_to(alone, "distill") != led_to(both, "distill")


@pytest.mark.parametrize(("step", "said"), [
    ({"prune": {**PRUNE, "insist": 1}}, r"\[0\]\.prune\.insist: got 1 \(a whole number\), wanted true or false"),
    ({"distill": {"steps": 1, "insist": True}}, r"distill\.insist: is for passes that may be dropped \(trim, prune"),
])  # fmt: skip
def test_faults_of_insist_are_told(step: dict[str, Any], said: str, tmp_path: Path) -> None:
    """It is a yes or no, of passes that claim speed."""
    with pytest.raises(RecipeFaults, match=said):
        _recipe(tmp_path, [step])


def test_a_line_has_the_figures_that_there_are() -> None:
    """Without an interval none is invented."""
    assert Payment("prune", "baseline", "ort-cpu", "faster", 1.5).line == "prune: faster (1.50x)"


def test_inspect_prints_the_share_of_a_quantized_file(project: Path) -> None:
    """Of a file with integers, and of no other; a file that ONNX Runtime cannot run says why."""
    made(project, {}, {"insist": True})
    shown = CliRunner().invoke(app, ["inspect", str(project / "out" / "model.onnx")])
    assert "int8    100 % of MACs run in int8 on ort-cpu (3 of 3 operators)" in shown.stdout.splitlines()
    plain = CliRunner().invoke(app, ["inspect", str(project / "out" / "baseline.onnx"), "--json"])
    assert json.loads(plain.stdout)["integers"] is None
    broken = onnx.load(project / "out" / "model.onnx")
    broken.graph.node[0].op_type = "DequantizeLinear"
    onnx.save(broken, project / "broken.onnx")
    told = CliRunner().invoke(app, ["inspect", str(project / "broken.onnx")])
    assert told.exit_code == 0
    assert "int8    share of MACs in int8 on ort-cpu: not known: " in told.stdout


@pytest.mark.skipif(cuda_absent() is None, reason="a GPU")
def test_half_precision_without_a_gpu_is_kept_and_said(project: Path) -> None:
    """Where the recipe profiles it on a GPU that is not here, nothing is decided."""
    export = {"onnx": {"dynamic_batch": [1, 8]}, "tensorrt": {}}
    found = made(project, {}, {}, export=export, profile=QUICK | {"runtimes": ["ort-cpu", "ort-cuda"]})
    row = found.pays[-1]
    assert (row.name, row.kept, row.outcome, row.runtime) == ("fp16", True, "not compared", None)
    assert row.line.startswith("fp16: not compared; runtime ort-cuda: ")
    assert row.line.endswith("; kept")


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_half_precision_is_compared_where_a_gpu_runs_both(tmp_path: Path) -> None:
    """The fp16 file is measured against the fp32 one on the GPU, and its line is in the record."""
    write_project(tmp_path)
    profile = {"runtimes": ["ort-cpu", "ort-cuda"], "budget_seconds": 2}
    found = build(write_recipe(tmp_path, compress=None, goals=SPEED, profile=profile), tmp_path / "out")
    assert [(row.name, row.runtime) for row in found.pays] == [("fp16", "ort-cuda")]
