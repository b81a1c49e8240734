"""Build a TensorRT engine from an ONNX file, in a child process, with a manifest of what it is tied to."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..models.errors import BadInput, MissingRuntime, ToolFailed
from ..models.files import sha256_of
from .artifact import EngineArtifact
from .engine_files import copy_to, put_in_place, workspace
from .engine_manifest import SCHEMA, dumps, manifest_path, platform, read_manifest
from .engine_process import Limits, run_job
from .engine_progress import TOTAL
from .engine_settings import FAULTS, EngineSettings, Flavour, check_batches, check_settings
from .onnx_read import check_file_safe
from .onnx_sparsity import read_sparsity

Report = Callable[[int, int], object]
"""Called with how much is done, and of how much."""

MODULES: dict[Flavour, str] = {"rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class _Order:
    """What is to be made: of which file, for whom, where, and who is told."""

    source: Path
    path: Path
    flavour: Flavour
    limits: Limits
    log: Path
    report: Report

    @property
    def job(self) -> dict[str, Any]:
        """What every job of the child says."""
        return {"onnx": str(self.source), "module": MODULES[self.flavour], "flavour": self.flavour}


@dataclass(frozen=True)
class _Made:
    """An engine in the folder where it was made, what the child told of it, and seconds."""

    file: Path
    facts: Mapping[str, Any]
    seconds: float


def to_engine(  # noqa: PLR0913 (the first five were there before the settings were)
    onnx: str | PathLike[str],
    path: str | Path,
    flavour: Flavour = "rtx",
    batches: tuple[int, int, int] = (1, 1, 32),
    timeout_s: float = 900.0,
    settings: EngineSettings | None = None,
    report: Report = lambda done, total: None,
) -> EngineArtifact:
    """Build an engine; beside it `<path>.json` becomes its manifest and `<path>.log` TensorRT's log.

    TensorRT for RTX builds without a GPU (its kernels are compiled where the engine is loaded); classic TensorRT
    needs the GPU it builds for, and keeps its timings in `<path>.cache` for later builds. Where the file has 2:4
    weights, the builder may choose kernels made for them (`SPARSE_WEIGHTS`); the manifest says so. After any failure
    the engine and manifest that were there before are still there, whole.

    Args:
        onnx: a typed ONNX file: floating point, or int8 with `target="tensorrt"`.
        path: where to.
        flavour: `rtx` or `tensorrt`.
        batches: least, usual and largest batch of inputs whose shapes `settings` does not give.
        timeout_s: the child process is ended after so many seconds.
        settings: everything else; `EngineSettings()` if None.
        report: told how far the build is.

    Raises:
        MissingRuntime: the flavour is not installed (the message names the extra), or the build needs a GPU.
        BadInput: no such file, TensorRT's parser refuses the graph, a setting does not fit, or the folder cannot be
            written.
        ToolFailed: the build failed, broke its limit of time or memory, or the child process died.
    """
    source, path, settings = Path(fspath(onnx)), Path(path), settings or EngineSettings()
    check_flavour(flavour)
    check_batches(batches)
    check_settings(settings, flavour)
    _check_source(source)
    log = settings.log or path.with_name(f"{path.name}.log")
    order = _Order(source, path, flavour, Limits(timeout_s, settings.memory_bytes), log, report)
    sparsity = read_sparsity(source)
    told = {"batches": list(batches), "sparse": "2:4" in sparsity, "stripped": None, **settings.for_child()}
    with workspace(path) as folder:
        made = [_build(order, told, settings, folder / f"build{index + 1}") for index in range(settings.builds)]
        facts = {"sparsity": sparsity, **_asked(settings), **_timings(order, settings, made[0])}
        return _delivered(order, [(one, {**facts, **_builds(made)}) for one in made], settings.keep_builds, folder)


def refit_engine(
    stripped: str | PathLike[str],
    onnx: str | PathLike[str],
    path: str | Path,
    timeout_s: float = 900.0,
    report: Report = lambda done, total: None,
) -> EngineArtifact:
    """Put the weights of an ONNX file into an engine that was built without them. Not run on a GPU yet.

    Args:
        stripped: the engine, built with `strip` or `refittable`; its manifest beside it.
        onnx: the file it was built from; with `refittable` another of the same graph.
        path: where the whole engine goes; may be `stripped` itself.
        timeout_s: the child process is ended after so many seconds.
        report: told how far it is.

    Raises:
        MissingRuntime: the flavour is not installed, or there is no GPU to load the engine on.
        BadInput: no manifest, an engine that cannot be refitted, or a file with other weights or another graph.
        ToolFailed: refitting failed, ran out of time, or the child process died.
    """
    engine, source, path = Path(fspath(stripped)), Path(fspath(onnx)), Path(path)
    _check_source(source)
    old = read_manifest(engine)
    _check_refit(engine, old, source)
    check_flavour(old["flavour"])
    order = _Order(source, path, old["flavour"], Limits(timeout_s), path.with_name(f"{path.name}.log"), report)
    told = {"stripped": str(engine), "version": old["version"], "verbose": False}
    with workspace(path) as folder:
        made = _run(order, told, folder / "build1")
        return _delivered(order, [(made, {k: v for k, v in old.items() if k not in ("peak_bytes", "builds")})], False, folder)  # fmt: skip # noqa: E501


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


def _check_source(source: Path) -> None:
    if not source.is_file():
        raise BadInput(f"{source}: no such file; wanted an ONNX file")
    check_file_safe(source)


def _check_refit(engine: Path, manifest: Mapping[str, Any], source: Path) -> None:
    """Raise where the engine takes no weights, is not the manifest's, or would get others than it takes."""
    flags = manifest["flags"]
    if not {"STRIP_PLAN", "REFIT", "REFIT_IDENTICAL"} & set(flags):
        raise BadInput(f"{engine}: was not built to be refitted; build it with strip or refittable")
    if sha256_of(engine) != manifest["sha256"]:
        raise BadInput(f"{engine}: is not the engine of its manifest; build it again")
    if "REFIT" not in flags and sha256_of(source) != manifest["onnx_sha256"]:
        raise BadInput(f"{source}: is not the file that {engine.name} was built from ({manifest.get('onnx')}), whose weights alone it takes")  # fmt: skip # noqa: E501


def _build(order: _Order, told: Mapping[str, Any], settings: EngineSettings, folder: Path) -> _Made:
    # Every build begins with the timings of before, so that repeated builds show how far they spread.
    timings = {"timings": None, "timings_made": str(folder / "timings")}
    if order.flavour == "tensorrt":
        timings["timings"] = str(_cache(order, settings))
    part = int(folder.name.removeprefix("build")) - 1

    def report(done: int, total: int) -> None:
        order.report(part * total + done, settings.builds * total)

    return _run(_Order(order.source, order.path, order.flavour, order.limits, order.log, report), {**told, **timings}, folder)  # fmt: skip # noqa: E501


def _run(order: _Order, told: Mapping[str, Any], folder: Path) -> _Made:
    """Run one job of the child; its log is kept whatever comes of it."""
    folder.mkdir()
    made, log, began = folder / "engine", folder / "log", time.perf_counter()
    job = {**order.job, **told, "engine": str(made), "log": str(log)}
    try:
        answer = run_job(job, folder, order.limits, lambda done: order.report(done, TOTAL))
    except ToolFailed as fault:
        raise ToolFailed(f"{order.source}: {fault}{_see(order, log)}") from fault
    finally:
        copy_to(order.log, log)
    if "refused" in answer:
        raise _refusal(order, answer, log)
    return _Made(made, answer["made"], time.perf_counter() - began)


def _refusal(order: _Order, answer: Mapping[str, Any], log: Path) -> Exception:
    kind, words = answer["kind"], answer["refused"]
    if kind == "disk":
        return BadInput(f"{order.path}: {words}")
    if kind in FAULTS:
        return FAULTS[kind](f"{order.source}: {order.flavour} cannot build it: {words}")
    return ToolFailed(f"{order.source}: the engine build failed: {words}{_see(order, log)}")


def _see(order: _Order, log: Path) -> str:
    return f"; see {order.log}" if log.is_file() else ""


def _asked(settings: EngineSettings) -> dict[str, Any]:
    """Return what a manifest says of the settings."""
    return {
        "stripped": settings.strip,
        "refitted": False,
        "version_compatible": settings.version_compatible,
        "hardware_compatibility": settings.hardware,
        "settings": {
            "optimization_level": settings.optimization_level,
            "tf32": settings.tf32,
            "workspace_bytes": settings.workspace_bytes,
        },
    }


def _cache(order: _Order, settings: EngineSettings) -> Path:
    return settings.timing_cache or order.path.with_name(f"{order.path.name}.cache")


def _timings(order: _Order, settings: EngineSettings, made: _Made) -> dict[str, Any]:
    """Keep the timings of a build, and return what its manifest says of them."""
    file = made.file.with_name("timings")
    if not file.is_file():
        return {"timing_cache": None}
    copy_to(_cache(order, settings), file)
    return {"timing_cache": {"file": _cache(order, settings).name, "sha256": sha256_of(file)}}


def _builds(made: Sequence[_Made]) -> dict[str, Any]:
    """Say how far several builds of one file differ; nothing of one."""
    if len(made) == 1:
        return {}
    hashes = [sha256_of(one.file) for one in made]
    return {
        "builds": {
            "identical": len(set(hashes)) == 1,
            "sha256": hashes,
            "bytes": [one.file.stat().st_size for one in made],
            "seconds": [round(one.seconds, 3) for one in made],
        }
    }


def _delivered(
    order: _Order, made: Sequence[tuple[_Made, Mapping[str, Any]]], keep: bool, folder: Path
) -> EngineArtifact:
    """Write manifests and move everything to its place at once."""
    places = [order.path.with_name(f"{order.path.stem}.build{i}{order.path.suffix}") for i in range(2, len(made) + 1)]
    placed = list(zip([order.path, *(places if keep else [])], made, strict=False))
    moves: dict[Path, Path] = {}
    artifacts = []
    for place, (one, facts) in placed:
        manifest = {**facts, **_manifest(order, one, place)}
        text = one.file.with_name("manifest")
        text.write_text(dumps(manifest), encoding="utf-8")
        moves |= {place: one.file, manifest_path(place): text}
        artifacts.append(EngineArtifact(place, manifest["sha256"], manifest["bytes"], manifest))
    put_in_place(moves, folder)
    return artifacts[0]


def _manifest(order: _Order, made: _Made, place: Path) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "engine": place.name,
        "sha256": sha256_of(made.file),
        "bytes": made.file.stat().st_size,
        "flavour": order.flavour,
        "platform": platform(),
        "onnx": order.source.name,
        "onnx_sha256": sha256_of(order.source),
        "seconds": round(made.seconds, 3),
        **made.facts,
    }


__all__ = ["MODULES", "EngineSettings", "Flavour", "check_flavour", "manifest_path", "refit_engine", "to_engine"]
