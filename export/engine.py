"""Build a TensorRT engine from an ONNX file, in a child process, with a manifest of what it is tied to."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from ..models.errors import BadInput, MissingRuntime, ToolFailed
from ..models.files import replacing, sha256_of, write_text
from .artifact import EngineArtifact
from .onnx_sparsity import read_sparsity

Flavour = Literal["rtx", "tensorrt"]
MODULES: dict[Flavour, str] = {"rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}


def to_engine(
    onnx: str | PathLike[str],
    path: str | Path,
    flavour: Flavour = "rtx",
    batches: tuple[int, int, int] = (1, 1, 32),
    timeout_s: float = 900.0,
) -> EngineArtifact:
    """Build an engine; beside it `<path>.json` becomes its manifest.

    TensorRT for RTX builds without a GPU (its kernels are compiled where the engine is loaded); classic TensorRT
    needs the GPU it builds for. Where the file has 2:4 weights, the builder may choose kernels made for them
    (`SPARSE_WEIGHTS`); the manifest says so.

    Args:
        onnx: a typed ONNX file: floating point, or int8 with `target="tensorrt"`.
        path: where to.
        flavour: `rtx` or `tensorrt`.
        batches: least, usual and largest batch of the optimization profile.
        timeout_s: the child process is ended after so many seconds.

    Raises:
        MissingRuntime: the flavour is not installed; the message names the extra.
        BadInput: no such file, or TensorRT's parser refuses the graph.
        ToolFailed: the build failed, ran out of time, or the child process died.
    """
    source, path = Path(fspath(onnx)), Path(path)
    check_flavour(flavour)
    if not source.is_file():
        raise BadInput(f"{source}: no such file")
    with replacing(path) as beside:
        manifest = _build(source, beside, flavour, batches, timeout_s)
        manifest = {"schema": 1, "engine": path.name, "sha256": sha256_of(beside), **manifest, "onnx_sha256": sha256_of(source)}  # fmt: skip # noqa: E501
    write_text(manifest_path(path), json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return EngineArtifact(path, manifest["sha256"], path.stat().st_size, manifest)


def check_flavour(flavour: Flavour) -> None:
    """Raise unless engines of this flavour can be built here.

    Raises:
        BadInput: no such flavour.
        MissingRuntime: it is not installed; the message names the extra.
    """
    if flavour not in MODULES:
        raise BadInput(f"flavour {flavour!r}: choose one of {', '.join(MODULES)}")
    if importlib.util.find_spec(MODULES[flavour]) is None:
        raise MissingRuntime(
            f"the engine flavour {flavour!r} is not installed: pip install 'shipworthy[{flavour}]'"
            + (" (needs the vendor's package index)" if flavour == "tensorrt" else "")
        )


def manifest_path(engine: Path) -> Path:
    """Return the place of an engine's manifest."""
    return engine.with_name(engine.name + ".json")


def _build(
    source: Path, made: Path, flavour: Flavour, batches: tuple[int, int, int], timeout_s: float
) -> dict[str, Any]:
    """Run the child; a crash there is a message here."""
    sparsity = read_sparsity(source)
    job = {"onnx": str(source), "engine": str(made), "module": MODULES[flavour], "batches": list(batches)}
    command = [sys.executable, "-m", "shipworthy.export.engine_child", json.dumps({**job, "sparse": "2:4" in sparsity})]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env={**os.environ}, check=False
        )
    except subprocess.TimeoutExpired as fault:
        raise ToolFailed(f"{source}: the engine build took over {timeout_s:.0f} s and was ended") from fault
    try:
        answer: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as fault:
        said = child.stderr.strip().splitlines()
        last = said[-1] if said else "it said nothing"
        raise ToolFailed(f"{source}: the engine builder died (exit {child.returncode}): {last}") from fault
    if "refused" in answer:
        raise BadInput(f"{source}: {flavour} cannot build it: {answer['refused']}")
    return {"flavour": flavour, "sparsity": sparsity, **answer}
