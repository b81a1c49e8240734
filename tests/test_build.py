"""Whole builds of a tiny project; most tests look at, or run again, the one that `built` made."""

from __future__ import annotations

import copy
import json
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

from shipworthy.export.artifact import OnnxArtifact
from shipworthy.export.onnx_file import to_onnx
from shipworthy.models.data import Dataset, open_data
from shipworthy.models.files import sha256_of
from shipworthy.models.model import load_pt2
from shipworthy.pipeline import stages
from shipworthy.pipeline.build import build
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.record import ArtifactRow, RunRecord
from shipworthy.tests.tiny_project import RECIPE, Recorder, write_project, write_recipe

STEPS = ["baseline", "prune", "distill", "quantize"]
FILES = {"baseline.onnx", "model.onnx", "model.tensorrt.onnx", "model.engine"}
REPORTS = {"report.html", "report.md", "report.json", "junit.xml"}
SURE = {"size_mb": {"max": 1000}}


@dataclass(frozen=True)
class Built:
    """A finished build: where, what it said, and which stages it made."""

    project: Path
    record: RunRecord
    progress: Recorder

    @property
    def out(self) -> Path:
        """The work folder."""
        return self.project / "out"

    def artifact(self, name: str) -> ArtifactRow:
        """Return an artifact's row by name."""
        return next(row for row in self.record.artifacts if row.name == name)

    def data(self) -> Dataset:
        """Open the project's data."""
        return open_data(f"{self.project / 'tiny_data.py'}:data")


def make(project: Path, **changes: Any) -> Built:
    """Write a recipe into a project and build it."""
    progress = Recorder()
    record = build(write_recipe(project, **changes), project / "out", progress)
    return Built(project, record, progress)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Give the one whole build: prune, distill, quantize, a file for TensorRT and an engine."""
    project = tmp_path_factory.mktemp("whole")
    write_project(project)
    return make(project, goals=SURE | {"accuracy_drop": {"max": 99}, "speedup": {"min": 0.001}})


@pytest.fixture
def again(built: Built, tmp_path: Path) -> Path:
    """Give a copy of the built project, to build anew with changes."""
    # Copies keep their times, by which some data is recognised.
    shutil.copytree(built.project, tmp_path / "copy")
    return tmp_path / "copy"


def predictions(file: Path, data: Dataset) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Classify the test images with a file, apart from our own scoring; Q/DQ pairs are computed as written."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    x, _ = data.batch(data.test, torch.arange(len(data.test)))
    scores = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    found: np.ndarray[Any, np.dtype[np.int64]] = scores.argmax(1)
    return found


def test_what_was_promised_is_there(built: Built) -> None:
    """Artifacts with the hashes and sizes of the report, the graph, the manifest and the reports; nothing half made."""
    report = json.loads((built.out / "report.json").read_text())
    assert {row["file"] for row in report["artifacts"]} == FILES
    for row in report["artifacts"]:
        path = built.out / row["file"]
        assert (row["sha256"], row["bytes"]) == (sha256_of(path), path.stat().st_size)
    names = {path.name for path in built.out.iterdir()}
    assert names == FILES | REPORTS | {"model.pt2", "model.engine.json", "stages", ".lock"}
    assert all("-" in path.name and not path.name.startswith(".") for path in (built.out / "stages").iterdir())


def test_report_json_is_the_record(built: Built) -> None:
    """What `build` returns and what it writes are the same, with schema first and a time in UTC."""
    text = (built.out / "report.json").read_text()
    assert text == built.record.to_json()
    assert text.startswith('{\n "schema": 1,')
    assert built.record.finished_at.endswith("+00:00")
    assert {"torch", "onnx", "onnxruntime", "shipworthy"} <= set(built.record.environment["versions"])


def test_the_record_tells_every_step(built: Built) -> None:
    """One row a step: its settings, falling sizes, accuracy with an interval, and the latency of its own file."""
    steps = built.record.steps
    assert [step.name for step in steps] == STEPS
    params, macs, sizes = ([getattr(step, name) for step in steps] for name in ("params", "macs", "file_bytes"))
    assert params[0] > 2 * params[1]
    assert params[1:] == [params[1]] * 3
    assert macs[0] > 2 * macs[1]
    assert sizes[0] > sizes[1]
    assert (steps[1].settings["score"], steps[2].settings["steps"], steps[3].facts["calibration_examples"]) == ("taylor", 60, 32)  # fmt: skip # noqa: E501
    for step in steps:
        accuracy, latency = step.accuracy, step.latency_p50_ms
        assert accuracy
        assert latency
        assert 0 <= (accuracy.low or 0) <= accuracy.value <= (accuracy.high or 0) <= 1
        assert 0 < (latency.low or 0) <= latency.value <= (latency.high or 0)
    assert built.progress.advanced >= 60


def test_scores_are_of_the_files_that_ship(built: Built) -> None:
    """Accuracy, agreement and the paired drop of each file are those that ONNX Runtime gives for the file itself."""
    data = built.data()
    labels = data.test.labels.numpy()
    before = predictions(built.out / "baseline.onnx", data)
    for name in ("model", "model.tensorrt"):
        row = built.artifact(name)
        found = predictions(built.out / row.file, data)
        drop = 100 * float((before == labels).mean() - (found == labels).mean())
        assert row.ships
        assert row.accuracy
        assert row.agreement
        assert row.accuracy_drop
        assert row.accuracy.value == pytest.approx((found == labels).mean(), abs=0.02)
        assert row.agreement.value == pytest.approx((found == before).mean(), abs=0.02)
        assert row.accuracy_drop.value == pytest.approx(drop, abs=2)
        assert (row.accuracy_drop.low or -100) < row.accuracy_drop.value < (row.accuracy_drop.high or 100)
    assert built.artifact("baseline").accuracy_drop is None


def test_classes_are_of_the_files_that_ship(built: Built) -> None:
    """Every file has its confusion matrix; those that ship also what changed against the baseline, in the record."""
    labels = built.data().test.labels.numpy()
    for name in ("baseline", "model", "model.tensorrt"):
        row = built.artifact(name)
        assert row.classes
        assert sum(count for _, _, count in row.classes.confusion) == len(labels)
        assert [one.examples for one in row.classes.rows] == [20] * 4
        assert (row.classes.rows[0].f1_change is not None) == row.ships
        assert set(row.classes.changes) == ({"macro_recall", "macro_precision", "macro_f1", "calibration_error"} if row.ships else set())  # fmt: skip # noqa: E501
        right = sum(count for true, taken, count in row.classes.confusion if true == taken)
        assert row.accuracy
        assert right / len(labels) == pytest.approx(row.accuracy.value)


def test_parity_is_of_each_file_with_its_graph(built: Built) -> None:
    """Every ONNX file has a row for each output; the exact one agrees with `torch` to rounding."""
    rows = {row.name: row.parity for row in built.record.artifacts}
    assert {name: len(parity) for name, parity in rows.items()} == {"baseline": 1, "model": 1, "model.tensorrt": 1, "model.engine": 0}  # fmt: skip # noqa: E501
    assert all(row.passed and row.samples == 160 for parity in rows.values() for row in parity)
    assert rows["baseline"][0].relative < 1e-5
    x, _ = built.data().batch(built.data().test, torch.arange(80))
    with torch.inference_mode():
        graph = load_pt2(built.out / "model.pt2").module(x).argmax(1).numpy()
    assert (graph == predictions(built.out / "model.onnx", built.data())).mean() > 0.9


def test_latencies_are_raw_and_paired(built: Built) -> None:
    """Every step was sampled equally often; percentiles and the speed-up follow from the samples; two have a peak."""
    rows = {row.name: row for row in built.record.latency}
    assert list(rows) == ["baseline", "prune", "distill", "model"]
    assert len({len(row.samples_ns) for row in rows.values()}) == 1
    for row in rows.values():
        assert row.percentiles[0].ms == pytest.approx(statistics.median(row.samples_ns) / 1e6, rel=0.02)
    assert [name for name, row in rows.items() if row.peak_memory_bytes] == ["baseline", "model"]
    (ratio,) = built.record.comparisons
    assert (ratio.baseline, ratio.artifact, ratio.runtime) == ("baseline", "model", "ort-cpu")
    pairs = zip(rows["baseline"].samples_ns, rows["model"].samples_ns, strict=True)
    assert ratio.speedup.value == pytest.approx(statistics.median(a / b for a, b in pairs), rel=0.02)


def test_the_engine_comes_with_what_it_is_tied_to(built: Built) -> None:
    """The manifest names the ONNX file it was built from, the flavour's version and the batch profile."""
    manifest = json.loads((built.out / "model.engine.json").read_text())
    assert manifest["onnx_sha256"] == built.artifact("model.tensorrt").sha256
    assert manifest["sha256"] == built.artifact("model.engine").sha256
    assert [shape[0] for shape in next(iter(manifest["profiles"].values()))] == [1, 1, 8]
    assert manifest["version"]
    assert built.artifact("model.engine").notes


def test_an_unchanged_recipe_makes_no_stage(again: Path, built: Built) -> None:
    """The second build reuses every stage and says the same, apart from times and the state of the machine."""

    def timeless(record: RunRecord) -> RunRecord:
        where = record.environment | {"load_average": None, "steal_share": None}
        return replace(record, seconds={}, finished_at="", environment=where)

    second = make(again, goals=built.record.recipe["goals"])
    assert second.progress.made == []
    assert second.progress.kept == built.progress.made
    # The copy lies elsewhere, which the names of its data tell.
    assert timeless(second.record).to_json().replace(str(again), "") == timeless(built.record).to_json().replace(str(built.project), "")  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("goals", "outcome", "code"),
    [
        ({"size_mb": {"max": 1000}}, "met", 0),
        ({"size_mb": {"max": 1000}, "size_ratio": {"max": 0.0001}}, "missed", 1),
        ({"size_mb": {"max": 1000}, "speedup": {"min": 1e9}, "accuracy": {"min": 100}}, "missed", 1),
        (None, "unclear", 3),
    ],
)
def test_goals_decide_the_exit_code(goals: Any, outcome: str, code: int, built: Built) -> None:
    """0 when all are met, 1 when one is missed, 3 without any; only judging is done anew."""
    recipe = write_recipe(built.project, goals=goals)
    shown = CliRunner().invoke(app, ["build", str(recipe), "-w", str(built.out), "--json"])
    assert shown.exit_code == code, shown.output
    record = json.loads(shown.stdout)
    assert (record["outcome"], record["exit_code"]) == (outcome, code)
    assert "..." not in shown.stderr
    units = {goal["metric"]: goal["unit"] for goal in record["goals"]}
    assert units == {name: unit for name, unit in [("size_mb", "MB"), ("size_ratio", "x"), ("speedup", "x"), ("accuracy", "%")] if name in units}  # fmt: skip # noqa: E501


def test_a_goal_on_an_absent_device_is_unclear(built: Built) -> None:
    """Runtimes that are not here leave their goals unclear with the reason, and the rest of the run stands."""
    runtimes = {"runtimes": ["ort-cpu", "ort-cuda", "tensorrt"], "budget_seconds": 0.5}
    wish = {"latency_p50_ms": {"max": 1e6, "on": "tensorrt"}, "peak_memory_mb": {"max": 1e6, "on": "ort-cuda"}}
    if torch.cuda.is_available():
        del wish["peak_memory_mb"]
    found = make(built.project, profile=runtimes, goals=SURE | wish)
    outcomes = {goal.metric: goal.outcome for goal in found.record.goals}
    assert outcomes == {"size_mb": "met"} | dict.fromkeys(wish, "unclear")
    assert (found.record.outcome, found.record.exit_code) == ("unclear", 3)
    assert all("not measured: runtime" in goal.reason for goal in found.record.goals if goal.outcome == "unclear")
    assert "tensorrt: not measured" in " ".join(found.record.notes)
    assert not list((built.out / "stages").glob("measure-tensorrt-*"))


def test_a_damaged_stage_alone_is_made_again(again: Path, built: Built) -> None:
    """A stage with a changed file, and one without its file, are made again and everything else is kept."""
    (prune,) = (again / "out" / "stages").glob("prune-*")
    (scores,) = (again / "out" / "stages").glob("check-distill-*")
    with (prune / "model.pt2").open("r+b") as file:
        file.truncate(1000)
    (scores / "predictions.npy").unlink()
    second = make(again, goals=SURE)
    assert second.progress.made == ["prune", "check-distill"]
    assert [row.sha256 for row in second.record.artifacts] == [row.sha256 for row in built.record.artifacts]


def test_a_changed_setting_remakes_what_depends_on_it(again: Path) -> None:
    """A new setting of the last pass leaves every stage before it as it is."""
    passes = copy.deepcopy(RECIPE["compress"])
    passes[-1]["quantize"]["calibration"] = 16
    found = make(again, compress=passes, goals=SURE, export={"onnx": {"dynamic_batch": [1, 8]}})
    assert found.progress.made == ["quantize", "export-quantize", "check-quantize", "pays-quantize", "integers", "measure-ort-cpu", "change-quantize"]  # fmt: skip # noqa: E501


def small(project: Path, **changes: Any) -> Built:
    """Build without passes and engine, which is quick."""
    return make(project, **({"compress": None, "export": None, "goals": SURE} | changes))


def test_edited_files_remake_what_is_made_of_them(tmp_path: Path) -> None:
    """New data are scored and measured anew; a change in a module that the factory imports captures the model anew."""
    write_project(tmp_path)
    other = tmp_path / "other.py"
    other.write_text((tmp_path / "tiny_data.py").read_text())
    source = {"source": "other.py:data", "mean": [0.5], "std": [0.25]}
    first = small(tmp_path, data=source)
    assert first.progress.made == ["capture", "export-baseline", "check-baseline", "measure-ort-cpu"]
    assert first.record.data["preprocessing"] == {"scale": 1 / 255, "mean": [0.5], "std": [0.25]}
    other.write_text(other.read_text().replace("seed=0", "seed=1"))
    assert small(tmp_path, data=source).progress.made == ["check-baseline", "measure-ort-cpu"]
    neighbour = tmp_path / "tiny_data.py"
    neighbour.write_text(neighbour.read_text().replace("seed=0", "seed=2"))
    assert small(tmp_path, data=source).progress.made == first.progress.made


def test_without_passes_data_and_goals_a_build_still_ends(tmp_path: Path) -> None:
    """The artifact is then the baseline itself: its rows are there, nothing is compared, and the verdict is unclear."""
    write_project(tmp_path)
    found = small(tmp_path, data=None, goals={"speedup": {"min": 1}})
    assert (found.record.outcome, found.record.exit_code) == ("unclear", 3)
    assert "the artifact is the baseline" in found.record.goals[0].reason
    assert [row.name for row in found.record.artifacts] == ["baseline", "model"]
    assert found.artifact("baseline").sha256 == found.artifact("model").sha256
    assert ([row.name for row in found.record.latency], found.record.comparisons) == (["model"], [])
    assert (found.record.steps[0].accuracy, found.record.data) == (None, {})


def test_a_fixed_batch_is_in_every_file(tmp_path: Path) -> None:
    """Without a dynamic batch, files and engine take the profiled batch alone, and are still scored on all data."""
    write_project(tmp_path)
    export = {"onnx": {"dynamic_batch": None}, "tensorrt": {}}
    profile = {"batch": 3, "budget_seconds": 0.5}
    found = make(tmp_path, compress=[{"quantize": {"calibration": 32}}], export=export, profile=profile, goals=SURE)
    for name in ("baseline.onnx", "model.onnx", "model.tensorrt.onnx"):
        graph = onnx.load(found.out / name).graph
        sizes = [value.type.tensor_type.shape.dim[0].dim_value for value in (*graph.input, *graph.output)]
        assert sizes == [3, 3]
    manifest = json.loads((found.out / "model.engine.json").read_text())
    assert (manifest["inputs"][0]["shape"][0], manifest["profiles"]) == (3, {})
    accuracy, before = found.artifact("model").accuracy, found.artifact("baseline").accuracy
    assert accuracy
    assert before
    assert before.value > 0.9
    assert accuracy.value > 0.8
    assert all(row.passed and row.samples == 160 for row in found.artifact("model").parity)


def test_a_file_that_is_not_its_graph_keeps_the_verdict_from_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-precision file whose last weights were halved is another function: never met; file and layer are named."""
    write_project(tmp_path)
    monkeypatch.setattr(stages, "to_onnx", _halving_the_last_weights)
    found = small(tmp_path, data=None, export={"tensorrt": {"precision": "fp16"}})
    assert (found.record.outcome, found.record.exit_code) == ("unclear", 3)
    doubt, size = found.record.goals
    assert (size.outcome, doubt.outcome, doubt.metric, doubt.on) == ("met", "unclear", "parity", "model.tensorrt.onnx")
    assert "model.tensorrt.onnx differs from the graph it was made from by" in doubt.reason
    assert doubt.reason.endswith("; first bad layer: fc (Gemm)")
    assert not found.artifact("model.tensorrt").parity[0].passed
    assert found.artifact("model").parity[0].passed


def _halving_the_last_weights(*args: Any, **kwargs: Any) -> OnnxArtifact:
    """Export, and change files of half precision afterwards."""
    made = to_onnx(*args, **kwargs)
    if made.precision != "fp16":
        return made
    proto = onnx.load(made.path)
    (weight,) = (i for i in proto.graph.initializer if i.name == "fc.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / np.float16(2), weight.name))
    onnx.save(proto, made.path)
    return replace(made, sha256=sha256_of(made.path))
