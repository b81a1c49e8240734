"""Training in several processes: started here, or by `torchrun`, on one machine or more.

Each process opens the data and runs the whole pass on its part of every batch; all end with the same weights, and those
of the first are used.
"""

from __future__ import annotations

import importlib
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..compress.learning import Learning
from ..compress.passes import Pass, PassResult
from ..compress.prune import Prune
from ..compress.quantize import Quantize
from ..compress.surroundings import Crew, Surroundings
from ..models.data import Dataset
from ..models.errors import BadInput, ShipworthyError, ToolFailed
from ..models.model import Model, load_pt2, save_pt2
from .curves import Curves
from .recipe import Recipe
from .recipe_data import data_of

_LOOK_S = 0.5
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """A pass to be applied.

    Attributes:
        recipe: whose `data` and `train` count.
        settings: the pass.
        models: the model and its teachers.
        keep: where unfinished training is kept.
        curves: where the curves go; None: nowhere.
    """

    recipe: Recipe
    settings: Pass
    models: tuple[Model, ...]
    keep: Path
    curves: Path | None


def apply(job: Job, data: Dataset | None, told: Told) -> PassResult:
    """Apply a pass, in as many processes as the recipe and the command ask for where it trains.

    Raises:
        BadInput: as the pass; or what the recipe asks for is not there.
        ToolFailed: as the pass; or a process died.
    """
    part = job.recipe.train
    if not trains(job.settings):
        return _run(job, data, Crew(), told)
    _check_device(part.device)
    if size := _started():
        fabric = _joined(part.device)
        fabric.broadcast(_packed(job))
        return _run(job, data, Crew(fabric.global_rank, size), told)
    return _run(job, data, Crew(), told) if part.devices == 1 else _spawned(job, told)


def trains(settings: Pass) -> bool:
    """Whether a pass takes optimizer steps."""
    if isinstance(settings, Quantize):
        return settings.steps > 0
    return isinstance(settings, Learning) or (isinstance(settings, Prune) and settings.recover is not None)


def serves() -> bool:
    """Whether `torchrun` started this process, and it is not the first."""
    return _started() > 1 and int(os.environ["RANK"]) > 0


def serve(device: str) -> None:
    """Take part in the trainings of the first process until it is done."""
    fabric = _joined(device)
    while (packed := fabric.broadcast(None)) is not None:
        job = _unpacked(packed)
        try:
            _run(job, data_of(job.recipe), Crew(fabric.global_rank, fabric.world_size), _quiet)
        except ShipworthyError:
            continue  # the first process has it, too, and says so


@contextmanager
def leading(device: str) -> Iterator[None]:
    """Let the other processes that `torchrun` started go when the context ends."""
    try:
        yield
    finally:
        if _started() > 1:
            _joined(device).broadcast(None)


def _started() -> int:
    """Return how many processes `torchrun` started; 0 where it started none."""
    named = {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)
    size = int(os.environ["WORLD_SIZE"]) if named else 0
    return size if size > 1 else 0


_FABRICS: list[Any] = []


def _joined(device: str) -> Any:
    """Return the crew that `torchrun` started; joined once."""
    if not _FABRICS:
        here, size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        fabric = _fabric(device, "ddp", here, size // here)
        fabric.launch()
        _FABRICS.append(fabric)
    return _FABRICS[0]


def _fabric(device: str, strategy: str, devices: int, nodes: int = 1) -> Any:
    try:
        library: Any = importlib.import_module("lightning_fabric")
    except ImportError as fault:
        raise BadInput("train.devices: several processes need lightning-fabric, which is not installed: pip install 'shipworthy[train]'") from fault  # fmt: skip # noqa: E501
    kind = device.partition(":")[0]
    return library.Fabric(accelerator=kind, strategy=strategy, devices=devices, num_nodes=nodes)


def _check_device(device: str) -> None:
    if device != "cpu" and not torch.cuda.is_available():
        raise BadInput(f"train.device {device}: torch sees no such device; say `cpu`, or install torch for your GPU")


def _run(job: Job, data: Dataset | None, crew: Crew, told: Told) -> PassResult:
    """Apply the pass as one of a crew."""
    if data is not None and crew.from_first(lambda: data.fingerprint) != data.fingerprint:
        raise ToolFailed(f"train: process {crew.rank} has other data than the first; copy the same to every machine")
    part, trained = job.recipe.train, trains(job.settings)
    curves = Curves(job.curves) if job.curves and crew.rank == 0 and trained else None
    device = part.device if crew.alone or part.device == "cpu" else f"cuda:{os.environ.get('LOCAL_RANK', crew.rank)}"
    around = Surroundings(device, part.autocast, curves, crew) if trained else Surroundings()
    torch.manual_seed(getattr(job.settings, "seed", 0))
    try:
        return job.settings(job.models[0], data=data, teacher=job.models[1:], report=told, keep=job.keep, around=around)
    finally:
        if curves:
            curves.close()


def _spawned(job: Job, told: Told) -> PassResult:
    """Start processes of which each runs the pass, and wait for them."""
    part = job.recipe.train
    fabric = _fabric(part.device, "ddp_spawn", part.devices)
    with tempfile.TemporaryDirectory() as place:
        folder, over = Path(place), threading.Event()
        watcher = threading.Thread(target=_watch, args=(folder / "progress", over, told), daemon=True)
        watcher.start()
        try:
            fabric.launch(_child, _packed(job), str(folder))
        except Exception as fault:  # what torch.multiprocessing raises of a process that failed or died
            _raise_of(folder, fault)
        finally:
            over.set()
            watcher.join()
        facts, quantization, changed = pickle.loads((folder / "facts").read_bytes())  # noqa: S301 (a child of ours wrote it)
        model = load_pt2(folder / "made.pt2")
    return PassResult(replace(model, quantization=quantization), changed, facts)


def _child(fabric: Any, packed: bytes, place: str) -> None:
    """Run in a process that was started here."""
    folder, crew = Path(place), Crew(fabric.global_rank, fabric.world_size)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // crew.size))
    job = _unpacked(packed)
    try:
        found = _run(job, data_of(job.recipe), crew, _to_file(folder / "progress") if crew.rank == 0 else _quiet)
    except ShipworthyError as fault:
        (folder / f"fault-{crew.rank}").write_bytes(pickle.dumps((type(fault), str(fault))))
        raise
    if crew.rank == 0:
        save_pt2(found.model, folder / "made.pt2")
        (folder / "facts").write_bytes(pickle.dumps((dict(found.facts), found.model.quantization, found.changed)))


def _raise_of(folder: Path, fault: Exception) -> None:
    for held in sorted(folder.glob("fault-*")):
        kind, text = pickle.loads(held.read_bytes())  # noqa: S301 (a child of ours wrote it)
        raise kind(text) from fault
    last = [line for line in str(fault).splitlines() if line.strip()][-1:] or [type(fault).__name__]
    raise ToolFailed(f"train: a process of the training failed: {last[0].strip()}; the next run goes on from what is kept") from fault  # fmt: skip # noqa: E501


def _packed(job: Job) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        held = []
        for i, model in enumerate(job.models):
            save_pt2(model, Path(place, f"{i}.pt2"))
            held.append(Path(place, f"{i}.pt2").read_bytes())
    return pickle.dumps((job.recipe, job.settings, held, job.keep, job.curves))


def _unpacked(packed: bytes) -> Job:
    recipe, settings, held, keep, curves = pickle.loads(packed)  # noqa: S301 (the first process packed it)
    with tempfile.TemporaryDirectory() as place:
        models = []
        for i, raw in enumerate(held):
            Path(place, f"{i}.pt2").write_bytes(raw)
            models.append(load_pt2(Path(place, f"{i}.pt2")))
    return Job(recipe, settings, tuple(models), keep, curves)


def _to_file(path: Path) -> Told:
    last = 0.0

    def told(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > _LOOK_S:
            last = time.monotonic()
            path.write_text(f"{done} {total}")

    return told


def _watch(path: Path, over: threading.Event, told: Told) -> None:
    seen = ""
    while not over.wait(_LOOK_S):
        text = path.read_text() if path.exists() else ""
        if text != seen and len(parts := text.split()) == 2:
            seen = text
            told(int(parts[0]), int(parts[1]))


def _quiet(done: int, total: int) -> None:
    """Tell nobody."""


__all__ = ["Job", "apply", "leading", "serve", "serves", "trains"]
