"""The stage that measures: every step's file in every runtime, interleaved, and peak memory in a child process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.data import Dataset
from ..profile.compare import Comparison, compare_measurements
from ..profile.environment import comparison_key, environment
from ..profile.errors import RuntimeAbsent
from ..profile.goals import Goal, Outcome
from ..profile.measure import Measurement, measure_all
from ..profile.memory import Memory, peak_memory
from ..profile.plan import Plan
from ..profile.sequential import Question
from ..profile.stopping import BUDGET, MAX_ROUNDS
from .recipe import Recipe
from .recipe_metrics import latency_quantile
from .stages import Exported
from .store import Facts, Stage, Store


@dataclass(frozen=True)
class Measured:
    """What was measured in one runtime, by step; `absent` says why there is nothing."""

    runtime: str
    latency: Mapping[str, Measurement]
    memory: Mapping[str, Memory]
    absent: str | None = None

    def comparison(self, baseline: str, artifact: str) -> Comparison | None:
        """Return the paired ratio of two steps, None where either was not measured."""
        if baseline == artifact or not {baseline, artifact} <= set(self.latency):
            return None
        return compare_measurements(self.latency[baseline], self.latency[artifact], self.latency[baseline].plan.same_margin)  # fmt: skip # noqa: E501


def measure_stage(store: Store, recipe: Recipe, files: list[Exported], data: Dataset | None) -> list[Measured]:
    """Measure latency of all steps and memory of the first and last, in every runtime of the recipe."""
    return [_measured(store, recipe, name, files, data) for name in recipe.profile.runtimes]


def _measured(store: Store, recipe: Recipe, runtime: str, files: list[Exported], data: Dataset | None) -> Measured:
    try:
        return _read(_runtime_stage(store, recipe, runtime, files, data), runtime)
    except RuntimeAbsent as fault:
        # No finished stage: the next run looks again.
        return Measured(runtime, {}, {}, str(fault))


def _runtime_stage(store: Store, recipe: Recipe, runtime: str, files: list[Exported], data: Dataset | None) -> Stage:
    part = recipe.profile
    asked = questions(recipe.goals, runtime, len(files))
    plan = Plan(batch=part.batch, threads=part.threads, budget_s=part.budget_seconds)

    def make(folder: Path) -> Facts:
        inputs = _real_inputs(files[0], data, part.batch)
        seen = _interleaved(store, files, runtime, plan, inputs, asked)
        held = {f.step: asdict(peak_memory(f.path, runtime, plan, inputs)) for f in (files[0], files[-1])}
        (folder / "latency.json").write_text(json.dumps({k: m.to_dict() for k, m in seen.items()}), encoding="utf-8")
        return {"memory": held}

    given = {
        "files": {f.step: f.file.facts["sha256"] for f in files},
        "plan": asdict(plan),
        "data": data.fingerprint if data else None,
        "environment": comparison_key(environment()),
    }
    stage = store.run(f"measure-{runtime}", given, make)
    if _ended_too_soon(list(_latency(stage).values()), asked):
        return store.run(f"measure-{runtime}", given | {"goals": [asdict(one.goal) for one in asked]}, make)
    return stage


def _ended_too_soon(seen: Sequence[Measurement], asked: Sequence[Question]) -> bool:
    """Tell whether sampling once ended, for goals that were others then, before these were decided."""
    if seen[0].stop_reason in (BUDGET, MAX_ROUNDS):
        return False
    series = [one.samples_ns for one in seen]
    return any(question.outcome(series, seen[0].tail) is Outcome.UNCLEAR for question in asked)


def questions(goals: Sequence[Goal], runtime: str, files: int) -> tuple[Question, ...]:
    """Return what samples decide: goals on latency and speed-up in this runtime, of the last file against the first."""
    here = [goal for goal in goals if goal.on == runtime]
    latency = [Question(goal, files - 1, quantile) for goal in here if (quantile := latency_quantile(goal.metric))]
    return (
        *latency,
        *(Question(goal, files - 1, against=0) for goal in here if goal.metric == "speedup" and files > 1),
    )


def _interleaved(
    store: Store,
    files: list[Exported],
    runtime: str,
    plan: Plan,
    inputs: dict[str, Any] | None,
    asked: Sequence[Question],
) -> dict[str, Measurement]:
    def report(share: float, _text: str) -> None:
        store.progress.advance(round(1000 * share), 1000)

    paths = [file.path for file in files]
    seen = measure_all(paths, runtime, plan, inputs, questions=asked, report=report)
    return {f.step: one for f, one in zip(files, seen, strict=True)}


def _real_inputs(file: Exported, data: Dataset | None, batch: int) -> dict[str, Any] | None:
    """Return the first test images, so that what is timed is what will be served; None lets the profiler draw."""
    if data is None:
        return None
    x, _ = data.batch(data.test, torch.arange(batch) % len(data.test))
    return {file.file.facts["inputs"][0]["name"]: np.ascontiguousarray(x.numpy())}


def _read(stage: Stage, runtime: str) -> Measured:
    return Measured(runtime, _latency(stage), {step: Memory(**row) for step, row in stage.facts["memory"].items()})


def _latency(stage: Stage) -> dict[str, Measurement]:
    rows = json.loads((stage.folder / "latency.json").read_text(encoding="utf-8"))
    return {step: Measurement.from_dict(row) for step, row in rows.items()}
