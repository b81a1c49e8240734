"""The main job: a recipe in, a verdict about files with hashes out."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from ..export.artifact import Precision
from ..export.engine import check_flavour
from ..export.onnx_store import external_files
from ..models.data import Dataset, open_data
from ..profile.goals import conclude
from .judging import Evidence, judge_goals
from .measuring import Measured, measure_stage
from .progress import Progress, Silent
from .recipe import Recipe, read_recipe
from .recipe_parts import Step
from .record import RunRecord
from .recording import Findings, make_record
from .report import write_reports
from .stages import Exported, capture_stage, check_stage, engine_stage, export_stage, pass_stage
from .store import Stage, Store, open_store


@dataclass(frozen=True)
class Taken:
    """The stages of one step: the model after it, and its file."""

    label: str
    step: Step | None
    model: Stage
    exported: Exported


def build(recipe: str | Path | Recipe, workdir: str | Path = "out", progress: Progress | None = None) -> RunRecord:
    """Compress, export, verify, measure and judge; write files and reports into the work folder.

    Finished stages of an earlier run with the same inputs are used again.

    Args:
        recipe: a file, or what `read_recipe` gave.
        workdir: where everything goes; made if absent.
        progress: told what is being done.

    Returns:
        The record of the run, which is also in `report.json`.

    Raises:
        BadInput: the recipe, the model, the data or the work folder cannot be used.
        ToolFailed: a tool that should work failed.
    """
    began = time.perf_counter()
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if recipe.export.tensorrt:
        check_flavour(recipe.export.tensorrt.flavour)
    with open_store(Path(workdir), progress or Silent()) as store:
        data = _open_data(recipe)
        steps = take_steps(store, recipe, data)
        files = [taken.exported for taken in steps]
        tensorrt = _tensorrt_file(store, recipe, steps[-1], data)
        engine = engine_stage(store, recipe, tensorrt.file) if tensorrt else None
        measured = {m.runtime: m for m in measure_stage(store, recipe, files, engine, data)}
        shipped = {"cpu": files[-1]} | ({"tensorrt": tensorrt} if tensorrt else {})
        labels = data.test.labels.numpy() if data else None
        evidence = Evidence(files[0], shipped, measured, labels)
        verdict = conclude(judge_goals(recipe.goals, evidence))
        findings = Findings(recipe, data, steps, evidence, engine, verdict)
        with store.bookkeeping(), store.delivery() as folder:
            _copy_files(folder, evidence, engine)
            record = make_record(findings, store, time.perf_counter() - began)
            write_reports(record, folder)
    return record


def take_steps(store: Store, recipe: Recipe, data: Dataset | None) -> list[Taken]:
    """Capture the model, then apply each pass; export and check what each step gives."""
    model = capture_stage(store, recipe, data)
    steps = [Taken("baseline", None, model, _exported(store, recipe, model, "baseline", data))]
    seen: Counter[str] = Counter()
    for step in recipe.compress:
        seen[step.name] += 1
        label = step.name if seen[step.name] == 1 else f"{step.name}-{seen[step.name]}"
        model = pass_stage(store, replace(step, name=label), model, steps[0].model, data)
        steps.append(Taken(label, step, model, _exported(store, recipe, model, label, data)))
    return steps


def _exported(store: Store, recipe: Recipe, model: Stage, label: str, data: Dataset | None) -> Exported:
    precision: Precision = "int8" if model.facts.get("quantization") else "fp32"
    file = export_stage(store, recipe, model, precision, "cpu", data)
    return Exported(label, "cpu", model, file, check_stage(store, model, file, data))


def _tensorrt_file(store: Store, recipe: Recipe, last: Taken, data: Dataset | None) -> Exported | None:
    precision = recipe.tensorrt_precision
    if precision is None:
        return None
    file = export_stage(store, recipe, last.model, precision, "tensorrt", data)
    return Exported(last.label, "tensorrt", last.model, file, check_stage(store, last.model, file, data))


def _open_data(recipe: Recipe) -> Dataset | None:
    part = recipe.data
    if part is None:
        return None
    shape = recipe.model.input
    size = (shape[-2], shape[-1]) if shape and len(shape) == 3 and Path(part.source).is_dir() else None
    return open_data(part.source, part.root, size=size, mean=part.mean, std=part.std)


def _copy_files(folder: Path, evidence: Evidence, engine: Stage | None) -> None:
    """Put copies of the files under plain names where the user looks for them."""
    files = {name: file.path for name, file in evidence.files.items()} | {"model.pt2": evidence.artifact.model_file}
    if engine:
        files |= {name: engine.folder / name for name in ("model.engine", "model.engine.json")}
    # Weights beside an ONNX file are found by the name that it has for them, whatever it is called itself.
    files |= {beside.name: beside for file in evidence.files.values() for beside in external_files(file.path)}
    for name, source in files.items():
        shutil.copyfile(source, folder / name)


__all__ = ["Measured", "build", "take_steps"]
