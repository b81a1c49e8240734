"""The parts of an engine build that need no TensorRT: settings, profiles, progress, files, the manifest, refitting."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import parser as onnx_text
from onnx import save

from shipworthy.export import engine, engine_child
from shipworthy.export.engine import EngineSettings, refit_engine
from shipworthy.export.engine_config import capabilities_of, configure
from shipworthy.export.engine_files import put_in_place, workspace
from shipworthy.export.engine_inspect import formats, layers_in
from shipworthy.export.engine_manifest import read_manifest
from shipworthy.export.engine_network import Input, Refused, parser_errors, precisions, profiles_of
from shipworthy.export.engine_process import death
from shipworthy.export.engine_progress import Phases
from shipworthy.export.engine_settings import check_batches, check_settings
from shipworthy.models.errors import BadInput, MissingRuntime
from shipworthy.models.files import sha256_of

IMAGES = Input("x", (-1, 3, -1, -1), ("batch", None, "height", None))
TABLE = Input("t", (-1, 4), (None, None))
FIXED = Input("f", (2, 4), (None, None))
BOUNDS = [[1, 3, 8, 8], [2, 3, 8, 16], [4, 3, 8, 16]]


def refused(words: str, kind: type[Exception] = BadInput) -> Any:
    """Expect an error with these words."""
    return pytest.raises(kind, match=re.escape(words))


def test_profiles_join_shapes_and_batches() -> None:
    """Given shapes hold, other inputs take the batches, fixed inputs are in no profile, each mapping is one profile."""
    inputs = [IMAGES, TABLE, FIXED]
    table = [[1, 4], [2, 4], [8, 4]]
    assert profiles_of(inputs, (1, 2, 8), [{"x": BOUNDS}]) == [{"x": BOUNDS, "t": table}]
    second = {"x": BOUNDS, "t": [[1, 4]] * 3}
    assert profiles_of(inputs, (1, 2, 8), [{"x": BOUNDS}, second]) == [{"x": BOUNDS, "t": table}, second]
    assert profiles_of([FIXED], (1, 2, 8), [{"f": [[2, 4]] * 3}]) == []


@pytest.mark.parametrize(
    ("inputs", "shapes", "words"),
    [
        ([IMAGES], {}, "'x' (batch, 3, height, ?): dimension height and number 3 is dynamic and no batch; give its"),
        ([TABLE], {"y": [[1, 4]] * 3}, "shapes are given for y, and the file's inputs are t"),
        ([TABLE], {"t": [[1, 5]] * 3}, "input 't': got shape 1x5, wanted one that fits (?, 4)"),
        ([TABLE], {"t": [[1, 4, 1]] * 3}, "input 't': got shape 1x4x1, wanted one that fits (?, 4)"),
        ([TABLE], {"t": [[0, 4]] * 3}, "input 't': got shape 0x4"),
        ([TABLE], {"t": [[2, 4], [1, 4], [4, 4]]}, "got 2x4, 1x4, 4x4, wanted shapes that do not fall"),
        ([FIXED], {"f": [[3, 4]] * 3}, "input 'f': got shape 3x4, wanted one that fits (2, 4)"),
        ([Input("s", (2,), (None,), is_shape=True)], {}, "input 's' holds sizes (a shape tensor)"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(inputs: list[Input], shapes: dict[str, Any], words: str) -> None:
    """The message names the input, what was got and what the network takes."""
    with refused(words, Refused):
        profiles_of(inputs, (1, 2, 8), [shapes])


@pytest.mark.parametrize(
    ("flavour", "settings", "words"),
    [
        ("rtx", {"compute_capabilities": ("9.0",)}, "compute_capabilities: got 9.0, TensorRT for RTX has 7.5, 8.0"),
        ("rtx", {"compute_capabilities": ("8.6", "8.6")}, "got 8.6, 8.6, name each once"),
        ("tensorrt", {"compute_capabilities": ("8.6",)}, "but TensorRT builds for the GPU it builds on"),
        ("rtx", {"version_compatible": True}, "version_compatible: flavour rtx has no such setting: its engines"),
        ("rtx", {"hardware": "ampere+"}, "hardware: flavour rtx has no such setting: name the GPUs"),
        ("rtx", {"timing_cache": Path("t")}, "timing_cache: flavour rtx has no such setting: it times nothing"),
        ("tensorrt", {"hardware": "all"}, "hardware: got 'all', choose one of none, ampere+"),
        ("rtx", {"optimization_level": 6}, "optimization_level: got 6, wanted 0 (fast build) to 5 (fast engine)"),
        ("rtx", {"workspace_bytes": 0}, "workspace_bytes: got 0, wanted a number of bytes above zero"),
        ("rtx", {"builds": 0}, "builds: got 0, wanted 1 or more"),
        ("rtx", {"shapes": {"x": [(1, 2), (1, 2)]}}, "shapes of 'x': got 1x2, 1x2, wanted a least, usual and largest"),
        ("rtx", {"further_shapes": ({"x": [(1,), (1, 2), (1,)]},)}, "shapes of 'x': got 1, 1x2, 1, wanted"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(flavour: Any, settings: dict[str, Any], words: str) -> None:
    """What is out of range, or unknown to the flavour, is refused before anything is built."""
    with refused(words):
        check_settings(EngineSettings(**settings), flavour)


def test_batches_rise() -> None:
    """Three whole numbers that do not fall, or bad input."""
    check_batches((1, 1, 32))
    for wrong in ((0, 1, 2), (2, 1, 4), (1, 2)):
        with refused(f"batches: got {list(wrong)}, wanted three numbers that do not fall"):
            check_batches(wrong)


def test_further_profiles_take_over_what_they_leave_out() -> None:
    """A further profile has the first one's shapes but for its own."""
    told = EngineSettings(shapes={"a": [(1,)] * 3, "b": [(1,)] * 3}, further_shapes=({"b": [(2,)] * 3},)).for_child()
    assert told["shapes"][1] == {"a": [[1]] * 3, "b": [[2]] * 3}
    assert json.loads(json.dumps(told)) == told


def test_progress_follows_nested_phases() -> None:
    """Inner phases fill their step of the outer one; a phase begun anew undoes nothing; the outermost ends it."""
    seen: list[int] = []
    phases = Phases(seen.append)
    phases.start("outer", 4)
    phases.start("inner", 5)
    for step in range(5):
        phases.step("inner", step)
    phases.finish("inner")
    phases.step("outer", 0)
    phases.start("inner", 2)
    phases.step("inner", 0)
    phases.step("unknown", 3)
    phases.start("inner", 2)
    phases.finish("inner")
    phases.finish("outer")
    assert seen == [0, 50, 100, 150, 200, 250, 375, 1000]


def test_layers_are_counted_by_type_and_format() -> None:
    """A layer whose format changes counts as such; one that makes nothing counts as none."""
    rows = [("CAST", ["FLOAT"], ["HALF"]), ("CONVOLUTION", ["HALF"], ["HALF"]), ("CONSTANT", [], ["HALF"]), ("END", ["HALF"], [])]  # fmt: skip # noqa: E501
    found = precisions([{"name": "n", "type": kind, "inputs": i, "outputs": o} for kind, i, o in rows])
    assert found == {
        "CAST": {"FLOAT to HALF": 1},
        "CONSTANT": {"HALF": 1},
        "CONVOLUTION": {"HALF": 1},
        "END": {"none": 1},
    }


def test_the_inspectors_text_is_read() -> None:
    """Formats stand at the end of a text; names alone are no layers, nor is an empty answer."""
    told = {
        "Layers": [
            {"Name": "a", "LayerType": "conv", "Inputs": [{"Format/Datatype": "Row major linear FP32"}],
             "Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
            {"Name": "b", "LayerType": "cast", "Inputs": [], "Outputs": [{"Datatype": "Half"}]},
            {"Name": "c", "Outputs": [{"Datatype": "UInt8"}]},
        ]
    }  # fmt: skip
    layers = layers_in(json.dumps(told))
    assert [layer["type"] for layer in layers] == ["conv", "cast", "layer"]
    assert layers[0]["inputs"] == ["FP32"]
    assert formats(layers) == {"FP16": 1, "INT8": 1, "UINT8": 1}
    assert layers_in(json.dumps({"Layers": ["a", "b"]})) == layers_in("") == []


def test_a_parser_that_gives_no_words_is_still_an_error() -> None:
    """`false` stands for an operator that is not supported; the driver's absence is no reason."""

    def error(desc: str, code: str = "INVALID_NODE", node: int = 3) -> Any:
        return SimpleNamespace(
            desc=lambda: desc, code=lambda: SimpleNamespace(name=code), node=lambda: node, node_name=lambda: "n",
            node_operator=lambda: "Op",
        )  # fmt: skip

    def said(*errors: Any) -> list[str]:
        return parser_errors(SimpleNamespace(num_errors=len(errors), get_error=lambda index: errors[index]))

    assert said(error("false", "UNSUPPORTED_NODE")) == ["node 3 'n' (Op): TensorRT does not support it"]
    assert said(error("wrong\n(cudaError 35: no driver)")) == ["node 3 'n' (Op): wrong"]
    assert said(error("no type", node=-1)) == ["no type"]


def test_classic_settings_reach_a_builder_of_that_kind() -> None:
    """What the RTX flavour does not know is set by the names of classic TensorRT; unknown names are refused."""
    flags: list[str] = []
    config = SimpleNamespace(set_flag=flags.append, clear_flag=lambda flag: flags.append(f"no {flag}"))
    kinds = {name: name for name in ("STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE", "TF32")}
    trt = SimpleNamespace(
        BuilderFlag=SimpleNamespace(**kinds),
        HardwareCompatibilityLevel=SimpleNamespace(SAME_COMPUTE_CAPABILITY=2),
        ProfilingVerbosity=SimpleNamespace(DETAILED="all"),
    )
    settings = EngineSettings(strip=True, version_compatible=True, hardware="same_compute_capability", tf32=False)
    job = {**settings.for_child(), "flavour": "tensorrt", "sparse": True}
    assert configure(trt, config, job) == ["STRONGLY_TYPED", "STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE"]
    assert flags == ["STRIP_PLAN", "REFIT_IDENTICAL", "VERSION_COMPATIBLE", "no TF32"]
    assert (config.hardware_compatibility_level, config.profiling_verbosity) == (2, "all")
    assert capabilities_of(config, job, "8.9") == ["8.9"]
    with refused("the hardware compatibility AMPERE_PLUS is not known to this version", Refused):
        configure(trt, config, {**job, "hardware": "ampere+"})


def move_two(place: Path, other: Path) -> None:
    """Make two files beside `place` and move them to their places."""
    with workspace(place) as folder:
        made = {place: folder / "new", other: folder / "other"}
        for file in made.values():
            file.write_text("new")
        put_in_place(made, folder)


def test_all_files_take_their_places_or_none(tmp_path: Path) -> None:
    """Where the second cannot be moved, the first is what it was; a first that was not there is not there."""
    for old in ("before", None):
        place = tmp_path / "a"
        place.unlink(missing_ok=True)
        if old:
            place.write_text(old)
        with refused("a: cannot be written (No such file or directory)"):
            move_two(place, tmp_path / "none" / "b")
        assert (place.read_text() if place.exists() else None) == old
        assert [path.name for path in tmp_path.iterdir()] == (["a"] if old else [])


def test_files_are_moved_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hard links the old file is copied for the way back."""

    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_text("before")
    with refused("a: cannot be written"):
        move_two(tmp_path / "a", tmp_path / "none" / "b")
    assert (tmp_path / "a").read_text() == "before"
    move_two(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "new"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_full_disk_is_bad_input(tmp_path: Path) -> None:
    """A real write to a full device is answered with the remedy."""
    pytest.importorskip("tensorrt_rtx_bindings")
    job = {
        "onnx": str(relu(tmp_path)),
        "engine": "/dev/full",
        "log": str(tmp_path / "log"),
        "module": "tensorrt_rtx_bindings",
    }
    told = {"flavour": "rtx", "batches": [1, 1, 2], "sparse": False, "stripped": None, "timings": None}
    found = engine_child.answer({**job, **told, **EngineSettings().for_child()}, lambda done: None)
    assert found == {
        "refused": "the engine cannot be written (No space left on device); choose another folder or make room",
        "kind": "disk",
    }
    assert Path("/dev/full").exists()


def relu(folder: Path) -> Path:
    """Write a graph of one Relu."""
    graph = '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }'
    save(onnx_text.parse_model(graph), folder / "relu.onnx")
    return folder / "relu.onnx"


@pytest.mark.parametrize(
    ("code", "stderr", "words"),
    [
        (1, "Traceback\nKeyError: 'x'\n", "died (exit 1): KeyError: 'x'"),
        (0, "", "died (exit 0): it said nothing"),
        (-11, "bad news", "was killed by SIGSEGV: bad news"),
        (-9, "", "was killed by SIGKILL: most likely because memory ran out"),
        (-99, "", "was killed by signal 99: it said nothing"),
    ],
)
def test_every_end_of_the_child_has_words(code: int, stderr: str, words: str) -> None:
    """Exit codes and signals are told with the last line it wrote."""
    assert death(code, stderr) == words


def test_manifests_of_the_first_schema_are_read(tmp_path: Path) -> None:
    """They get every later key, and targets as numbers; later schemas and other files are refused."""
    manifest = tmp_path / "m.engine.json"
    manifest.write_text(json.dumps({"schema": 1, "flavour": "rtx", "compute_capabilities": ["SM86", "SM120"]}))
    found = read_manifest(tmp_path / "m.engine")
    assert (found["schema"], found["compute_capabilities"], found["stripped"]) == (2, ["8.6", "12.0"], False)
    manifest.write_text('{"schema": 3}')
    with refused("m.engine.json: got schema 3, this program reads 1 to 2; build the engine again"):
        read_manifest(tmp_path / "m.engine")
    manifest.write_text("{")
    with refused("m.engine.json: not an engine's manifest"):
        read_manifest(tmp_path / "m.engine")
    with refused("n.engine.json: no such file; an engine is read with the manifest beside it"):
        read_manifest(tmp_path / "n.engine")


def test_refitting_is_checked_before_it_begins(tmp_path: Path) -> None:
    """Only engines made for it take weights, only the manifest's own engine, and only the file it was built from."""
    source, bare = relu(tmp_path), tmp_path / "bare.engine"
    bare.write_bytes(b"no weights")
    facts = {"schema": 2, "flavour": "rtx", "version": "1", "onnx": "other.onnx", "onnx_sha256": "0", "flags": []}

    def told(**changes: Any) -> None:
        (tmp_path / "bare.engine.json").write_text(json.dumps({**facts, "sha256": sha256_of(bare), **changes}))

    told()
    with refused("bare.engine: was not built to be refitted; build it with strip or refittable"):
        refit_engine(bare, source, tmp_path / "m.engine")
    told(flags=["STRIP_PLAN", "REFIT_IDENTICAL"], sha256="0")
    with refused("bare.engine: is not the engine of its manifest; build it again"):
        refit_engine(bare, source, tmp_path / "m.engine")
    told(flags=["STRIP_PLAN", "REFIT_IDENTICAL"])
    with refused(
        "relu.onnx: is not the file that bare.engine was built from (other.onnx), whose weights alone it takes"
    ):
        refit_engine(bare, source, tmp_path / "m.engine")
    pytest.importorskip(engine.MODULES["rtx"])
    told(flags=["STRIP_PLAN", "REFIT"])
    with pytest.raises(BadInput, match=r"the engine is of version 1, and .* is installed"):
        refit_engine(bare, source, tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_refitting_needs_a_gpu(tmp_path: Path) -> None:
    """A real engine cannot be loaded without a driver, and the message says that a GPU is needed."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    made = engine.to_engine(relu(tmp_path), tmp_path / "m.engine")
    manifest = json.loads((tmp_path / "m.engine.json").read_text())
    (tmp_path / "m.engine.json").write_text(json.dumps({**manifest, "flags": ["REFIT"]}))
    with pytest.raises(MissingRuntime, match=r"refitting loads the engine, which needs a GPU \(.*cudaError 35"):
        refit_engine(made, tmp_path / "relu.onnx", tmp_path / "n.engine")
    assert (manifest["version"], (tmp_path / "n.engine").exists()) == (trt.__version__, False)
