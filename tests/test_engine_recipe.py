"""Engines from a recipe and from the command line: keys and options, stages, and how far several builds lie apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from onnx import parser as onnx_text
from onnx import save
from typer.testing import CliRunner, Result

from shipworthy.models.errors import BadInput
from shipworthy.models.files import sha256_of
from shipworthy.pipeline.build_spread import spread, spread_of_builds
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.cli_engine import read_shapes
from shipworthy.pipeline.engine_text import _counts
from shipworthy.pipeline.measuring import Measured
from shipworthy.pipeline.recipe import Recipe, RecipeFaults, read_recipe
from shipworthy.pipeline.recording import _engine_notes
from shipworthy.pipeline.stages import engine_stage
from shipworthy.pipeline.store import Stage, open_store
from shipworthy.profile.measure import Measurement
from shipworthy.profile.plan import Plan

GRAPH = '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }'
rtx = pytest.mark.usefixtures("needs_rtx")


@pytest.fixture
def needs_rtx() -> None:
    """Skip where TensorRT for RTX is not installed."""
    pytest.importorskip("tensorrt_rtx_bindings")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A graph of one Relu, `(N, 4) -> (N, 4)`."""
    folder = tmp_path / "file"
    folder.mkdir()
    save(onnx_text.parse_model(GRAPH), folder / "model.onnx")
    return folder / "model.onnx"


def recipe(folder: Path, engine: str) -> Recipe:
    """Read a recipe with these settings of its engine."""
    (folder / "r.yaml").write_text(
        f'shipworthy: 1\nmodel: {{source: "reference:fashion-resnet20"}}\nexport: {{tensorrt: {engine}}}\n'
    )
    return read_recipe(folder / "r.yaml")


def run(*words: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, ["engine", *map(str, words)])


class Told:
    """A progress that keeps what it hears."""

    def __init__(self) -> None:
        self.names, self.reused_names, self.notes, self.steps = [""], [""], [""], [(0, 0)]

    def stage(self, name: str) -> None:
        """Keep a stage's name."""
        self.names.append(name)

    def reused(self, name: str) -> None:
        """Keep the name of a stage that was there."""
        self.reused_names.append(name)

    def advance(self, done: int, total: int) -> None:
        """Keep how much is done."""
        self.steps.append((done, total))

    def note(self, text: str) -> None:
        """Keep a line."""
        self.notes.append(text)


def test_new_keys_leave_old_hashes_alone(tmp_path: Path) -> None:
    """A recipe that sets none of the later keys says what it said before; one that does says so, and reads back."""
    plain = recipe(tmp_path, "{flavour: rtx}")
    assert plain.to_dict()["export"]["tensorrt"] == {"flavour": "rtx", "precision": None}
    assert recipe(tmp_path, "{builds: 1, optimization_level: null}").sha256 == plain.sha256
    asked = recipe(tmp_path, '{builds: 2, compute_capabilities: ["8.6"]}')
    assert asked.sha256 != plain.sha256
    assert asked.to_dict()["export"]["tensorrt"]["compute_capabilities"] == ["8.6"]
    (tmp_path / "again.yaml").write_text(json.dumps(asked.to_dict()))
    assert read_recipe(tmp_path / "again.yaml").sha256 == asked.sha256


@pytest.mark.parametrize(
    ("engine", "key", "words"),
    [
        ('{compute_capabilities: ["9.0"]}', "compute_capabilities", "got 9.0, TensorRT for RTX has 7.5"),
        ('{flavour: tensorrt, compute_capabilities: ["8.6"]}', "compute_capabilities", "choose hardware="),
        ("{version_compatible: true}", "version_compatible", "flavour rtx has no such setting"),
        ("{hardware: ampere+}", "hardware", "flavour rtx has no such setting"),
        ("{optimization_level: 6}", "optimization_level", "wanted 5 or less"),
        ("{builds: 0}", "builds", "wanted 1 or more"),
        ("{build: 2}", "build", "did you mean `builds`"),
    ],
)
def test_faulty_keys_are_named(tmp_path: Path, engine: str, key: str, words: str) -> None:
    """Each fault has its key, and comes before torch is imported."""
    with pytest.raises(RecipeFaults) as seen:
        recipe(tmp_path, engine)
    assert f"export.tensorrt.{key}" in str(seen.value)
    assert words in str(seen.value)


@rtx
def test_a_changed_setting_builds_anew(tmp_path: Path, source: Path) -> None:
    """The stage is reused while the settings that decide the engine are the same; limits do not decide it."""
    file = Stage("export", source.parent, {"sha256": sha256_of(source)}, "key", 0.0)
    progress = Told()
    with open_store(tmp_path / "out", progress) as store:

        def built(engine: str) -> Stage:
            made = engine_stage(store, recipe(tmp_path, engine), file)
            assert made is not None
            return made

        first = built("{flavour: rtx}")
        assert progress.steps[-1] == (1000, 1000)
        assert built("{timeout_seconds: 100, memory_gb: 8}").key == first.key
        other = built('{compute_capabilities: ["8.6"]}')
        assert (other.key != first.key, other.facts["manifest"]["compute_capabilities"]) == (True, ["8.6"])
        assert (progress.names[1:], progress.reused_names[1:]) == (["engine", "engine"], ["engine"])
        twice = built("{builds: 2}")
        assert len(twice.facts["manifest"]["builds"]["sha256"]) == 2
        assert progress.notes[1].startswith("2 builds of the engine, ")
        assert len(progress.notes) == 3


def measured(name: str, median_ns: int, spread_ns: int = 10, count: int = 200) -> Measurement:
    """Invent a measurement around a median."""
    samples = [median_ns + (i % 21 - 10) * spread_ns // 10 for i in range(count)]
    return Measurement(name, "rtx", name, None, Plan(), {}, samples, 0, "random", "precision")


def test_notes_say_whether_an_engine_ran_and_what_builds_are() -> None:
    """Built is not run; one that was measured does not say so, and several builds say whether they are equal."""
    never, absent = _engine_notes({}, None), _engine_notes({}, Measured("tensorrt", {}, {}, "no GPU"))
    assert never == absent
    assert never[0].startswith("built, not run")
    builds = {"builds": {"identical": False, "sha256": ["a", "b"]}}
    ran, told = _engine_notes(builds, Measured("tensorrt", {"model": measured("model", 1000)}, {}))
    assert "not run" not in ran
    assert told == "2 builds of it differ byte by byte; this is the first"


def test_builds_differ_where_their_intervals_do() -> None:
    """The spread between builds is held against how well each is known; too few samples give no answer."""
    far = spread([measured("a", 1_000_000), measured("b", 1_100_000)])
    assert far.outcome == "differ"
    assert far.between == pytest.approx(0.1, rel=1e-5)
    assert far.p50_ms == pytest.approx((1.0, 1.1), rel=1e-5)
    near = spread([measured("a", 1_000_000, 100_000), measured("b", 1_001_000, 100_000)])
    assert near.outcome == "same"
    assert "on rtx, 0.1% apart, each known to ±" in near.line()
    few = spread([measured("a", 1000, count=3), measured("b", 1000, count=3)])
    assert (few.outcome, few.within) == ("unclear", None)
    assert json.loads(json.dumps(few.to_dict()))["outcome"] == "unclear"
    with pytest.raises(BadInput, match="engines: got 1, wanted two or more builds"):
        spread_of_builds(["a"], "rtx")


def test_files_of_any_runtime_can_be_spread(source: Path) -> None:
    """The same code measures what runs here: one file against itself."""
    found = spread_of_builds([source, source], "ort-cpu", Plan(budget_s=0.2, warmup_s=0.0, warmup_cap_s=0.1))
    assert (found.runtime, len(found.p50_ms)) == ("ort-cpu", 2)


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no GPU")
@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
def test_builds_are_measured_on_a_gpu(tmp_path: Path, source: Path, flavour: str) -> None:
    """Several engines of one file run interleaved, and the command says how far they lie apart."""
    pytest.importorskip({"rtx": "tensorrt_rtx_bindings"}.get(flavour, flavour))
    done = run(source, "-o", tmp_path / "m.engine", "--flavour", flavour, "--builds", 2, "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["spread"]["p50_ms"]) == 2


@rtx
def test_the_command_says_what_was_built(tmp_path: Path, source: Path) -> None:
    """Text has the file, its hash, targets, shapes, layers by format, and builds; data is the manifest."""
    place = tmp_path / "m.engine"
    shown = run(
        source,
        "-o",
        place,
        "--shape",
        "x=1x4:2x4:8x4",
        "--shape",
        "x=16x4",
        "--builds",
        2,
        "--compute-capability",
        "8.6",
        "--no-tf32",
    )
    assert shown.exit_code == 0, shown.output
    for words in (
        f"sha256  {sha256_of(place)}", "for     TensorRT for RTX ", "GPUs of compute capability 8.6\n",
        "input   x 1x4 to 8x4, usually 2x4\n", "input   x 16x4, usually 16x4\n", "layers  1 before fusion: 1 FLOAT\n",
        "builds  2 of ", "took    ", f"log     {place}.log",
    ):  # fmt: skip
        assert words in shown.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m.engine", "m.engine.json", "m.engine.log"]
    data: dict[str, Any] = json.loads(run(source, "-o", place, "--json").stdout)
    assert data["manifest"] == json.loads((tmp_path / "m.engine.json").read_text())


@rtx
def test_an_engine_is_inspected_by_its_manifest(tmp_path: Path, source: Path) -> None:
    """Targets, shapes and layers are those it was built with; a file changed since is told, with exit code 1."""
    place = tmp_path / "m.engine"
    run(source, "-o", place, "--compute-capability", "8.6")
    shown = CliRunner().invoke(app, ["inspect", str(place)])
    assert shown.exit_code == 0, shown.output
    for words in (
        f"made of {source.name}, sha256 {sha256_of(source)}",
        "compute capability 8.6\n",
        "1 FLOAT",
        "x 1x4 to",
    ):
        assert words in shown.stdout
    place.write_bytes(place.read_bytes() + b"x")
    changed = CliRunner().invoke(app, ["inspect", str(place)])
    assert (changed.exit_code, "WHICH THE FILE HAS NOT" in changed.stdout) == (1, True)
    alone = CliRunner().invoke(app, ["inspect", str(place), "--groups"])
    assert (alone.exit_code, "is an engine" in alone.stderr) == (2, True)


def test_layers_of_sizes_are_summed() -> None:
    """Whole and truth values of shape arithmetic are one number; what computes is counted by format."""
    told = {"CAST": {"INT64 to INT32": 2, "HALF to FLOAT": 1}, "MATRIX_MULTIPLY": {"HALF": 5}, "GATHER": {"INT64": 7}}
    assert _counts(told) == "9 of sizes and indices, 5 HALF, 1 HALF to FLOAT"


@pytest.mark.parametrize("text", ["x", "=1x2", "x=", "x=1x2:2x2", "x=0x2", "x=1xb:1x2:1x3", "x=1x-2"])
def test_shapes_of_another_form_are_refused(text: str) -> None:
    """The message shows the form."""
    with pytest.raises(BadInput, match=r"--shape: got '.*', wanted a name and its smallest, usual and largest shape"):
        read_shapes([text])


def test_shapes_may_have_odd_names() -> None:
    """A name may hold colons and equal signs; a name that comes again is of the next profile."""
    assert read_shapes(["a:b=c=1x2", "y=1:2:3", "y=4"]) == [
        {"a:b=c": [[1, 2]] * 3, "y": [[1], [2], [3]]},
        {"y": [[4]] * 3},
    ]
    assert read_shapes([]) == [{}]
