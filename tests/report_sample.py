"""Invented run records for the tests of the reports: a realistic one and its awkward relatives."""

from __future__ import annotations

import random
from dataclasses import replace

from shipworthy.pipeline.class_record import ClassRow, ClassScores
from shipworthy.pipeline.record import (
    SCHEMA,
    ArtifactRow,
    ComparisonRow,
    Figure,
    GoalRow,
    LatencyRow,
    ParityRow,
    Percentile,
    RunRecord,
    StepRow,
)


def latency_row(name: str, median_ms: float, count: int = 3000) -> LatencyRow:
    """Return right-skewed invented latencies with a few outliers."""
    numbers = random.Random(name)
    samples = [int(1e6 * median_ms * numbers.lognormvariate(0, 0.02)) for _ in range(count)]
    samples[:: count // 12] = [int(one * numbers.uniform(1.3, 4)) for one in samples[:: count // 12]]
    ordered = sorted(samples)
    marks = [
        Percentile(
            q, ordered[int(q * count)] / 1e6, ordered[int(q * count) - 9] / 1e6, ordered[int(q * count) + 9] / 1e6
        )
        for q in (0.5, 0.9, 0.99)
    ]
    return LatencyRow(name, "ort-cpu", samples, marks, int((41 if name == "baseline" else 29.4) * 1e6))


def _parity(relative: float, agreement: float) -> list[ParityRow]:
    return [ParityRow("logits", 512, relative * 8, relative, 1 - relative**2, agreement, 0.15, True)]


def class_scores(count: int = 3) -> ClassScores:
    """Return invented scores of so many classes, the last of which is never predicted."""
    share, moved = Figure(0.9, 0.88, 0.92), Figure(-0.4, -0.9, 0.1)
    rows = [ClassRow(f"class {k}", 100, 100, share, share, share, moved, moved, moved) for k in range(count - 1)]
    rows.append(ClassRow("rare", 100, 0, Figure(0.0, 0.0, 0.04), None, Figure(0.0, 0.0, 0.04), moved, None, moved))
    cells = [(k, k, 90) for k in range(count - 1)] + [(k, (k + 1) % (count - 1), 10 + k) for k in range(count)]
    changes = dict.fromkeys(("macro_recall", "macro_precision", "macro_f1", "calibration_error"), moved)
    return ClassScores(rows, share, share, share, Figure(0.0, 0.0, 0.04), Figure(0.031, 0.025, 0.036), changes, cells)


def _steps() -> list[StepRow]:
    return [
        StepRow(
            "baseline",
            {},
            1_084_000,
            163_700_000,
            4_362_112,
            Figure(0.9493, 0.9449, 0.9535),
            Figure(2.31, 2.30, 2.33),
            2.4,
        ),
        StepRow(
            "prune",
            {"ratio": 0.5, "score": "taylor"},
            272_474,
            41_300_000,
            1_115_334,
            Figure(0.8120, 0.8042, 0.8196),
            Figure(0.661, 0.658, 0.664),
            14.2,
            {"groups": 11, "channels_removed": 304},
        ),
        StepRow(
            "distill",
            {"epochs": 12, "temperature": 4.0},
            272_474,
            41_300_000,
            1_115_334,
            Figure(0.9471, 0.9425, 0.9514),
            Figure(0.660, 0.657, 0.664),
            251.8,
        ),
        StepRow(
            "quantize",
            {"scheme": "int8", "calibration": 512},
            272_474,
            41_300_000,
            361_208,
            Figure(0.9459, 0.9413, 0.9502),
            Figure(0.302, 0.301, 0.304),
            6.1,
        ),
    ]


def _artifacts() -> list[ArtifactRow]:
    return [
        ArtifactRow(
            "baseline",
            "baseline.onnx",
            "a1" * 32,
            4_362_112,
            "fp32",
            "any",
            _parity(3e-7, 1.0),
            Figure(0.9493, 0.9449, 0.9535),
            Figure(0.9492, 0.9448, 0.9534),
        ),
        ArtifactRow(
            "compressed",
            "compressed.int8.cpu.onnx",
            "3fd0" * 16,
            361_208,
            "int8 (U8S8, per channel)",
            "cpu",
            _parity(0.043, 0.991),
            Figure(0.9459, 0.9413, 0.9502),
            Figure(0.9457, 0.9411, 0.9500),
            Figure(0.9721, 0.9687, 0.9752),
            Figure(0.34, 0.09, 0.61),
            True,
            classes=class_scores(),
        ),
        ArtifactRow(
            "tensorrt-rtx",
            "compressed.rtx.engine",
            "77be" * 16,
            702_000,
            "int8 (S8S8)",
            "tensorrt-rtx",
            [],
            notes=["built without a GPU, not run here"],
            details={"flavour": "rtx", "version": "1.2.0.54", "opset": 20},
        ),
    ]


def _goals() -> list[GoalRow]:
    return [
        GoalRow(
            "speedup",
            "at least 3",
            "ort-cpu",
            "met",
            Figure(7.62, 7.41, 7.83),
            "x",
            4.41,
            "whole interval above the bound",
        ),
        GoalRow(
            "latency_p50_ms",
            "at most 1",
            "ort-cpu",
            "met",
            Figure(0.302, 0.301, 0.304),
            "ms",
            0.696,
            "whole interval below the bound",
        ),
        GoalRow("size_ratio", "at least 10", None, "met", Figure(12.08), "x", 2.08, "exact"),
        GoalRow(
            "accuracy_drop",
            "at most 1",
            None,
            "met",
            Figure(0.34, 0.09, 0.61),
            "points",
            0.39,
            "whole interval below the bound; paired over 10,000 images",
        ),
        GoalRow(
            "peak_memory_mb",
            "at most 200",
            "ort-cpu",
            "met",
            Figure(29.4, 29.1, 29.9),
            "MB",
            170.1,
            "3 fresh processes",
        ),
    ]


def sample() -> RunRecord:
    """Return a record of a run that met its goals."""
    rows = [latency_row("baseline", 2.31), latency_row("compressed", 0.302)]
    recipe = {
        "shipworthy": 1,
        "model": {"source": "reference:fashion-resnet20"},
        "data": {"source": "fashion-mnist"},
        "compress": [
            {"prune": {"ratio": 0.5, "score": "taylor"}},
            {"distill": {"epochs": 12, "temperature": 4.0}},
            {"quantize": {"scheme": "int8", "calibration": 512}},
        ],
        "goals": {"speedup": {"min": 3.0, "on": "ort-cpu"}, "accuracy_drop": {"max": 1.0}},
    }
    return RunRecord(
        schema=SCHEMA,
        outcome="met",
        exit_code=0,
        recipe=recipe,
        recipe_sha256="c0ffee" * 10 + "1234",
        model={
            "source": "reference:fashion-resnet20",
            "task": "classification",
            "inputs": {"image": "float32 (batch, 1, 28, 28)"},
        },
        data={
            "source": "fashion-mnist",
            "train": "8,000 images of the package",
            "test": "10,000 images",
            "calibration": "512 training images",
        },
        steps=_steps(),
        artifacts=_artifacts(),
        latency=rows,
        comparisons=[
            ComparisonRow(
                "baseline", "compressed", "ort-cpu", Figure(7.62, 7.41, 7.83), "faster", "interval above 1.02"
            )
        ],
        goals=_goals(),
        environment={
            "cpu": "Intel Xeon Platinum 8481C, 2 cores",
            "threads": 1,
            "batch": 1,
            "os": "Linux 6.1",
            "versions": {"python": "3.11.9", "torch": "2.14.1", "onnxruntime": "1.23.0"},
        },
        seconds={"capture": 2.4, "prune": 14.2, "distill": 251.8, "quantize": 6.1, "measure": 31.0},
        notes=["The full training set was not found; the 8,000 images of the package were used."],
        finished_at="2026-01-31T12:00:00+00:00",
    )


def missed_and_unclear() -> RunRecord:
    """Return a record with a missed goal, one too close to call and one about an absent device."""
    goals = _goals()
    goals[0] = replace(
        goals[0], bound="at least 8", outcome="missed", margin=-0.17, reason="whole interval below the bound"
    )
    goals[3] = replace(
        goals[3],
        bound="at most 0.6",
        outcome="unclear",
        margin=-0.01,
        reason="the interval contains the bound after 10,000 images",
    )
    goals.append(
        GoalRow(
            "latency_p99_ms",
            "at most 0.4",
            "tensorrt",
            "unclear",
            None,
            "ms",
            None,
            "no NVIDIA GPU here; run the build on the device",
        )
    )
    return replace(sample(), outcome="missed", exit_code=1, goals=goals)


def bare() -> RunRecord:
    """Return a record of a build without data, compression, latency or goals."""
    artifact = ArtifactRow("model", "model.onnx", "0d" * 32, 46_800_000, "fp32", "any", ships=True)
    return RunRecord(
        SCHEMA, "unclear", 3, {}, "", {"source": "torchvision:resnet18"}, {}, [], [artifact], [], [], [], {}, {}, []
    )


def hostile() -> RunRecord:
    """Return a record whose every text tries to break out of its format."""
    evil = (
        "<script>alert(1)</script>|`x`\n# **bold** [a](http://evil.example/) @everyone \x00\x1b]\u202e\ud800 &amp; \"'"
    )
    good = sample()
    return replace(
        good,
        model={"source": evil},
        data={evil: [evil]},
        environment={evil: {evil: evil}},
        notes=[evil],
        recipe={evil: evil},
        steps=[replace(step, name=evil, settings={evil: evil}, facts={evil: [evil]}) for step in good.steps],
        artifacts=[
            replace(
                row,
                name=evil,
                file=evil,
                sha256=evil,
                precision=evil,
                target=evil,
                notes=[evil],
                details={evil: evil},
                classes=row.classes
                and replace(row.classes, rows=[replace(one, name=evil) for one in row.classes.rows]),
            )
            for row in good.artifacts
        ],
        latency=[replace(row, name=evil, runtime=evil, notes=[evil]) for row in good.latency],
        comparisons=[
            replace(row, baseline="b" + evil, artifact=evil, runtime=evil, reason=evil) for row in good.comparisons
        ],
        goals=[
            replace(goal, metric=evil + goal.metric, on=evil, bound=goal.bound + evil, unit=evil, reason=evil)
            for goal in good.goals
        ],
    )


def long_names() -> RunRecord:
    """Return a record with names of hundreds of characters, without spaces, and twelve steps."""
    good = missed_and_unclear()
    name = "a_very_long_name_without_any_space" * 9
    steps = [replace(step, name=f"{name}{place}", settings={name: name}) for place, step in enumerate(good.steps * 3)]
    return replace(
        good,
        model={"source": name},
        steps=steps,
        artifacts=[replace(row, name=name + row.name, file=f"{name}/{row.file}") for row in good.artifacts],
        latency=[replace(row, name=name + row.name, runtime=name) for row in good.latency],
        comparisons=[
            replace(row, baseline=name + row.baseline, artifact=name + row.artifact, runtime=name)
            for row in good.comparisons
        ],
        goals=[replace(goal, on=name, reason=name) for goal in good.goals],
        environment={name: name, "cpu": name},
    )
