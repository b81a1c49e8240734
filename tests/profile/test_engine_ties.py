"""What an engine is tied to is compared with what is here before TensorRT sees the file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from shipworthy.profile.engine_file import load_engine
from shipworthy.profile.engine_ties import Here, check_ties
from shipworthy.profile.errors import BadPlan

CONTENT = b"an engine"
RTX = {
    "schema": 2,
    "flavour": "rtx",
    "version": "1.7.1",
    "compute_capabilities": ["portable"],
    "platform": "Linux x86_64",
}
CLASSIC = RTX | {"flavour": "tensorrt", "version": "10.13.0", "compute_capabilities": ["8.6"]}
NAMED = RTX | {"compute_capabilities": ["8.6", "8.9"]}
BARE = RTX | {"stripped": True, "onnx": "m.onnx"}
COMPATIBLE = CLASSIC | {"version_compatible": True}


def here(flavour: str = "rtx", version: str = "1.7.1", capability: str = "8.6", platform: str = "Linux x86_64") -> Here:
    """Describe a machine."""
    return Here(flavour, version, lambda: capability, platform)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A file that no TensorRT would take."""
    path = tmp_path / "m.engine"
    path.write_bytes(CONTENT)
    return path


def told(engine: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest beside an engine."""
    whole = {"sha256": hashlib.sha256(CONTENT).hexdigest(), "engine": engine.name, **manifest}
    engine.with_name("m.engine.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("manifest", "machine"),
    [
        (RTX, here()),
        (RTX, here(capability="12.0", platform="Windows AMD64")),
        (NAMED, here(capability="8.9")),
        (RTX | {"schema": 1, "compute_capabilities": ["SM120"]}, here(capability="12.0")),
        (CLASSIC, here("tensorrt", "10.13.0")),
        (CLASSIC | {"schema": 1, "compute_capabilities": ["of the building GPU"]}, here("tensorrt", "10.13.0", "7.5")),
        (CLASSIC | {"hardware_compatibility": "ampere+"}, here("tensorrt", "10.13.0", "9.0")),
        (COMPATIBLE, here("tensorrt", "10.14.1")),
        (COMPATIBLE, here("tensorrt", "11.4.1")),
        (CLASSIC | {"stripped": True, "refitted": True}, here("tensorrt", "10.13.0")),
    ],
)
def test_what_can_run_is_let_through(engine: Path, manifest: dict[str, Any], machine: Here) -> None:
    """Equal versions and GPUs, and what the build made compatible, pass; only such engines bring code of their own."""
    told(engine, manifest)
    ties = check_ties(engine, CONTENT, machine)
    assert ties.details["manifest"] == "checked"
    assert ties.host_code == bool(manifest.get("version_compatible"))


@pytest.mark.parametrize(
    ("manifest", "machine", "words"),
    [
        (RTX, here("tensorrt", "11.4.1"), "got an engine of flavour rtx, wanted tensorrt; choose runtime rtx"),
        (RTX, here(version="1.8.0"), "got an engine of rtx 1.7.1, and 1.8.0 is installed; install that version"),
        (CLASSIC, here("tensorrt", "10.14.1"), "got an engine of tensorrt 10.13.0, and 10.14.1 is installed"),
        (COMPATIBLE, here("tensorrt", "10.9.0"), "got an engine of tensorrt 10.13.0, and 10.9.0 is installed"),
        (COMPATIBLE, here("tensorrt", "12.0.0"), "got an engine of tensorrt 10.13.0, and 12.0.0 is installed"),
        (RTX, here(capability="7.5"), "got a GPU of compute capability 7.5, and the engine is for 8.0 or later"),
        (NAMED, here(capability="8.0"), "capability 8.0, and the engine is for 8.6, 8.9; build it for this GPU"),
        (CLASSIC, here("tensorrt", "10.13.0", "8.9"), "capability 8.9, and the engine is for 8.6; build it for"),
        (CLASSIC, here("tensorrt", "10.13.0", platform="W"), "got an engine for Linux x86_64, and this is W; build it"),
        (BARE, here(), "put those of m.onnx in with `shipworthy engine m.onnx --refit m.engine"),
        (RTX | {"sha256": "0" * 64}, here(), "is not the engine of its manifest: got sha256 "),
        (RTX | {"schema": 3}, here(), "got schema 3, this program reads 1 and 2; build the engine again"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(engine: Path, manifest: dict[str, Any], machine: Here, words: str) -> None:
    """Another flavour, version, GPU, platform, file or schema is refused with what was wanted and what is there."""
    told(engine, manifest)
    with pytest.raises(BadPlan, match=re.escape(words)):
        check_ties(engine, CONTENT, machine)


def test_a_manifest_that_cannot_be_read_is_refused(engine: Path) -> None:
    """A broken manifest is a fault, an absent one is a note."""
    assert check_ties(engine, CONTENT, here()).details["manifest"].startswith("none beside the engine")
    for text in ("{", "[]", "{}"):
        engine.with_name("m.engine.json").write_text(text)
        with pytest.raises(BadPlan, match=r"m\.engine\.json: not an engine's manifest"):
            check_ties(engine, CONTENT, here())


def test_tensorrt_does_not_see_what_is_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check comes before the runtime is made."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    told(engine, RTX | {"version": "1.0"})

    def runtime(log: Any) -> Any:
        raise AssertionError("TensorRT was asked")

    monkeypatch.setattr(trt, "Runtime", runtime)
    with pytest.raises(BadPlan, match=rf"got an engine of rtx 1\.0, and {re.escape(trt.__version__)} is installed"):
        load_engine(trt, engine, lambda: "8.6")
