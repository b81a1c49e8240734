"""The stages of a build, each a function from finished stages to a finished stage."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compress.distill import Distill
from ..export.artifact import Precision, Target
from ..export.engine import MODULES, to_engine
from ..export.onnx_file import EXAMPLES, OnnxSettings, to_onnx
from ..export.onnx_metadata import Notes, notes_of
from ..export.parity import Comparing, parity
from ..export.parity_text import breach_facts
from ..export.score import score
from ..models.data import Dataset
from ..models.data_fit import misfit
from ..models.errors import BadInput
from ..models.model import Model
from ..models.schemes import QUANTIZED
from ..models.sources import load
from ..models.summary import summarize
from ..profile.environment import comparison_key, environment
from ..profile.errors import ProfileError
from ..profile.plan import Plan
from .build_spread import spread_of_builds
from .crew import Job, apply, trains
from .curves import FOLDER, write_sizes
from .engine_part import engine_inputs, engine_settings
from .fixed_batch import fix_batch
from .kept_model import keep as keep_model
from .kept_model import recall
from .recipe import Recipe
from .recipe_checks import teacher_sources
from .recipe_hash import led_to
from .recipe_parts import ModelPart, Step
from .scoring import keep_scores, predictions_of
from .store import Facts, Stage, Store
from .user_files import model_hashes

PARITY_EXAMPLES = 256
CAPTURE = "capture"
_ANY_SIZE = ("torchvision:", "timm:")
"""Sources that make a model for images of the data's size."""

LAYERS = "-layers"
"""What ends the name of the stage that chooses the layers of a pass."""


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

    def predictions(self) -> NDArray[np.int64]:
        """Return the class of every test example as the file sees it."""
        return predictions_of(self.checked)


def capture_stage(store: Store, recipe: Recipe, data: Dataset | None) -> Stage:
    """Load and capture the model of the recipe."""
    part, written = recipe.model, recipe.written[0]
    shape = part.input
    if data and shape is None and part.source.startswith(_ANY_SIZE):
        # A pretrained stem is for colours; the pass that adapts the model fits it to the data's.
        shape = (3, *data.input_shape[1:]) if recipe.adapts else data.input_shape

    def make(folder: Path) -> Facts:
        model = load(part.source, weights=part.weights, input_shape=shape, classes=part.classes)
        if data and not recipe.adapts:
            _check_fit(model, data)
        model = replace(model, source=written.source)
        facts = asdict(summarize(model))
        keep_model(store, model, folder)
        return {"specs": facts, "params": facts["params"], "macs": facts["macs"]}

    # As the recipe names it and by content, so that a project that was moved keeps its stages.
    return store.run(CAPTURE, {"model": asdict(written), "shape": shape, "files": model_hashes(part)}, make)


def _check_fit(model: Model, data: Dataset) -> None:
    """Say before hours of work that the model and the data do not go together."""
    if fault := misfit(model, data):
        raise BadInput(f"{model.source}: {fault}")
    classes = model.outputs[0].shape[-1]
    if classes != len(data.classes):
        raise BadInput(
            f"{model.source} tells {classes} classes apart, {data.name} has {len(data.classes)}; choose other data, or "
            "set model.classes where the source lets you"
        )


def pass_stage(store: Store, step: Step, models: tuple[Stage, Stage], data: Dataset | None, recipe: Recipe) -> Stage:
    """Apply one compression pass to the first of two models, the second being the uncompressed one.

    Training that was killed goes on.
    """
    settings, (before, teacher) = step.settings, models
    sources = teacher_sources(settings, recipe.path.absolute().parent, _checked_before, ())
    inputs = {
        "before": before.key,
        "teacher": teacher.key,
        "settings": asdict(settings),  # type: ignore[call-overload]  # every pass is a dataclass, the base is not
        "data": data.fingerprint if data else None,
        "files": [model_hashes(ModelPart(source)) for source in sources],
    }
    if trains(settings) and (place := _other_place(recipe)):
        inputs["train"] = place
    keep = store.unfinished(step.name, inputs)

    def make(folder: Path) -> Facts:
        models = recall(store, before), recall(store, teacher)
        applied = replace(settings, teachers=sources) if isinstance(settings, Distill) else settings
        curves = store.root / FOLDER / step.name if recipe.train.tensorboard else None
        result = apply(Job(recipe, applied, models, keep, curves), data, store.progress.advance)
        if curves:
            place = recipe.labels.index(step.name) + 1
            write_sizes(curves.parent, place, result.facts["params_after"], result.facts["macs_after"])
        marked = keep_model(store, result.model, folder)
        shutil.rmtree(keep, ignore_errors=True)
        specs = {"specs": asdict(summarize(result.model))} if settings.adapts else {}
        return {**result.facts, **specs, "quantization": marked}

    return store.run(step.name, inputs, make)


def _other_place(recipe: Recipe) -> dict[str, Any]:
    """Return what of the place of training decides the weights, where it is not the usual one."""
    asked = {"device": recipe.train.device, "autocast": recipe.train.autocast, "devices": recipe.train.devices}
    return {} if asked == {"device": "cpu", "autocast": "off", "devices": 1} else asked


def _checked_before(*_: object) -> None:
    """Faults of sources were said when the recipe was read."""


def export_stage(
    store: Store, recipe: Recipe, step: Stage, precision: Precision, target: Target, data: Dataset | None = None
) -> Stage:
    """Write one step's model as ONNX; data tells its input and classes, and which values low precisions cannot hold."""
    part, label = recipe.export.onnx, step.name.removesuffix(LAYERS)
    batch = None if part.dynamic_batch else recipe.profile.batch
    notes = notes_of(data, led_to(recipe, label)) if data else Notes(led_to(recipe, label))
    settings = OnnxSettings(keep_fp32=part.keep_fp32, notes=notes)
    shown = data if precision not in ("fp32", *QUANTIZED) else None

    def make(folder: Path) -> Facts:
        model = recall(store, step)
        examples = shown.inputs(shown.train, shown.sample(EXAMPLES, 0)) if shown else None
        artifact = to_onnx(model, folder / "model.onnx", precision, target, part.opset, examples, settings)
        artifact = fix_batch(artifact, model, batch) if batch else artifact
        return artifact.to_dict() | {"path": artifact.path.name}

    name = f"export-{'baseline' if label == CAPTURE else label}" + ("-tensorrt" if target == "tensorrt" else "")
    inputs = {
        "step": step.key, "precision": precision, "target": target, "opset": part.opset, "batch": batch,
        "keep_fp32": part.keep_fp32, "notes": asdict(notes), "data": shown.fingerprint if shown else None,
    }  # fmt: skip
    return store.run(name, inputs, make)


def check_stage(store: Store, step: Stage, file: Stage, data: Dataset | None) -> Stage:
    """Compare the file with the graph it came from, and score it."""
    path = file.folder / "model.onnx"

    def make(folder: Path) -> Facts:
        model = recall(store, step)
        samples = labels = None
        if data:
            places = data.sample(PARITY_EXAMPLES, 0)
            given = zip(model.inputs, data.inputs(data.train, places), strict=True)
            samples, labels = {spec.name: x.numpy() for spec, x in given}, data.train.labels[places].numpy()
        found = parity(model, path, samples, file.facts["precision"], Comparing(labels))
        facts: Facts = {"parity": [{**asdict(o), "samples": found.samples} for o in found.outputs]} | breach_facts(
            found
        )
        if data:
            scored = score(path, data)
            facts |= keep_scores(scored, folder)
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

    settings = engine_settings(part, store.root / "tensorrt.cache")

    def make(folder: Path) -> Facts:
        source, place, told = file.folder / "model.onnx", folder / "model.engine", store.progress.advance
        engine = to_engine(source, place, part.flavour, batches, part.timeout_seconds, settings, told)
        return {"bytes": engine.bytes, "sha256": engine.sha256, "manifest": dict(engine.manifest)}

    inputs = {"file": file.facts["sha256"], "flavour": MODULES[part.flavour], "batches": batches}
    stage = store.run("engine", inputs | engine_inputs(part), make)
    if part.builds > 1:
        _tell_spread(store, recipe, stage)
    return stage


def _tell_spread(store: Store, recipe: Recipe, engine: Stage) -> None:
    """Say how far several builds lie apart: in bytes, and in latency where they can be run here."""
    manifest = engine.facts["manifest"]
    engines = sorted(engine.folder.glob("model*.engine"))

    def make(folder: Path) -> Facts:
        plan = Plan(batch=recipe.profile.batch, threads=recipe.profile.threads, budget_s=recipe.profile.budget_seconds)
        return spread_of_builds(engines, manifest["flavour"], plan).to_dict()

    equal = "equal" if manifest["builds"]["identical"] else "not equal"
    store.progress.note(f"{len(engines)} builds of the engine, {equal} byte by byte")
    try:
        key = {"engines": manifest["builds"]["sha256"], "at": comparison_key(environment())}
        stage = store.run("engine-spread", key, make)
        store.progress.note(f"their medians lie {stage.facts['between']:.1%} apart on {manifest['flavour']}")
    except ProfileError as fault:
        # No finished stage: the next run looks again.
        store.progress.note(f"their latency was not compared: {fault}")
