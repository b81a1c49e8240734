"""What measures: every step's file in every runtime, interleaved, peak memory in a child process, other figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

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
from .figure_stage import layers_within, take_figures
from .recipe import Recipe
from .recipe_metrics import latency_quantile
from .record import FigureRow
from .stages import Exported
from .store import Facts, Stage, Store
from .taking import Request, energy_of

Given = tuple[dict[str, Any] | None, str | None]
"""Real inputs, and the fingerprint of the data that they are of."""


@dataclass(frozen=True)
class Measured:
    """What was measured in one runtime, by step; `absent` says why there is nothing.

    `energy` is of the last step, as `Energy.to_dict` has it, or None where no goal asks for it; `figures` too are of
    that step, those that the recipe asks for.
    """

    runtime: str
    latency: Mapping[str, Measurement]
    memory: Mapping[str, Memory]
    absent: str | None = None
    energy: Mapping[str, Any] | None = None
    figures: Sequence[FigureRow] = ()

    def comparison(self, baseline: str, artifact: str) -> Comparison | None:
        """Return the paired ratio of two steps, None where either was not measured."""
        if baseline == artifact or not {baseline, artifact} <= set(self.latency):
            return None
        return compare_measurements(self.latency[baseline], self.latency[artifact], self.latency[baseline].plan.same_margin)  # fmt: skip # noqa: E501


@dataclass(frozen=True)
class Target:
    """A file to measure: the step it belongs to, and the runtime of the profiler that runs it."""

    step: str
    path: Path
    sha256: str
    runtime: str


def measure_stage(
    store: Store, recipe: Recipe, files: list[Exported], engine: Stage | None, data: Dataset | None
) -> list[Measured]:
    """Measure latency of all steps and memory of the first and last, in every runtime of the recipe.

    TensorRT runs the engine alone: the other steps have none.
    """
    inputs = real_inputs(files[0], data, recipe.profile.batch)
    fingerprint = data.fingerprint if data else None
    found = []
    for runtime in recipe.profile.runtimes:
        targets = _targets(runtime, files, engine)
        found.append(_measured(store, recipe, runtime, targets, (inputs, fingerprint)))
    return found


def _targets(runtime: str, files: list[Exported], engine: Stage | None) -> list[Target]:
    if runtime != "tensorrt":
        return [Target(file.step, file.path, file.file.facts["sha256"], runtime) for file in files]
    if engine is None:
        return []
    flavour = engine.facts["manifest"]["flavour"]
    return [Target(files[-1].step, engine.folder / "model.engine", engine.facts["sha256"], flavour)]


def _measured(store: Store, recipe: Recipe, runtime: str, targets: list[Target], given: Given) -> Measured:
    if not targets:
        return Measured(runtime, {}, {}, "the recipe exports no engine; add `tensorrt` to `export`")
    try:
        seen = _read(_runtime_stage(store, recipe, runtime, targets, given), runtime)
        asked = any(goal.metric == "energy_mj" and goal.on == runtime for goal in recipe.goals)
        energy = _energy(store, recipe, targets[-1], given) if asked else None
        return replace(seen, energy=energy, figures=_figures(store, recipe, seen, targets[-1], given))
    except RuntimeAbsent as fault:
        # No finished stage: the next run looks again.
        return Measured(runtime, {}, {}, str(fault))


def _runtime_stage(store: Store, recipe: Recipe, runtime: str, targets: list[Target], real: Given) -> Stage:
    inputs, fingerprint = real
    plan = _plan(recipe)
    asked = questions(recipe.goals, runtime, len(targets), plan.batch)

    def make(folder: Path) -> Facts:
        seen = _interleaved(store, targets, plan, inputs, asked)
        ends = {one.step: one for one in (targets[0], targets[-1])}
        held = {step: asdict(peak_memory(one.path, one.runtime, plan, inputs)) for step, one in ends.items()}
        (folder / "latency.json").write_text(json.dumps({k: m.to_dict() for k, m in seen.items()}), encoding="utf-8")
        return {"memory": held}

    given = {
        "files": {one.step: one.sha256 for one in targets},
        "plan": asdict(plan),
        "data": fingerprint,
        "environment": comparison_key(environment()),
    }
    stage = store.run(f"measure-{runtime}", given, make)
    if ended_too_soon(list(_latency(stage).values()), asked):
        return store.run(f"measure-{runtime}", given | {"goals": [asdict(one.goal) for one in asked]}, make)
    return stage


def _plan(recipe: Recipe) -> Plan:
    part = recipe.profile
    return Plan(
        batch=part.batch, threads=part.threads, budget_s=part.budget_seconds, allow_fallback=part.allow_fallback
    )


def _energy(store: Store, recipe: Recipe, target: Target, real: Given) -> Facts:
    """Measure the joules of one inference of the file that ships."""
    request = _request(recipe, target, real)

    def make(folder: Path) -> Facts:
        found = energy_of(request)
        if found.absent:
            raise NoCounter(found.absent)
        return found.to_dict()

    given = _of(target, real) | {"plan": asdict(request.plan), "at": comparison_key(environment())}
    try:
        return store.run(f"energy-{target.runtime}", given, make).facts
    except NoCounter as fault:
        return {"absent": str(fault)}


def _figures(store: Store, recipe: Recipe, seen: Measured, target: Target, real: Given) -> list[FigureRow]:
    """Take the other figures that the recipe asks for, of the file that ships."""
    if not recipe.profile.figures:
        return []
    request = layers_within(_request(recipe, target, real), seen.latency[target.step].p50_ms)
    return take_figures(store, seen.runtime, recipe.profile.figures, request, _of(target, real))


def _request(recipe: Recipe, target: Target, real: Given) -> Request:
    return Request(target.path, target.runtime, _plan(recipe), real[0], lambda share, text: None)


def _of(target: Target, real: Given) -> dict[str, Any]:
    return {"file": target.sha256, "data": real[1]}


class NoCounter(Exception):
    """No counter of energy can be read, so that there is no finished stage, and the next run looks again."""


def ended_too_soon(seen: Sequence[Measurement], asked: Sequence[Question]) -> bool:
    """Tell whether sampling once ended, for goals that were others then, before these were decided."""
    if seen[0].stop_reason in (BUDGET, MAX_ROUNDS):
        return False
    series = [one.samples_ns for one in seen]
    return any(question.outcome(series, seen[0].tail) is Outcome.UNCLEAR for question in asked)


def questions(goals: Sequence[Goal], runtime: str, files: int, batch: int) -> tuple[Question, ...]:
    """Return what samples decide in this runtime: goals on the last file's latency, and on its speed-up over the first.

    A goal on throughput is one on the mean: back to back, a batch takes that long.
    """
    last, found = files - 1, []
    for goal in (goal for goal in goals if goal.on == runtime):
        quantile = latency_quantile(goal.metric)
        if quantile is not None:
            found.append(Question(goal, last, quantile))
        if goal.metric == "speedup" and files > 1:
            found.append(Question(goal, last, against=0))
        if goal.metric == "throughput" and goal.min:
            found.append(Question(Goal("mean latency", max=1e3 * batch / goal.min, on=runtime), last, None))
    return tuple(found)


def _interleaved(
    store: Store, targets: list[Target], plan: Plan, inputs: dict[str, Any] | None, asked: Sequence[Question]
) -> dict[str, Measurement]:
    def report(share: float, _text: str) -> None:
        store.progress.advance(round(1000 * share), 1000)

    paths = [one.path for one in targets]
    seen = measure_all(paths, targets[0].runtime, plan, inputs, questions=asked, report=report)
    return {target.step: one for target, one in zip(targets, seen, strict=True)}


def real_inputs(file: Exported, data: Dataset | None, batch: int) -> dict[str, Any] | None:
    """Return test examples, so that what is timed is what will be served; None lets the profiler draw.

    They are the first, or, of sentences, those of about median length.
    """
    if data is None:
        return None
    inputs = data.inputs(data.test, data.test.usual(batch))
    named = zip(file.file.facts["inputs"], inputs, strict=True)
    return {spec["name"]: np.ascontiguousarray(x.numpy()) for spec, x in named}


def _read(stage: Stage, runtime: str) -> Measured:
    return Measured(runtime, _latency(stage), {step: Memory(**row) for step, row in stage.facts["memory"].items()})


def _latency(stage: Stage) -> dict[str, Measurement]:
    rows = json.loads((stage.folder / "latency.json").read_text(encoding="utf-8"))
    return {step: Measurement.from_dict(row) for step, row in rows.items()}
