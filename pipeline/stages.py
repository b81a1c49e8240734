"""The stages of a build, each a function from finished stages to a finished stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..export.artifact import Precision, Target
from ..export.engine import MODULES, to_engine
from ..export.onnx_file import to_onnx
from ..export.parity import parity
from ..export.score import score
from ..models.data import Dataset
from ..models.errors import BadInput
from ..models.model import Model
from ..models.sources import load
from ..models.summary import summarize
from .fixed_batch import fix_batch
from .kept_model import keep, recall
from .recipe import Recipe
from .recipe_parts import Step
from .store import Facts, Stage, Store
from .user_files import model_hashes

PARITY_EXAMPLES = 256
CAPTURE = "capture"


@dataclass(frozen=True)
class Exported:
    """One ONNX file of one step, with the stages that made and checked it."""

    step: str
    target: Target
    model: Stage
    file: Stage
    checked: Stage

    @property
    def path(self) -> Path:
        """The file in its stage's folder."""
        return self.file.folder / "model.onnx"

    @property
    def model_file(self) -> Path:
        """The graph it was exported from."""
        return self.model.folder / "model.pt2"

    def predictions(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the class of every test example as the file sees it."""
        found: np.ndarray[Any, np.dtype[np.int64]] = np.load(self.checked.folder / "predictions.npy")
        return found


def capture_stage(store: Store, recipe: Recipe, data: Dataset | None) -> Stage:
    """Load and capture the model of the recipe."""
    part, written = recipe.model, recipe.written[0]
    shape = part.input or (data.input_shape if data and part.source.startswith("torchvision:") else None)

    def make(folder: Path) -> Facts:
        model = load(part.source, weights=part.weights, input_shape=shape, classes=part.classes)
        if data:
            _check_fit(model, data)
        model = replace(model, source=written.source)
        facts = asdict(summarize(model))
        keep(store, model, folder)
        return {"specs": facts, "params": facts["params"], "macs": facts["macs"]}

    # As the recipe names it and by content, so that a project that was moved keeps its stages.
    return store.run(CAPTURE, {"model": asdict(written), "shape": shape, "files": model_hashes(part)}, make)


def _check_fit(model: Model, data: Dataset) -> None:
    """Say before hours of work that the model and the data do not go together."""
    wanted, given = model.inputs[0].shape[1:], tuple(data.input_shape)
    if wanted != given:
        raise BadInput(
            f"{model.source} takes inputs of shape {wanted}, {data.name} gives {given}; choose other data, or set "
            "model.input where the source lets you"
        )
    classes = model.outputs[0].shape[-1]
    if classes != len(data.classes):
        raise BadInput(
            f"{model.source} tells {classes} classes apart, {data.name} has {len(data.classes)}; choose other data, or "
            "set model.classes where the source lets you"
        )


def pass_stage(store: Store, step: Step, before: Stage, teacher: Stage, data: Dataset | None) -> Stage:
    """Apply one compression pass."""
    settings = step.settings

    def make(folder: Path) -> Facts:
        torch.manual_seed(getattr(settings, "seed", 0))
        model = recall(store, before)
        result = settings(model, data=data, teacher=recall(store, teacher), report=store.progress.advance)
        marked = keep(store, result.model, folder)
        return {**result.facts, "quantization": marked}

    inputs = {
        "before": before.key,
        "teacher": teacher.key,
        "settings": asdict(settings),  # type: ignore[call-overload]  # every pass is a dataclass, the base is not
        "data": data.fingerprint if data else None,
    }
    return store.run(step.name, inputs, make)


def export_stage(store: Store, recipe: Recipe, step: Stage, precision: Precision, target: Target) -> Stage:
    """Write one step's model as ONNX."""
    opset = recipe.export.onnx.opset
    batch = None if recipe.export.onnx.dynamic_batch else recipe.profile.batch

    def make(folder: Path) -> Facts:
        model = recall(store, step)
        artifact = to_onnx(model, folder / "model.onnx", precision, target, opset)
        artifact = fix_batch(artifact, model, batch) if batch else artifact
        return artifact.to_dict() | {"path": artifact.path.name}

    label = "baseline" if step.name == CAPTURE else step.name
    name = f"export-{label}" + ("-tensorrt" if target == "tensorrt" else "")
    inputs = {"step": step.key, "precision": precision, "target": target, "opset": opset, "batch": batch}
    return store.run(name, inputs, make)


def check_stage(store: Store, step: Stage, file: Stage, data: Dataset | None) -> Stage:
    """Compare the file with the graph it came from, and score it."""
    path = file.folder / "model.onnx"

    def make(folder: Path) -> Facts:
        model = recall(store, step)
        samples = None
        if data:
            x, _ = data.batch(data.train, data.sample(PARITY_EXAMPLES, 0))
            samples = {model.inputs[0].name: x.numpy()}
        found = parity(model, path, samples, file.facts["precision"])
        facts: Facts = {"parity": [{**asdict(o), "samples": found.samples} for o in found.outputs]}
        if data:
            scored = score(path, data)
            np.save(folder / "predictions.npy", scored.predictions)
            facts |= {"accuracy": asdict(scored.accuracy), "macro_recall": asdict(scored.macro_recall)}
        return facts

    name = file.name.replace("export", "check", 1)
    inputs = {"step": step.key, "file": file.facts["sha256"], "data": data.fingerprint if data else None}
    return store.run(name, inputs, make)


def engine_stage(store: Store, recipe: Recipe, file: Stage) -> Stage | None:
    """Build the TensorRT engine that the recipe asks for."""
    part = recipe.export.tensorrt
    if part is None:
        return None
    low, high = recipe.export.onnx.dynamic_batch or (recipe.profile.batch,) * 2
    batches = (low, min(max(recipe.profile.batch, low), high), high)

    def make(folder: Path) -> Facts:
        engine = to_engine(file.folder / "model.onnx", folder / "model.engine", part.flavour, batches)
        return {"bytes": engine.bytes, "sha256": engine.sha256, "manifest": dict(engine.manifest)}

    inputs = {"file": file.facts["sha256"], "flavour": MODULES[part.flavour], "batches": batches}
    return store.run("engine", inputs, make)
