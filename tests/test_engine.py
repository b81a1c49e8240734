"""Engines are built without a GPU, described by a manifest, and never left half-built."""

from __future__ import annotations

import importlib.util
import json
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
from shipworthy.export.engine import manifest_path, to_engine
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
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed"
)


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
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a tiny ONNX graph given as text."""

    def written(body: str) -> Path:
        text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[4, 3] x) => (float[4, 3] y) {{ {body} }}'
        path = tmp_path / "in" / "s.onnx"
        path.parent.mkdir()
        onnx.save(parser.parse_model(text), path)
        return path

    return written


@pytest.fixture
def small(write: Callable[[str], Path]) -> Path:
    """A file that is quick to build."""
    return write("y = Relu (x)")


@rtx
@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_engines_build_without_a_gpu(kind: str, files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """A typed file becomes an engine, and its manifest says what it was made of and what it takes."""
    made = to_engine(files[kind], tmp_path / "m.engine", batches=(1, 2, 8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.engine", "m.engine.json"]
    manifest = json.loads(manifest_path(made.path).read_text())
    assert manifest == made.manifest == made.to_dict()["manifest"]
    assert (manifest["schema"], manifest["engine"], manifest["flavour"]) == (1, "m.engine", "rtx")
    assert manifest["sha256"] == made.sha256 == sha256_of(made.path)
    assert manifest["onnx_sha256"] == files[kind].sha256
    assert made.bytes == made.path.stat().st_size > 1000
    assert manifest["inputs"] == [{"name": "x", "dtype": "FLOAT", "shape": [-1, 3, 8, 8]}]
    assert [o["name"] for o in manifest["outputs"]] == ["output"]
    assert manifest["profiles"] == {"x": [[1, 3, 8, 8], [2, 3, 8, 8], [8, 3, 8, 8]]}
    assert manifest["flags"] == ["STRONGLY_TYPED"]
    assert {"version", "layers", "compute_capabilities", "gpu", "driver", "cuda"} <= manifest.keys()


@rtx
def test_what_the_parser_refuses_is_the_users(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Unsigned activations, as in int8 files for CPUs, are refused with the parser's words, and leave no file."""
    source = write(UNSIGNED)
    with pytest.raises(BadInput, match=r"s\.onnx: rtx cannot build it: .*zero point"):
        to_engine(source, tmp_path / "m.engine")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@rtx
def test_a_build_that_takes_too_long_is_ended(small: Path, tmp_path: Path) -> None:
    """Past its time the child is ended, and nothing is left."""
    with pytest.raises(ToolFailed, match=r"s\.onnx: the engine build took over 0 s and was ended"):
        to_engine(small, tmp_path / "m.engine", timeout_s=0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_child_that_dies_is_a_message(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder that cannot start, or crashes, is reported with its last words."""
    monkeypatch.setitem(engine.MODULES, "rtx", "this")  # a module that is there and builds nothing
    with pytest.raises(ToolFailed, match=r"s\.onnx: the engine builder died \(exit 1\): AttributeError: .*Logger"):
        to_engine(small, tmp_path / "m.engine")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_missing_flavour_names_its_extra(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flavour that is not installed is answered with the command to install it; an unknown one with the choices."""
    monkeypatch.setitem(engine.MODULES, "tensorrt", "tensorrt_that_is_not_here")
    with pytest.raises(MissingRuntime, match=r"'tensorrt' is not installed: pip install 'shipworthy\[tensorrt\]'"):
        to_engine(small, tmp_path / "m.engine", flavour="tensorrt")
    with pytest.raises(BadInput, match="flavour 'trt': choose one of rtx, tensorrt"):
        to_engine(small, tmp_path / "m.engine", flavour="trt")  # type: ignore[arg-type]  # the point
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@rtx
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """No file, no engine."""
    with pytest.raises(BadInput, match=r"gone\.onnx: no such file"):
        to_engine(tmp_path / "gone.onnx", tmp_path / "m.engine")
