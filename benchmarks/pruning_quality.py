"""Accuracy and latency at 2, 4 and 8 times fewer multiply-accumulates, beside Torch-Pruning with equal recovery.

Both tools prune the reference model to at most the same share of its MACs. What is left learns from the uncompressed
model by the same code, on the same images, for equally many steps. Settings of both were chosen on training images held
out (`--choose`); test images are for the final table only.
"""

from __future__ import annotations

import hashlib
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks import common
from shipworthy.benchmarks.common import arguments, fewer_tests, pruning_tool
from shipworthy.benchmarks.pruning_report import BASELINE, USUAL, How, Seen, report, report_choice
from shipworthy.benchmarks.pruning_tools import CANDIDATES, OURS, THEIRS, Setting

if TYPE_CHECKING:
    from shipworthy.models.data import Dataset, Split
    from shipworthy.models.model import Model

POINTS = {"2x": 1 / 2, "4x": 1 / 4, "8x": 1 / 8}
STEPS, SEEDS = 200, 3
CHOOSE_STEPS = 60
HELD_OUT = 5_000

RECOVERIES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    # As the example recovers (docs/decisions/0010). It starts from features as they are right after pruning, which
    # suits models that were refitted; of others, training diverges.
    "features": {
        "temperature": 20.0, "alpha": 1.0, "features": {"layer1": 2.0, "layer2": 2.0, "layer3": 2.0},
        "learning_rate": 0.1,
    },
}  # fmt: skip
"""Settings of `Distill`, the same for both tools."""

# Torch-Pruning's are the best of each point by `--choose`. Ours keep to widths by 8, which vectors are made of,
# whatever accuracy says of others.
CHOSEN: Mapping[str, Mapping[str, Setting]] = {
    "2x": {OURS: Setting(OURS, "reconstruction", "uniform", 8), THEIRS: Setting(THEIRS, "taylor", "global", 4)},
    "4x": {OURS: Setting(OURS, "reconstruction", "uniform", 8), THEIRS: Setting(THEIRS, "taylor", "global", 4)},
    "8x": {OURS: Setting(OURS, "reconstruction", "uniform", 8), THEIRS: Setting(THEIRS, "taylor", "isomorphic", 8)},
}


@dataclass(frozen=True)
class Run:
    """What makes a row: two runs that are equal give the same row."""

    point: str
    setting: Setting
    seed: int
    steps: int
    recovery: str
    images: str

    @property
    def key(self) -> str:
        """Return what tells the run from all others."""
        parts = (self.point, self.setting.tool, self.setting, self.recovery, f"{self.steps} steps", f"seed {self.seed}")
        return " | ".join(map(str, (*parts, self.images)))


@dataclass(frozen=True)
class Row:
    """What a run came to.

    Attributes:
        key: of the run.
        point: the target, such as `4x`.
        tool: which pruned.
        setting: how, in words.
        seed: of pruning and recovery.
        macs: left, per example.
        params: left.
        before: the share of images classified rightly after pruning, before recovery.
        answers: the class that the recovered model gives each image, one digit an image.
        prune_s: seconds that pruning took.
        recover_s: seconds that recovery took.
        file: the exported model, where one was.
    """

    key: str
    point: str
    tool: str
    setting: str
    seed: int
    macs: int
    params: int
    before: float
    answers: str
    prune_s: float
    recover_s: float
    file: str | None = None


@dataclass(frozen=True)
class Exam:
    """The uncompressed model, what to train on, the images that judge, and where files go (None: no files)."""

    model: Model
    data: Dataset
    split: Split
    folder: Path | None


def main() -> None:
    """Read the command line, run what is missing, report."""
    parser = arguments(__doc__)
    parser.add_argument("--choose", action="store_true", help="compare settings of both tools on images held out")
    parser.add_argument("--settings", nargs="+", default=["*"], help="to choose among: patterns of 'TOOL: SETTING'")
    parser.add_argument("--root", help="for --choose: the full Fashion-MNIST (default: where the system keeps it)")
    parser.add_argument("--only", nargs="+", choices=POINTS, default=list(POINTS), help="these points (default: all)")
    parser.add_argument("--steps", type=int, help=f"of recovery (default: {STEPS}, {CHOOSE_STEPS} to choose)")
    parser.add_argument("--seeds", type=int, help=f"runs of each tool at each point (default: {SEEDS}, 1 to choose)")
    parser.add_argument("--recovery", choices=RECOVERIES, default=USUAL, help="how both recover")
    parser.add_argument("--rows", type=Path, help="a file of rows: those in it are not taken again, new ones are added")
    parser.add_argument("--workdir", type=Path, default=Path("out/pruning_quality"), help="of the exported files")
    args = parser.parse_args()
    pruning_tool()
    if args.quick:
        args.only, args.steps, args.seeds = args.only[:1], args.steps or 4, args.seeds or 2
    if args.choose:
        choose(args)
    else:
        compare(args)


# --- both modes


def finished(runs: Sequence[Run], exam: Exam, file: Path | None) -> list[Row]:
    """Return the rows of all runs that can be done; those in the file are taken from it, others are added to it."""
    from shipworthy.models.errors import BadInput

    known = read_rows(file)
    rows: list[Row] = []
    for run in runs:
        row = known.get(run.key)
        if row is None or (exam.folder is not None and not Path(row.file or "").is_file()):
            try:
                row = done(run, exam)
            except BadInput as fault:
                print(run.key, fault, sep=" | ", flush=True)
                continue
            add_row(file, row)
        rows.append(row)
        print(run.key, f"{row.macs:,} MACs, {row.prune_s:.0f} s and {row.recover_s:.0f} s", sep=" | ", flush=True)
    return rows


def done(run: Run, exam: Exam) -> Row:
    """Prune, recover, and ask what is left."""
    import shipworthy as sw
    from shipworthy.benchmarks.pruning_tools import prune
    from shipworthy.benchmarks.recovery import answers
    from shipworthy.export.score import predict
    from shipworthy.models.metrics import accuracy

    began = time.perf_counter()
    pruned = prune(run.setting, POINTS[run.point], exam.model, exam.data, run.seed)
    pruned_at = time.perf_counter()
    before = accuracy(answers(pruned, exam.data, exam.split), exam.split.labels).value
    distill = sw.Distill(steps=run.steps, seed=run.seed, **RECOVERIES[run.recovery])
    result = distill(pruned, data=exam.data, teacher=exam.model)
    path = None
    if exam.folder is not None:
        path = exam.folder / f"{hashlib.sha256(run.key.encode()).hexdigest()[:16]}.onnx"
        exam.folder.mkdir(parents=True, exist_ok=True)
        found = predict(sw.to_onnx(result.model, path).path, exam.data, exam.split)
    else:
        found = answers(result.model, exam.data, exam.split).numpy()
    return Row(
        key=run.key, point=run.point, tool=run.setting.tool, setting=str(run.setting), seed=run.seed,
        macs=result.facts["macs_after"], params=result.facts["params_after"], before=before,
        answers="".join(map(str, found)), prune_s=pruned_at - began, recover_s=result.facts["seconds"],
        file=None if path is None else str(path),
    )  # fmt: skip


def read_rows(file: Path | None) -> dict[str, Row]:
    """Return the rows of a file by their key."""
    return {row.key: row for row in (Row(**found) for found in common.read_rows(file))}


def add_row(file: Path | None, row: Row) -> None:
    """Append a row to a file."""
    common.add_row(file, asdict(row))


# --- choosing


def choose(args: Namespace) -> None:
    """Compare settings of both tools on training images held out, each after a short recovery."""
    import shipworthy as sw
    from shipworthy.benchmarks.recovery import answers, held_out

    data, model = sw.open_data("fashion-mnist", "bundled"), sw.load("reference:fashion-resnet20")
    held = held_out(data, sw.open_data("fashion-mnist", args.root).train, 500 if args.quick else HELD_OUT)
    exam = Exam(model, data, held, None)
    runs = candidates(args, f"{len(held)} held out")
    if not runs:
        raise SystemExit(f"no setting matches {' or '.join(args.settings)}; e.g. '{THEIRS}: {CANDIDATES[-1]}'")
    rows, original = finished(runs, exam, args.rows), answers(model, data, held).numpy()
    how = How(runs[0].steps, args.recovery, args.quick)
    report_choice(args.out, rows, held.labels.numpy(), original, how)


def candidates(args: Namespace, images: str) -> list[Run]:
    """Return what is compared to choose; a smoke run takes one setting of each tool."""
    found = [next(one for one in CANDIDATES if one.tool == tool) for tool in (OURS, THEIRS)]
    return [
        Run(point, setting, seed, args.steps or CHOOSE_STEPS, args.recovery, images)
        for point in args.only
        for setting in (found if args.quick else CANDIDATES)
        if any(fnmatchcase(f"{setting.tool}: {setting}", pattern) for pattern in args.settings)
        for seed in range(args.seeds or 1)
    ]


# --- comparing


def compare(args: Namespace) -> None:
    """Run the chosen settings of both tools, time the files, write the table."""
    import shipworthy as sw

    whole = sw.open_data("fashion-mnist", "bundled")
    data = fewer_tests(whole, 500) if args.quick else whole
    exam = Exam(sw.load("reference:fashion-resnet20"), data, data.test, args.workdir)
    runs = chosen(args, f"{len(data.test)} test")
    rows = finished(runs, exam, args.rows)
    if len(rows) < len(runs):
        raise SystemExit(
            f"{len(runs) - len(rows)} of {len(runs)} runs cannot be done, see above: choose other settings"
        )
    seen = look(exam, args.workdir, rows, 5.0 if args.quick else 90.0)
    report(args.out, rows, seen, How(runs[0].steps, args.recovery, args.quick))


def chosen(args: Namespace, images: str) -> list[Run]:
    """Return the runs of the final table: by seed first, so that a run cut short has something of every point."""
    return [
        Run(point, CHOSEN[point][tool], seed, args.steps or STEPS, args.recovery, images)
        for seed in range(args.seeds or SEEDS)
        for point in args.only
        for tool in (OURS, THEIRS)
    ]


def look(exam: Exam, folder: Path, rows: Sequence[Row], budget_s: float) -> Seen:
    """Score the uncompressed file, and time it and both tools' first file of each point together."""
    import torch

    import shipworthy as sw
    from shipworthy.benchmarks.timing import profiled
    from shipworthy.export.score import score

    whole = sw.to_onnx(exam.model, folder / "uncompressed.onnx").path
    files = {f"{row.point} {row.tool}": Path(row.file) for row in reversed(rows) if row.file}
    x, _ = exam.data.batch(exam.split, torch.arange(1))
    latency = profiled({BASELINE: whole, **files}, x.numpy(), budget_s)
    size, found = sw.summarize(exam.model), score(whole, exam.data)
    return Seen(latency, size.macs, size.params, found.accuracy.value, found.labels)


if __name__ == "__main__":
    main()
