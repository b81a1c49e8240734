"""Engines are built without a GPU, described by a manifest, and never left half-built."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import parser

from shipworthy.compress.quantize import Quantize
from shipworthy.export import engine
from shipworthy.export.artifact import OnnxArtifact
from shipworthy.export.engine import EngineSettings, manifest_path, to_engine
from shipworthy.export.onnx_file import to_onnx
from shipworthy.models.errors import BadInput, MissingRuntime, ToolFailed
from shipworthy.models.files import sha256_of
from shipworthy.tests.small_nets import captured, quadrants

# What an int8 file for CPUs does around every operator.
UNSIGNED = """
s = Constant <value = float {0.1}> ()
z = Constant <value = uint8 {128}> ()
q = QuantizeLinear (x, s, z)
d = DequantizeLinear (q, s, z)
y = Relu (d)
"""
WIDE_BIAS = """
s = Constant <value = float {0.1}> ()
b = Constant <value = int32[3] {1, 2, 3}> ()
d = DequantizeLinear (b, s)
y = Add (x, d)
"""
FIXED = "(float[4, 3] x) => (float[4, 3] y)"
GROWING = "(float[N, 3, H, W] x) => (float[N, 3, H, W] y)"
SQUARES = ((1, 3, 8, 8), (2, 3, 16, 16), (4, 3, 32, 32))
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed"
)
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxArtifact]:
    """One model for each family of runtimes."""
    folder = tmp_path_factory.mktemp("engine")
    model = Quantize(calibration=64)(captured("residual", torch.float32), data=quadrants()).model
    kinds: dict[str, dict[str, Any]] = {
        "fp16": {"precision": "fp16"},
        "int8": {"target": "tensorrt"},
    }
    return {kind: to_onnx(model, folder / f"{kind}.onnx", **options) for kind, options in kinds.items()}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a tiny ONNX graph given as text."""

    def written(body: str, signature: str = FIXED) -> Path:
        text = f'<ir_version: 10, opset_import: ["" : 20, "my" : 1]> g {signature} {{ {body} }}'
        path = tmp_path / "in" / "s.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(parser.parse_model(text), path)
        return path

    return written


@pytest.fixture
def small(write: Write) -> Path:
    """A file that is quick to build."""
    return write("y = Relu (x)")


def left(folder: Path) -> list[str]:
    """List what is in a folder beside the input and the log."""
    return sorted(p.name for p in folder.iterdir() if p.name not in ("in", "m.engine.log"))


@rtx
@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_engines_build_without_a_gpu(kind: str, files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """A typed file becomes an engine, and its manifest says what it was made of and what it takes."""
    made = to_engine(files[kind], tmp_path / "m.engine", batches=(1, 2, 8))
    assert left(tmp_path) == ["m.engine", "m.engine.json"]
    manifest = json.loads(manifest_path(made.path).read_text())
    assert manifest == made.manifest == made.to_dict()["manifest"]
    assert (manifest["schema"], manifest["engine"], manifest["flavour"]) == (2, "m.engine", "rtx")
    assert manifest["sha256"] == made.sha256 == sha256_of(made.path)
    assert (manifest["onnx"], manifest["onnx_sha256"]) == (f"{kind}.onnx", files[kind].sha256)
    assert manifest["bytes"] == made.bytes == made.path.stat().st_size > 1000
    assert manifest["inputs"] == [{"name": "x", "dtype": "FLOAT", "shape": [-1, 3, 8, 8]}]
    assert [o["name"] for o in manifest["outputs"]] == ["output"]
    assert manifest["profiles"] == {"x": [[1, 3, 8, 8], [2, 3, 8, 8], [8, 3, 8, 8]]}
    assert (manifest["flags"], manifest["compute_capabilities"]) == (["STRONGLY_TYPED"], ["portable"])
    assert {"version", "platform", "gpu", "driver", "cuda", "seconds", "peak_bytes", "settings"} <= manifest.keys()


@rtx
def test_the_layers_precision_is_counted(files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """The manifest counts the network's layers by type and number format, and the log lists each."""
    half = to_engine(files["fp16"], tmp_path / "m.engine").manifest
    assert sum(sum(counts.values()) for counts in half["precisions"].values()) == half["layers"]
    nodes = [node.op_type for node in onnx.load(files["fp16"]).graph.node]
    assert half["precisions"]["CONVOLUTION"] == {"HALF": nodes.count("Conv")}
    assert half["precisions"]["CAST"] == {"FLOAT to HALF": 1, "HALF to FLOAT": 1}
    assert (tmp_path / "m.engine.log").read_text().count("\nlayer ") + 1 >= half["layers"]
    whole = to_engine(files["int8"], tmp_path / "m.engine").manifest["precisions"]
    nodes = [node.op_type for node in onnx.load(files["int8"]).graph.node]
    assert whole["QUANTIZE"] == {"FLOAT to INT8": nodes.count("QuantizeLinear")}


@rtx
def test_progress_arrives(small: Path, tmp_path: Path) -> None:
    """The builder's phases reach the caller while it builds, never fall, and end at the whole."""
    seen: list[tuple[int, int]] = []
    to_engine(small, tmp_path / "m.engine", report=lambda done, total: seen.append((done, total)))
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[-1] == (1000, 1000)


@rtx
def test_shapes_make_profiles(write: Write, tmp_path: Path) -> None:
    """Shapes of every dynamic dimension and further profiles reach the engine; without shapes the error names them."""
    source = write("y = Relu (x)", GROWING)
    with pytest.raises(BadInput, match=r"'x' \(N, 3, H, W\): dimension H and W is dynamic.*--shape x=1x3x1x1:8x3x8x8"):
        to_engine(source, tmp_path / "m.engine")
    later = ((1, 3, 64, 64), (1, 3, 64, 64), (2, 3, 64, 64))
    settings = EngineSettings(shapes={"x": SQUARES}, further_shapes=({"x": later},))
    manifest = to_engine(source, tmp_path / "m.engine", settings=settings).manifest
    assert manifest["profiles"] == {"x": [list(shape) for shape in SQUARES]}
    assert manifest["further_profiles"] == [{"x": [list(shape) for shape in later]}]


@rtx
def test_targets_and_limits_reach_the_builder(small: Path, tmp_path: Path) -> None:
    """Compute capabilities, level and TF32 are set and noted; too small a workspace is refused as such."""
    settings = EngineSettings(compute_capabilities=("8.6", "12.0"), optimization_level=5, tf32=False)
    manifest = to_engine(small, tmp_path / "m.engine", settings=settings).manifest
    assert manifest["compute_capabilities"] == ["8.6", "12.0"]
    assert (manifest["settings"]["optimization_level"], manifest["settings"]["tf32"]) == (5, False)


@rtx
def test_a_small_workspace_is_named(files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """Where the builder lacks the memory that it was given, the message says which setting that is."""
    with pytest.raises(BadInput, match=r"workspace limit.*workspace_bytes is 1000: give it more"):
        to_engine(files["fp16"], tmp_path / "m.engine", settings=EngineSettings(workspace_bytes=1000))
    assert left(tmp_path) == []


@rtx
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
@pytest.mark.parametrize(
    "settings", [EngineSettings(strip=True), EngineSettings(refittable=True)], ids=["strip", "refit"]
)
def test_stripping_needs_a_gpu(settings: EngineSettings, files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """TensorRT for RTX runs code on the device for engines without weights; without one the message says so."""
    with pytest.raises(MissingRuntime, match=r"is built on a GPU, and there is none here \(.*Myelin"):
        to_engine(files["fp16"], tmp_path / "m.engine", settings=settings)
    assert left(tmp_path) == []


@rtx
def test_several_builds_are_compared(small: Path, tmp_path: Path) -> None:
    """The first engine is kept, the manifest says whether the others are equal; others are kept on demand."""
    made = to_engine(small, tmp_path / "m.engine", settings=EngineSettings(builds=2))
    builds = made.manifest["builds"]
    assert builds["identical"] == (len(set(builds["sha256"])) == 1)
    assert (len(builds["sha256"]), builds["sha256"][0], builds["bytes"][0]) == (2, made.sha256, made.bytes)
    assert left(tmp_path) == ["m.engine", "m.engine.json"]
    to_engine(small, tmp_path / "m.engine", settings=EngineSettings(builds=2, keep_builds=True))
    assert left(tmp_path) == ["m.build2.engine", "m.build2.engine.json", "m.engine", "m.engine.json"]
    other = json.loads((tmp_path / "m.build2.engine.json").read_text())
    assert other["sha256"] == other["builds"]["sha256"][1] == sha256_of(tmp_path / "m.build2.engine")


@rtx
@pytest.mark.parametrize(
    ("body", "signature", "words"),
    [
        (UNSIGNED, FIXED, r"\(QuantizeLinear\): .*zero point.*an int8 file for CPUs; export it with target=tensorrt"),
        (WIDE_BIAS, FIXED, r"\(DequantizeLinear\): .*Int32 .*an int8 file for CPUs; export it with target=tensorrt"),
        ("h = Relu (x) y = Det (h)", "(float[4, 3, 3] x) => (float[4] y)", r"node 1 \(Det\): .* does not support it"),
        ("y = my.Thing (x)", FIXED, r"node 0 \(Thing\): .*TensorRT has no such operator; export the model without it"),
        ('y = Einsum <equation = "AB,BC->AC"> (x, x)', "(float[3, 3] x) => (float[3, 3] y)", "in lower-case letters"),
        ("h = Cast <to = 10> (x) y = Add (x, h)", FIXED, r"node 1 \(Add\): .*Float and Half.*mixes number formats"),
        ("y = Reshape (x, s)", "(float[4, 3] x, int64[2] s) => (float[A, B] y)", "input 's' holds sizes"),
    ],
    ids=["unsigned", "int32 bias", "unsupported", "unknown", "einsum", "mixed", "shape tensor"],
)  # fmt: skip
def test_what_the_parser_refuses_is_the_users(
    write: Write, tmp_path: Path, body: str, signature: str, words: str
) -> None:
    """A graph that TensorRT does not take is bad input that names the node and a way out, and leaves no file."""
    with pytest.raises(BadInput, match=r"s\.onnx: rtx cannot build it: ") as seen:
        to_engine(write(body, signature), tmp_path / "m.engine")
    seen.match(words)
    assert "\n" not in str(seen.value)
    assert left(tmp_path) == []


@rtx
def test_a_build_that_breaks_a_limit_is_ended(small: Path, tmp_path: Path) -> None:
    """Past its time or memory the child is ended, and nothing is left."""
    with pytest.raises(ToolFailed, match=r"s\.onnx: the engine builder took over 0.01 s and was ended; give it more"):
        to_engine(small, tmp_path / "m.engine", timeout_s=0.01)
    limit = EngineSettings(memory_bytes=20_000_000)
    with pytest.raises(ToolFailed, match=r"the engine builder held 0\.\d\d GB of memory, over the limit of 0.02 GB"):
        to_engine(small, tmp_path / "m.engine", settings=limit)
    assert left(tmp_path) == []


@rtx
def test_a_failed_build_leaves_the_old_engine(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child killed half way is one message; the engine and manifest from before stay whole, and the log is kept."""
    to_engine(write("y = Relu (x)"), tmp_path / "m.engine")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("m.engine*") if path.suffix != ".log"}

    class Killed(subprocess.Popen[str]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(subprocess, "Popen", Killed)
    with pytest.raises(ToolFailed, match=r"builder was killed by SIGKILL: most likely because memory ran out"):
        to_engine(write("y = Sigmoid (x)"), tmp_path / "m.engine")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("m.engine*") if path.suffix != ".log"} == before
    assert left(tmp_path) == ["m.engine", "m.engine.json"]


def test_a_child_that_dies_is_a_message(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder that cannot start, or crashes, is reported with its last words."""
    monkeypatch.setitem(engine.MODULES, "rtx", "this")  # a module that is there and builds nothing
    with pytest.raises(ToolFailed, match=r"s\.onnx: the engine builder died \(exit 1\): AttributeError: .*ILogger"):
        to_engine(small, tmp_path / "m.engine")
    assert left(tmp_path) == []


def test_a_missing_flavour_names_its_extra(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flavour that is not installed is answered with the command to install it; an unknown one with the choices."""
    monkeypatch.setitem(engine.MODULES, "tensorrt", "tensorrt_that_is_not_here")
    with pytest.raises(MissingRuntime, match=r"'tensorrt' is not installed: pip install 'shipworthy\[tensorrt\]'"):
        to_engine(small, tmp_path / "m.engine", flavour="tensorrt")
    with pytest.raises(BadInput, match="flavour 'trt': choose one of rtx, tensorrt"):
        to_engine(small, tmp_path / "m.engine", flavour="trt")  # type: ignore[arg-type]  # the point
    assert left(tmp_path) == []


@rtx
def test_places_that_cannot_be_used_are_named(small: Path, tmp_path: Path) -> None:
    """No file, a folder as the file to write, and a file as its folder are bad input."""
    with pytest.raises(BadInput, match=r"gone\.onnx: no such file"):
        to_engine(tmp_path / "gone.onnx", tmp_path / "m.engine")
    with pytest.raises(BadInput, match=r"in: is a folder; name a file in it"):
        to_engine(small, tmp_path / "in")
    with pytest.raises(BadInput, match=r"s\.onnx/m\.engine: cannot be written \(.*\); choose another folder"):
        to_engine(small, small / "m.engine")


@rtx
def test_the_log_goes_where_it_is_asked(small: Path, tmp_path: Path) -> None:
    """By default it lies beside the engine without verbose messages; a given file takes all, also of a failed build."""
    to_engine(small, tmp_path / "m.engine")
    assert "[VERBOSE]" not in (tmp_path / "m.engine.log").read_text()
    (tmp_path / "m.engine.log").unlink()
    to_engine(small, tmp_path / "m.engine", settings=EngineSettings(log=tmp_path / "all.txt"))
    assert "[VERBOSE]" in (tmp_path / "all.txt").read_text()
    assert left(tmp_path) == ["all.txt", "m.engine", "m.engine.json"]


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no GPU")
@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
def test_a_stripped_engine_takes_its_weights_back(flavour: Any, files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """Stripping makes it smaller, refitting whole again, and the manifest follows."""
    pytest.importorskip(engine.MODULES[flavour])
    bare = to_engine(files["fp16"], tmp_path / "bare.engine", flavour, settings=EngineSettings(strip=True))
    whole = engine.refit_engine(bare, files["fp16"], tmp_path / "m.engine")
    assert (bare.manifest["stripped"], bare.manifest["refitted"], whole.manifest["refitted"]) == (True, False, True)
    assert bare.bytes < whole.bytes


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no GPU")
def test_timings_are_kept_and_used(files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """Classic TensorRT writes its timings beside the engine, hashed in the manifest, and takes them up again."""
    pytest.importorskip("tensorrt")
    first = to_engine(files["fp16"], tmp_path / "m.engine", "tensorrt").manifest
    cache = tmp_path / "m.engine.cache"
    assert first["timing_cache"] == {"file": cache.name, "sha256": sha256_of(cache)}
    again = to_engine(files["fp16"], tmp_path / "n.engine", "tensorrt", settings=EngineSettings(timing_cache=cache))
    assert again.manifest["timing_cache"]["file"] == cache.name
    assert again.manifest["engine_precisions"]
