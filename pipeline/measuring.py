"""The stage that measures: every step's file in every runtime, interleaved, and peak memory in a child process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.data import Dataset
from ..profile.compare import Comparison, compare_measurements
from ..profile.environment import comparison_key, environment
from ..profile.errors import RuntimeAbsent
from ..profile.measure import Measurement, interleave
from ..profile.memory import Memory, peak_memory
from ..profile.plan import Plan
from ..profile.runners import open_runner
from .recipe import Recipe
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
    plan = Plan(batch=part.batch, threads=part.threads, budget_s=part.budget_seconds)

    def make(folder: Path) -> Facts:
        inputs = _real_inputs(files[0], data, part.batch)
        seen = _interleaved(store, files, runtime, plan, inputs)
        held = {f.step: asdict(peak_memory(f.path, runtime, plan, inputs)) for f in (files[0], files[-1])}
        (folder / "latency.json").write_text(json.dumps({k: m.to_dict() for k, m in seen.items()}), encoding="utf-8")
        return {"memory": held}

    given = {
        "files": {f.step: f.file.facts["sha256"] for f in files},
        "plan": asdict(plan),
        "data": data.fingerprint if data else None,
        "environment": comparison_key(environment()),
    }
    return store.run(f"measure-{runtime}", given, make)


def _interleaved(
    store: Store, files: list[Exported], runtime: str, plan: Plan, inputs: dict[str, Any] | None
) -> dict[str, Measurement]:
    def report(share: float, _text: str) -> None:
        store.progress.advance(round(1000 * share), 1000)

    with ExitStack() as stack:
        runners = [stack.enter_context(open_runner(f.path, runtime, plan, inputs)) for f in files]
        seen = interleave(runners, plan, report)
    return {f.step: one for f, one in zip(files, seen, strict=True)}


def _real_inputs(file: Exported, data: Dataset | None, batch: int) -> dict[str, Any] | None:
    """Return the first test images, so that what is timed is what will be served; None lets the profiler draw."""
    if data is None:
        return None
    x, _ = data.batch(data.test, torch.arange(batch) % len(data.test))
    return {file.file.facts["inputs"][0]["name"]: np.ascontiguousarray(x.numpy())}


def _read(stage: Stage, runtime: str) -> Measured:
    rows = json.loads((stage.folder / "latency.json").read_text(encoding="utf-8"))
    latency = {step: Measurement.from_dict(row) for step, row in rows.items()}
    return Measured(runtime, latency, {step: Memory(**row) for step, row in stage.facts["memory"].items()})
