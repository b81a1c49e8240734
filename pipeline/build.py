"""The main job: a recipe in, a verdict about files with hashes out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from ..export.engine import check_flavour
from ..export.onnx_store import external_files
from ..models.data import Dataset
from ..profile.goals import conclude
from .judging import Evidence, judge_goals
from .measuring import measure_stage
from .paying import integers_of
from .progress import Progress, Silent
from .recipe import Recipe, read_recipe
from .recipe_data import data_of
from .record import RunRecord
from .recording import Findings, make_record
from .report import write_reports
from .scoring import changes_stage
from .stages import Exported, engine_stage
from .steps import take_steps, tensorrt_file
from .store import Facts, Stage, Store, open_store


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
        data = data_of(recipe)
        course = take_steps(store, recipe, data)
        files = [taken.exported for taken in course.kept]
        tensorrt = tensorrt_file(store, course, data)
        shipped = {"cpu": files[-1]} | ({"tensorrt": tensorrt} if tensorrt else {})
        engine = engine_stage(store, recipe, tensorrt.file) if tensorrt else None
        integers = integers_of(store, shipped, engine, recipe, data)
        measured = {m.runtime: m for m in measure_stage(store, recipe, files, engine, data)}
        labels, classes = (data.test.labels.numpy(), data.classes) if data else (None, ())
        changes = _changes(store, files[0], shipped, data)
        evidence = Evidence(files[0], shipped, measured, labels, classes, changes)
        verdict = conclude(judge_goals(recipe.goals, evidence))
        findings = Findings(recipe, data, course, evidence, engine, verdict, tuple(integers))
        with store.bookkeeping(), store.delivery() as folder:
            _copy_files(folder, evidence, engine, data)
            record = make_record(findings, store, time.perf_counter() - began)
            write_reports(record, folder)
    return record


def _changes(
    store: Store, baseline: Exported, shipped: Mapping[str, Exported], data: Dataset | None
) -> dict[str, Facts]:
    if data is None:
        return {}
    others = {target: file for target, file in shipped.items() if file.checked.key != baseline.checked.key}
    return {target: changes_stage(store, baseline, file, data).facts for target, file in others.items()}


def _copy_files(folder: Path, evidence: Evidence, engine: Stage | None, data: Dataset | None) -> None:
    """Put copies of the files under plain names where the user looks for them."""
    files = {name: file.path for name, file in evidence.files.items()} | {"model.pt2": evidence.artifact.model_file}
    files |= data.files if data else {}
    if engine:
        files |= {name: engine.folder / name for name in ("model.engine", "model.engine.json")}
    # Weights beside an ONNX file are found by the name that it has for them, whatever it is called itself.
    files |= {beside.name: beside for file in evidence.files.values() for beside in external_files(file.path)}
    for name, source in files.items():
        shutil.copyfile(source, folder / name)


__all__ = ["build", "take_steps"]
