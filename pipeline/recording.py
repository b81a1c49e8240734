"""Put what a build found into its record: plain data, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from ..models.data import Dataset
from ..profile.environment import environment
from ..profile.goals import GoalVerdict, Reading, Verdict
from ..profile.integer_share import IntegerShare
from .class_record import ClassScores
from .figure_rows import TITLES
from .judging import Evidence, quality
from .measuring import Measured
from .paying import Payment
from .recipe import Recipe
from .record import (
    SCHEMA,
    ArtifactRow,
    ComparisonRow,
    Figure,
    GoalRow,
    LatencyRow,
    ParityRow,
    PaysRow,
    Percentile,
    RunRecord,
    StepRow,
)
from .scoring import class_scores
from .stages import Exported
from .store import Stage, Store, tool_versions

if TYPE_CHECKING:
    from .steps import Course, Taken

SHIPS = "model"
_COUNTED = ("params", "macs", "weight_bytes")
_INNER = {
    "specs",
    "seconds",
    "quantization",
    "mixed_precision",
    *_COUNTED,
    *(f"{c}_{when}" for c in _COUNTED for when in ("before", "after")),
}
"""Facts of a pass that the record has elsewhere, or that only the pipeline needs."""


@dataclass(frozen=True)
class Findings:
    """Everything that one build found."""

    recipe: Recipe
    data: Dataset | None
    course: Course
    evidence: Evidence
    engine: Stage | None
    verdict: Verdict
    integers: tuple[IntegerShare, ...] = ()


def make_record(findings: Findings, store: Store, total_s: float) -> RunRecord:
    """Return the record; `total_s` is the whole run's time."""
    recipe, data, evidence = findings.recipe, findings.data, findings.evidence
    course = findings.course
    first = course.kept[0].model.facts["specs"]
    return RunRecord(
        schema=SCHEMA,
        outcome=findings.verdict.outcome.value,
        exit_code=findings.verdict.exit_code,
        recipe=recipe.to_dict(),
        recipe_sha256=recipe.sha256,
        model={k: first[k] for k in ("source", "params", "macs", "inputs", "outputs")},
        data=_data(recipe, data),
        steps=[_step(taken, evidence) for taken in course.kept],
        artifacts=_artifacts(findings),
        latency=[row for m in evidence.measured.values() for row in _latency(m, evidence)],
        comparisons=[row for m in evidence.measured.values() if (row := _comparison(m, evidence))],
        goals=[_goal(one) for one in findings.verdict.goals],
        environment=_environment(recipe),
        seconds={**store.seconds, "bookkeeping": store.bookkeeping_s, "total": total_s},
        notes=_notes(findings),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        figures=[row for m in evidence.measured.values() for row in m.figures],
        pays=[_pays(payment) for payment in course.payments],
        dropped=[_step(taken, evidence) for taken in course.dropped],
        integers=[share.to_dict() for share in findings.integers],
        mixed_precision=[
            {"name": taken.label, "dropped": taken.dropped, **taken.model.facts["mixed_precision"]}
            for taken in (*course.kept, *course.dropped)
            if "mixed_precision" in taken.model.facts
        ],
    )


def _environment(recipe: Recipe) -> dict[str, Any]:
    how = {"batch": recipe.profile.batch, "threads": recipe.profile.threads}
    return {**environment(), **how, "versions": tool_versions()}


def _data(recipe: Recipe, data: Dataset | None) -> dict[str, Any]:
    written = recipe.written[1]
    if data is None or written is None:
        return {}
    return {
        "source": written.source,
        "classes": list(data.classes),
        "train_examples": len(data.train),
        "test_examples": len(data.test),
        "preprocessing": data.preprocessing.to_dict(),
        "fingerprint": data.fingerprint,
        **data.facts,
    }


def _step(taken: Taken, evidence: Evidence) -> StepRow:
    facts, file = taken.model.facts, taken.exported
    latency = next((m.latency[file.step] for m in evidence.measured.values() if file.step in m.latency), None)
    return StepRow(
        name=taken.label,
        settings=_settings(taken),
        params=facts["params_after" if taken.step else "params"],
        macs=facts["macs_after" if taken.step else "macs"],
        file_bytes=file.file.facts["bytes"],
        accuracy=_share(file, "accuracy"),
        latency_p50_ms=_p50(latency.percentiles()[0]) if latency else None,
        seconds=taken.model.seconds,
        facts={k: v for k, v in facts.items() if k not in _INNER},
    )


def _settings(taken: Taken) -> dict[str, Any]:
    if taken.step is None:
        return {}
    plain: dict[str, Any] = asdict(taken.step.settings)  # type: ignore[call-overload]  # a dataclass
    return plain


def _pays(payment: Payment) -> PaysRow:
    ratio = None if payment.ratio is None else Figure(payment.ratio, payment.low, payment.high)
    return PaysRow(
        name=payment.label,
        against=payment.against,
        runtime=payment.runtime,
        outcome=payment.outcome,
        speedup=ratio,
        kept=payment.kept,
        line=payment.line,
        reasons=list(payment.reasons),
    )


def _p50(found: Any) -> Figure:
    return Figure(found.ms, found.low_ms, found.high_ms)


def _share(file: Exported, metric: str) -> Figure | None:
    found = file.checked.facts.get(metric)
    return Figure(**found) if found else None


def _artifacts(findings: Findings) -> list[ArtifactRow]:
    evidence = findings.evidence
    rows = [_artifact(name, file, evidence) for name, file in evidence.files.items()]
    if findings.engine:
        rows.append(_engine(findings.engine, evidence))
    return rows


def _classes(file: Exported, evidence: Evidence, ships: bool) -> ClassScores | None:
    if evidence.labels is None or not evidence.classes:
        return None
    changes = evidence.changes.get(file.target) if ships else None
    return class_scores(file, evidence.labels, evidence.classes, changes)


def _artifact(file_name: str, file: Exported, evidence: Evidence) -> ArtifactRow:
    facts, ships = file.file.facts, file_name != "baseline.onnx"
    scored = ships and "accuracy" in file.checked.facts
    drop = quality("accuracy_drop", evidence, file) if scored else None
    same = quality("agreement", evidence, file) if scored else None
    return ArtifactRow(
        name=file_name.removesuffix(".onnx"),
        file=file_name,
        sha256=facts["sha256"],
        bytes=facts["bytes"],
        precision=facts["precision"],
        target=facts["target"],
        parity=[_parity(row) for row in file.checked.facts["parity"]],
        accuracy=_share(file, "accuracy"),
        macro_recall=_share(file, "macro_recall"),
        agreement=_figure(same, 0.01) if same else None,
        accuracy_drop=_figure(drop) if drop else None,
        ships=ships,
        notes=_breach(file),
        details={"opset": facts["opset"], "tools": facts["tools"]} | _bad_layer(file),
        classes=_classes(file, evidence, ships),
    )


def _parity(row: dict[str, Any]) -> ParityRow:
    return ParityRow(output=row["name"], **{k: v for k, v in row.items() if k != "name"})


def _breach(file: Exported) -> list[str]:
    """Return what is known of why a file is not the graph it was made from."""
    facts = file.checked.facts
    layer = [facts["bad_layer"]["text"]] if "bad_layer" in facts else []
    return [f"parity: {said}" for said in (*layer, *facts.get("parity_notes", ()))]


def _bad_layer(file: Exported) -> dict[str, Any]:
    return {key: value for key, value in file.checked.facts.items() if key == "bad_layer"}


def _engine(engine: Stage, evidence: Evidence) -> ArtifactRow:
    manifest, source = engine.facts["manifest"], evidence.shipped["tensorrt"]
    return ArtifactRow(
        name="model.engine",
        file="model.engine",
        sha256=engine.facts["sha256"],
        bytes=engine.facts["bytes"],
        precision=source.file.facts["precision"],
        target=f"TensorRT {manifest['flavour']} {manifest['version']}",
        ships=True,
        notes=_engine_notes(manifest, evidence.measured.get("tensorrt")),
        details=manifest,
    )


def _engine_notes(manifest: Mapping[str, Any], measured: Measured | None) -> list[str]:
    """Say whether the engine has run, whose scores there are, and how far several builds of it agree."""
    notes = ["scores are those of model.tensorrt.onnx"]
    if measured is None or not measured.latency:
        notes = [f"built, not run: an engine runs only on an NVIDIA GPU; {notes[0]}"]
    builds = manifest.get("builds")
    if builds:
        equal = "are equal" if builds["identical"] else "differ"
        notes.append(f"{len(builds['sha256'])} builds of it {equal} byte by byte; this is the first")
    return notes


def _name(step: str, evidence: Evidence) -> str:
    """Rows about the file that ships carry its name, rows about earlier steps the step's."""
    return SHIPS if step == evidence.artifact.step else step


def _latency(measured: Measured, evidence: Evidence) -> list[LatencyRow]:
    return [
        LatencyRow(
            name=_name(step, evidence),
            runtime=measured.runtime,
            samples_ns=list(m.samples_ns),
            percentiles=[Percentile(p.q, p.ms, p.low_ms, p.high_ms) for p in m.percentiles()],
            peak_memory_bytes=measured.memory[step].peak_bytes if step in measured.memory else None,
            notes=list(m.notes),
        )
        for step, m in measured.latency.items()
    ]


def _comparison(measured: Measured, evidence: Evidence) -> ComparisonRow | None:
    baseline, artifact = evidence.baseline.step, evidence.artifact.step
    found = measured.comparison(baseline, artifact)
    if found is None:
        return None
    figure = Figure(found.ratio, found.low, found.high)
    return ComparisonRow(baseline, SHIPS, measured.runtime, figure, found.outcome, found.reason)


def _goal(verdict: GoalVerdict) -> GoalRow:
    goal, reading = verdict.goal, verdict.reading
    return GoalRow(
        metric=goal.metric,
        bound=goal.bound,
        on=goal.on,
        outcome=verdict.outcome.value,
        figure=_figure(reading),
        unit=reading.unit,
        margin=verdict.margin,
        reason=verdict.reason,
    )


def _figure(reading: Reading, factor: float = 1.0) -> Figure | None:
    if reading.value is None or not isfinite(reading.value):
        return None
    low, high = (None if x is None else x * factor for x in (reading.low, reading.high))
    return Figure(reading.value * factor, low, high)


def _notes(findings: Findings) -> list[str]:
    absent = [f"{m.runtime}: not measured: {m.absent}" for m in findings.evidence.measured.values() if m.absent]
    disturbed = {f"{m.runtime}: {note}" for m in findings.evidence.measured.values() for one in m.latency.values() for note in one.notes}  # fmt: skip # noqa: E501
    figures = [f"{row.runtime}, {TITLES[row.name]}: {note}" for m in findings.evidence.measured.values() for row in m.figures for note in row.data.get("notes", ())]  # fmt: skip # noqa: E501
    broken = [
        f"{taken.label}: its ONNX file differs from the graph by more than its tolerance"
        for taken in findings.course.kept
        if not all(row["passed"] for row in taken.exported.checked.facts["parity"])
    ]
    said = [*broken, *findings.course.notes, *absent, *sorted(disturbed), *figures]
    return [*said, findings.verdict.reason]
