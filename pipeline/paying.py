"""Whether a pass that claims speed brings any: its file against the one before it, interleaved on the device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..compress.quantize import Quantize
from ..models.data import Dataset
from ..models.schemes import WEIGHTS_ALONE
from ..profile.compare import compare_measurements
from ..profile.environment import comparison_key, environment
from ..profile.errors import RuntimeAbsent
from ..profile.goals import Goal
from ..profile.integer_share import IntegerShare, engine_share, integer_share
from ..profile.measure import measure_all
from ..profile.not_faster import look_into
from ..profile.plan import Plan
from ..profile.sequential import Question
from .measuring import real_inputs
from .recipe import Recipe
from .recipe_parts import CLAIM_SPEED, Step
from .stages import Exported
from .store import Facts, Stage, Store

SIZE_GOALS = ("size_mb", "size_ratio", "peak_memory_mb")
"""Goals that a smaller file serves, whatever its speed."""

SPEED_GOALS = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "speedup", "throughput")
"""Goals that a smaller file does not serve."""

HALF = "fp16"
"""The name of the step from fp32 to half precision, which is no pass of the recipe."""

_SHARE, _MOST_S = 0.2, 4.0
_WARMUP_S = 0.5
_Outcome = Literal["faster", "slower", "same", "unclear", "not compared"]


@dataclass(frozen=True)
class Payment:
    """What a pass brought.

    Attributes:
        label: of the pass.
        against: the step whose file it was compared with.
        runtime: where; None where nothing could be compared.
        ratio: latency before over latency after.
        low: lower end of its interval.
        high: upper end.
        kept: whether the model goes on with it.
        note: why it is kept although it is not known to be faster; what is lost by dropping it.
        reasons: why it is no faster.
    """

    label: str
    against: str
    runtime: str | None
    outcome: _Outcome
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    kept: bool = True
    note: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """All that in one line, without the reasons."""
        found, note = self._figure(), f"; {self.note}" if self.note else ""
        if not self.kept:
            return f"pass dropped: {self.label}: no faster{found}{note}"
        word = {"faster": "faster", "unclear": "speed-up unclear", "not compared": "not compared"}
        return f"{self.label}: {word.get(self.outcome, 'no faster')}{found}{note}"

    def _figure(self) -> str:
        if self.ratio is None:
            return ""
        ends = "" if self.low is None or self.high is None else f", {self.low:.2f}-{self.high:.2f}"
        return f" ({self.ratio:.2f}x{ends})"


def pays(
    store: Store, recipe: Recipe, step: Step, files: tuple[Exported, Exported], data: Dataset | None
) -> Payment | None:
    """Compare a pass's file with the file of the model before it, and say whether to go on with it.

    Args:
        store: keeps the comparison.
        recipe: its runtimes, batch, threads, budget and goals.
        step: the pass, under its label.
        files: before and after it.
        data: gives the inputs; None lets the profiler draw them.

    Returns:
        None for a pass that claims no speed.
    """
    label = files[1].step
    if step.name not in CLAIM_SPEED:
        return None
    runtime = _runtime(recipe, step.name)
    if runtime is None:
        told = "the recipe profiles no runtime that could run both files; kept"
        return Payment(label, files[0].step, None, "not compared", note=told)
    found = _compared(store, recipe, runtime, (label, *files), data)
    return _decided(found, recipe, step, files) if found.outcome in ("same", "slower") else found


def half_pays(store: Store, recipe: Recipe, files: tuple[Exported, Exported], data: Dataset | None) -> Payment | None:
    """Compare a half-precision file with the fp32 one where the recipe has both run on a GPU. Not run on one yet.

    Returns:
        None where the recipe names the precision itself, or profiles nothing that runs both.
    """
    part = recipe.export.tensorrt
    if part is None or part.precision is not None or "ort-cuda" not in recipe.profile.runtimes:
        return None
    found = _compared(store, recipe, "ort-cuda", (HALF, *files), data)
    return replace(found, kept=False) if found.outcome in ("same", "slower") else found


def _runtime(recipe: Recipe, name: str) -> str | None:
    """Return the runtime that decides: the CPU first, whose files these are; int8 for CPUs runs nowhere else."""
    able = ("ort-cpu",) if name == "quantize" else ("ort-cpu", "ort-cuda")
    return next((runtime for runtime in able if runtime in recipe.profile.runtimes), None)


def _decided(found: Payment, recipe: Recipe, step: Step, files: tuple[Exported, Exported]) -> Payment:
    """Drop a pass that is no faster, unless the recipe wants it for something else."""
    if step.insist:
        return replace(found, note="kept, as the recipe insists")
    before, after = (one.file.facts["bytes"] for one in files)
    served = [goal.metric for goal in recipe.goals if goal.metric in SIZE_GOALS]
    if served and after < before:
        return replace(found, note=f"kept for the size ({', '.join(served)})")
    if after < before and _is_for_size(step):
        return _smaller(found, recipe, f"{before / 1e6:.3g} to {after / 1e6:.3g} MB")
    return replace(found, kept=False)


def _is_for_size(step: Step) -> bool:
    return isinstance(step.settings, Quantize) and step.settings.scheme in WEIGHTS_ALONE


def _smaller(found: Payment, recipe: Recipe, sizes: str) -> Payment:
    """Keep what is for size and brought it, unless the recipe's goals are on speed alone."""
    missed = [goal.metric for goal in recipe.goals if goal.metric in SPEED_GOALS]
    if not missed:
        return replace(found, note=f"kept for the size, which weights alone are for ({sizes})")
    said = f"smaller ({sizes}), but the goals are on speed ({', '.join(missed)}): a goal on size or `insist` keeps it"
    return replace(found, kept=False, note=said)


def _compared(
    store: Store, recipe: Recipe, runtime: str, named: tuple[str, Exported, Exported], data: Dataset | None
) -> Payment:
    """Measure both files in turns until one is known to be faster, or a few seconds are over."""
    label, before, after = named
    plan = _plan(recipe)

    def make(folder: Path) -> Facts:
        inputs = real_inputs(before, data, plan.batch)
        return _compare(store, (before.path, after.path), runtime, plan, inputs, folder)

    key = {
        "files": [one.file.facts["sha256"] for one in (before, after)], "runtime": runtime, "plan": asdict(plan),
        "data": data.fingerprint if data else None, "environment": comparison_key(environment()),
    }  # fmt: skip
    try:
        facts = store.run(f"pays-{label}", key, make).facts
    except RuntimeAbsent as fault:
        # No finished stage: the next run looks again.
        return Payment(label, before.step, None, "not compared", note=f"{fault}; kept")
    note = "kept" if facts["outcome"] == "unclear" else ""
    return Payment(label, before.step, runtime, **{**facts, "reasons": tuple(facts["reasons"])}, note=note)


def _plan(recipe: Recipe) -> Plan:
    part = recipe.profile
    budget = min(_MOST_S, _SHARE * part.budget_seconds)
    return Plan(
        batch=part.batch, threads=part.threads, warmup_s=min(_WARMUP_S, budget), least_s=budget / 4, budget_s=budget,
        allow_fallback=part.allow_fallback,
    )  # fmt: skip


def _compare(
    store: Store, paths: tuple[Path, Path], runtime: str, plan: Plan, inputs: Mapping[str, Any] | None, folder: Path
) -> Facts:
    def report(share: float, _text: str) -> None:
        store.progress.advance(round(1000 * share), 1000)

    faster = Question(Goal("speedup", min=1.0, on=runtime), 1, against=0)
    first, second = measure_all(list(paths), runtime, plan, inputs, questions=(faster,), report=report)
    found = compare_measurements(first, second, plan.same_margin)
    (folder / "latency.json").write_text(json.dumps([first.to_dict(), second.to_dict()]), encoding="utf-8")
    reasons: Sequence[str] = ()
    if found.outcome in ("same", "slower"):
        _, reasons = look_into(paths[1], paths[0], runtime, plan, inputs)
    return {
        "outcome": found.outcome, "ratio": found.ratio, "low": found.low, "high": found.high, "reasons": list(reasons),
    }  # fmt: skip


def integers_of(
    store: Store, shipped: Mapping[str, Exported], engine: Stage | None, recipe: Recipe, data: Dataset | None
) -> list[IntegerShare]:
    """Return what the quantized files that ship do in integers: the CPU's, and the engine's as far as it is told."""
    on_cpu = _on_cpu(store, recipe, shipped["cpu"], data)
    quantized = engine is not None and shipped["tensorrt"].file.facts["precision"] == "int8"
    told = [engine_share(engine.facts["manifest"])] if engine is not None and quantized else []
    return [*([on_cpu] if on_cpu else []), *told]


def _on_cpu(store: Store, recipe: Recipe, file: Exported, data: Dataset | None) -> IntegerShare | None:
    if file.file.facts["precision"] != "int8":
        return None
    plan = Plan(batch=recipe.profile.batch, threads=recipe.profile.threads)

    def make(folder: Path) -> Facts:
        return integer_share(file.path, "ort-cpu", plan, real_inputs(file, data, plan.batch)).to_dict()

    key = {"file": file.file.facts["sha256"], "plan": asdict(plan), "environment": comparison_key(environment())}
    return IntegerShare.from_dict(store.run("integers", key, make).facts)
