"""The main job beside an off-the-shelf pipeline glued by hand: latency, size and accuracy in one run.

Both start from the same trained model, recover on the same images for equally many steps of the same batch, and are
measured together: all files interleaved, once by this package's profiler and once by a bare loop in this script.
Accuracy is of the files in ONNX Runtime on all test images; drops are paired, image by image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import (
    EXAMPLE,
    arguments,
    fewer_tests,
    interval,
    machine,
    machine_text,
    pruning_tool,
    quick_recipe,
    table,
    write_results,
)
from shipworthy.benchmarks.timing import bare_loop, profiled

if TYPE_CHECKING:
    from shipworthy.export.score import Score
    from shipworthy.models.data import Dataset
    from shipworthy.pipeline.record import RunRecord
    from shipworthy.profile.measure import Measurement

BASELINE, OURS = "baseline fp32", "shipworthy int8"
GLUE = ("glue int8, S8S8 (default)", "glue int8, U8S8", "glue int8, U8S8, reduce_range")
HEAD = (
    "file",
    "bytes",
    "x smaller",
    "p50 ms",
    "speed-up, 95 %",
    "bare loop: ms",
    "speed-up",
    "accuracy %",
    "drop, 95 %",
)


@dataclass(frozen=True)
class Row:
    """What was found of one file. Intervals are `(value, low, high)`; the drop is in points against the baseline."""

    name: str
    bytes: int
    sha256: str | None
    p50_ms: float
    speedup: tuple[float, float | None, float | None]
    bare_p50_ms: float
    bare_speedup: float
    accuracy: tuple[float, float, float]
    drop: tuple[float, float, float]


@dataclass(frozen=True)
class Seen:
    """Everything measured, by file name in the table."""

    latency: Mapping[str, Measurement]
    bare_ns: Mapping[str, list[int]]
    scores: Mapping[str, Score]


def main() -> None:
    """Read the command line, run both pipelines, compare."""
    parser = arguments(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("out/main_job"), help="finished stages here are reused")
    parser.add_argument("--recipe", type=Path, default=EXAMPLE)
    parser.add_argument(
        "--data", default="bundled",
        help="training images of both: 'bundled' (8,000), 'recipe' (as the recipe says), or a folder",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=1000, help="of the bare loop")
    args = parser.parse_args()
    pruning_tool()
    rounds = 30 if args.quick else args.rounds
    recipe = quick_recipe(args.recipe, args.workdir) if args.quick else args.recipe
    record, data = build_ours(recipe, args.workdir / "ours", args.data)
    facts = glue_beside(record, data, args.workdir / "glue", args.quick)
    scored = fewer_tests(data, 1000) if args.quick else data
    paths = files(args.workdir)
    seen = measure_all(paths, scored, rounds, 5.0 if args.quick else 60.0)
    report(args.out, record, facts, paths, seen, quick=args.quick)


def build_ours(recipe_file: Path, workdir: Path, images: str) -> tuple[RunRecord, Dataset]:
    """Run `build`, with the training images that both pipelines use."""
    import shipworthy as sw

    recipe = sw.read_recipe(recipe_file)
    if recipe.data is None:
        raise SystemExit(f"{recipe_file}: has no data, so that there is nothing to compare")
    if images != "recipe":
        recipe = replace(recipe, data=replace(recipe.data, root=images))
    print(f"ours: build into {workdir}", flush=True)
    record = sw.build(recipe, workdir)
    assert recipe.data is not None
    return record, sw.open_data(recipe.data.source, recipe.data.root)


def glue_beside(record: RunRecord, data: Dataset, folder: Path, quick: bool) -> dict[str, Any]:
    """Build the glue with our steps and batch."""
    from shipworthy.benchmarks.glue import Glue, build_glue

    recovery = [step for step in record.steps if "batch" in step.settings and "steps" in step.facts]
    steps = sum(step.facts["steps"] for step in recovery)
    if not steps:
        raise SystemExit("the recipe has no distill pass, so that there is no budget to give to the other pipeline")
    settings = Glue(steps, recovery[0].settings["batch"], calibration=64 if quick else 512)
    return build_glue(settings, data, folder)


def files(workdir: Path) -> dict[str, Path]:
    """Return the files that are compared, by name."""
    from shipworthy.benchmarks.glue import FLOAT, S8S8, U8S7, U8S8

    ours, glue = workdir / "ours", workdir / "glue"
    made = {"glue fp32": FLOAT} | dict(zip(GLUE, (S8S8, U8S8, U8S7), strict=True))
    theirs = {name: glue / file for name, file in made.items()}
    return {BASELINE: ours / "baseline.onnx", **theirs, OURS: ours / "model.onnx"}


def measure_all(paths: Mapping[str, Path], data: Dataset, rounds: int, budget_s: float) -> Seen:
    """Score all files, then time them, on the first test image."""
    import torch

    from shipworthy.export.score import score

    scores = {name: score(path, data) for name, path in paths.items()}
    x, _ = data.batch(data.test, torch.arange(1))
    return Seen(profiled(paths, x.numpy(), budget_s), bare_loop(paths, x.numpy(), rounds), scores)


def rows_of(paths: Mapping[str, Path], seen: Seen) -> list[Row]:
    """Put together what was found of each file."""
    return [_row(name, path, seen) for name, path in paths.items()]


def _row(name: str, path: Path, seen: Seen) -> Row:
    from shipworthy.models.metrics import paired_drop
    from shipworthy.profile.stats import median_ratio_interval

    base, mine = seen.latency[BASELINE], seen.latency[name]
    ratio = median_ratio_interval(base.samples_ns, mine.samples_ns)
    score = seen.scores[name]
    drop = paired_drop(seen.scores[BASELINE].predictions, score.predictions, score.labels)
    bare, bare_base = seen.bare_ns[name], seen.bare_ns[BASELINE]
    return Row(
        name=name,
        bytes=path.stat().st_size,
        sha256=mine.sha256,
        p50_ms=mine.p50_ms,
        speedup=(ratio.value, ratio.low, ratio.high),
        bare_p50_ms=median(bare) / 1e6,
        bare_speedup=median(a / b for a, b in zip(bare_base, bare, strict=True)),
        accuracy=(score.accuracy.value, score.accuracy.low, score.accuracy.high),
        drop=(drop.value, drop.low, drop.high),
    )


def against_glue(seen: Seen) -> list[dict[str, Any]]:
    """Compare ours with each int8 file of the glue directly: paired in time, and image by image."""
    from shipworthy.models.metrics import paired_drop
    from shipworthy.profile.compare import compare_measurements

    found = []
    for name in GLUE:
        theirs, ours = seen.scores[name], seen.scores[OURS]
        ratio = compare_measurements(seen.latency[name], seen.latency[OURS], 0.02)
        drop = paired_drop(theirs.predictions, ours.predictions, ours.labels)
        times = (ratio.ratio, ratio.low, ratio.high)
        lower = (drop.value, drop.low, drop.high)
        found.append({"glue": name, "times_as_fast": times, "outcome": ratio.outcome, "drop": lower})
    return found


def report(
    out: Path, record: RunRecord, facts: dict[str, Any], paths: Mapping[str, Path], seen: Seen, *, quick: bool
) -> None:
    """Write the table and the data."""
    rows, where, direct = rows_of(paths, seen), machine(), against_glue(seen)
    ours_s = {step.name: step.seconds for step in record.steps}
    tests = len(seen.scores[OURS].labels)
    text = [
        f"# The main job beside glue{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        f"Recovery of both: {facts['steps']} steps of {facts['batch']} images, training set: "
        f"{record.data['training_set']}. It took {facts['seconds']['distill']:.0f} s in the glue and "
        f"{sum(s for name, s in ours_s.items() if 'distill' in name):.0f} s in ours. {tests:,} test images.\n",
        table(HEAD, (_cells(row, rows[0]) for row in rows)),
        *(_direct_line(one) for one in direct),
    ]
    data = {
        "quick": quick, "machine": where, "rows": [asdict(row) for row in rows], "against_glue": direct,
        "glue": facts, "ours_seconds": ours_s, "recipe": record.recipe["compress"], "test_images": tests,
        "training_set": record.data["training_set"], "rounds": len(seen.latency[OURS].samples_ns),
        "notes": list(seen.latency[OURS].notes),
    }  # fmt: skip
    write_results(out, "main_job", "\n".join(text), data)


def _cells(row: Row, base: Row) -> tuple[str, ...]:
    return (
        row.name, f"{row.bytes:,}", f"{base.bytes / row.bytes:.1f}", f"{row.p50_ms:.3f}",
        "-" if row is base else interval(*row.speedup),
        f"{row.bare_p50_ms:.3f}", f"{row.bare_speedup:.2f}", f"{100 * row.accuracy[0]:.2f}",
        "-" if row is base else interval(*row.drop),
    )  # fmt: skip


def _direct_line(one: dict[str, Any]) -> str:
    times, drop = interval(*one["times_as_fast"]), interval(*one["drop"])
    return f"Ours against {one['glue']}: {times} times as fast ({one['outcome']}), accuracy lower by {drop} points.\n"


if __name__ == "__main__":
    main()
