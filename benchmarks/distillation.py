"""Whether distillation wins: a student of a quarter of the MACs learns from labels alone, and by each distance.

The student is the reference network at half its width, drawn anew for each seed; the teacher the reference model. Every
row has the same steps, batches, augmentation and learning rate schedule, and is scored once on the 10,000 test images:
no setting is chosen by them. Differences are paired by seed; their interval is Student's over the seeds, so that it
holds the noise of training.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import (
    add_row,
    arguments,
    fewer_tests,
    interval,
    machine,
    machine_text,
    read_rows,
    table,
    write_results,
)

if TYPE_CHECKING:
    from shipworthy.models.data import Dataset
    from shipworthy.models.model import Model

LABELS = "labels alone"
_STAGES = ("layer1", "layer2", "layer3")
WAYS: Mapping[str, Mapping[str, Any]] = {
    LABELS: {"alpha": 0.0},
    "kl": {"distance": "kl"},
    "js": {"distance": "js"},
    "mse": {"distance": "mse"},
    "dkd": {"distance": "dkd", "beta": 2.0},
    "dist": {"distance": "dist"},
    "kl and FitNets": {"features": dict.fromkeys(_STAGES, 1.0)},
    "kl and attention transfer": {"features": dict.fromkeys(_STAGES, 1.0), "feature_distance": "attention"},
}
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t by the number of seeds."""

HEAD = ("learns by", "accuracy % (each seed)", "points above labels alone, 95 %", "verdict", "seconds")


@dataclass(frozen=True)
class Row:
    """One run: the share of test images classified rightly, and the time it took."""

    way: str
    seed: int
    accuracy: float
    seconds: float
    macs_share: float


def main() -> None:
    """Read the command line, train, score."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=600, help="of training, in every row (default: 600)")
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(_T95), help="runs of each row (default: 3)")
    parser.add_argument("--only", nargs="+", choices=WAYS, metavar="WAY", help="these beside labels alone")
    parser.add_argument("--rows", type=Path, help="file of finished runs: the same command again goes on")
    args = parser.parse_args()
    import shipworthy as sw

    data, teacher = sw.open_data("fashion-mnist", "bundled"), sw.load("reference:fashion-resnet20")
    data = fewer_tests(data, 200) if args.quick else data
    steps = 6 if args.quick else args.steps
    done = {(row.way, row.seed): row for row in (Row(**one) for one in read_rows(args.rows))}
    rows = []
    for seed in range(args.seeds):
        for way in (LABELS, *(one for one in args.only or WAYS if one != LABELS)):
            row = done.get((way, seed)) or run(way, seed, steps, data, teacher)
            if (way, seed) not in done:
                add_row(args.rows, asdict(row))
            rows.append(row)
            print(f"seed {seed}: {way}: {100 * row.accuracy:.2f} %", file=sys.stderr, flush=True)
    report(args.out, rows, steps, quick=args.quick)


def run(way: str, seed: int, steps: int, data: Dataset, teacher: Model) -> Row:
    """Train a student and score it."""
    import shipworthy as sw
    from shipworthy.models.summary import summarize

    learn = sw.Distill(steps=steps, seed=seed, **WAYS[way])
    found = learn(student(seed), data=data, teacher=teacher)
    share = summarize(found.model).macs / summarize(teacher).macs
    return Row(way, seed, scored(found.model, data), found.facts["seconds"], share)


def student(seed: int) -> Model:
    """Return the reference network at half its width, drawn by the seed."""
    import torch

    import shipworthy as sw
    from shipworthy.models.resnet import SmallResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = SmallResNet(width=16)
    return sw.capture(module, (torch.zeros(2, 1, 28, 28),), source="half the reference's width")


def scored(model: Model, data: Dataset) -> float:
    """Return the share of test images that a model classifies rightly."""
    import torch

    with torch.inference_mode():
        parts = torch.split(torch.arange(len(data.test)), 500)
        found = torch.cat([model.module(*data.inputs(data.test, part)).argmax(1) for part in parts])
    return float((found == data.test.labels).double().mean())


def gain(rows: Sequence[Row], way: str) -> tuple[float, float, float]:
    """Return points above labels alone: the mean over seeds of paired differences, with Student's 95 % interval."""
    base = {row.seed: row.accuracy for row in rows if row.way == LABELS}
    apart = [100 * (row.accuracy - base[row.seed]) for row in rows if row.way == way]
    mean = sum(apart) / len(apart)
    spread = math.sqrt(sum((one - mean) ** 2 for one in apart) / (len(apart) - 1) / len(apart))
    half = _T95[len(apart)] * spread
    return mean, mean - half, mean + half


def verdict(low: float, high: float) -> str:
    """Return what an interval of a gain says."""
    return "wins" if low > 0 else "loses" if high < 0 else "unclear"


def cells(rows: Sequence[Row], way: str) -> tuple[str, ...]:
    """Return a row of the table."""
    own = [row for row in rows if row.way == way]
    each = ", ".join(f"{100 * row.accuracy:.2f}" for row in own)
    mean = 100 * sum(row.accuracy for row in own) / len(own)
    seconds = f"{sum(row.seconds for row in own) / len(own):.0f}"
    first = (way, f"{mean:.2f} ({each})")
    if way == LABELS:
        return (*first, "", "", seconds)
    found = gain(rows, way)
    return (*first, interval(*found), verdict(*found[1:]), seconds)


def report(out: Path, rows: list[Row], steps: int, *, quick: bool) -> None:
    """Write the table and the data."""
    where, ways = machine(), list(dict.fromkeys(row.way for row in rows))
    seeds = len({row.seed for row in rows})
    text = [
        f"# Distillation against labels alone{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        f"A student of {rows[0].macs_share:.2f} of the teacher's MACs, {steps} steps each on the package's 8,000 "
        f"images, {seeds} seeds; scored on {'200' if quick else '10,000'} test images.\n",
        table(HEAD, (cells(rows, way) for way in ways)),
    ]
    gains = {way: gain(rows, way) for way in ways if way != LABELS}
    data = {"quick": quick, "machine": where, "steps": steps, "gains": gains, "rows": [*map(asdict, rows)]}
    write_results(out, "distillation", "\n".join(text), json.loads(json.dumps(data)))


if __name__ == "__main__":
    main()
