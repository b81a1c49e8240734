"""How trimming, pruning and distillation should be set, judged on training images held out; no test image is touched.

Each row is the example's recipe with some settings changed, trained on the 8,000 images of the package. What it is
worth is told by 10,000 images of the full training set that are not among those. The original was trained on the full
set, so its own accuracy there flatters it: rows compare with each other, not with the figures of a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import EXAMPLE, arguments, interval, machine, machine_text, table, write_results

if TYPE_CHECKING:
    import torch

    from shipworthy.models.data import Dataset, Split
    from shipworthy.models.metrics import Estimate
    from shipworthy.models.model import Model

Change = Mapping[str, Mapping[str, Any]]
"""By pass, the settings to change; `dict` values replace, they are not merged."""

STREAMS = {"layer2.*.conv2": 0.25, "layer3.*.conv2": 0.375}

VARIANTS: dict[str, Change] = {
    "the example": {},
    "no block removed": {"trim": {"blocks": ()}},
    "one block removed, half of every layer": {"trim": {"blocks": ("layer1.1",)}, "prune": {"layers": {}}},
    "one block removed, stage 2 narrower inside": {
        "trim": {"blocks": ("layer1.1",)},
        "prune": {"layers": {**STREAMS, "layer2.2.conv1": 0.75, "layer3.[02].conv1": 0.625}},
    },
    "no block removed, half of every layer": {"trim": {"blocks": ()}, "prune": {"layers": {}}},
    "no block removed, inside stage 2 three quarters left": {
        "trim": {"blocks": ()},
        "prune": {"layers": {"layer2.*.conv1": 0.25}},
    },
    "half of every layer": {"prune": {"layers": {}}},
    "no refit": {"trim": {"reconstruct": 0}, "prune": {"reconstruct": 0}},
    "scores l2": {"prune": {"score": "l2"}},
    "scores Taylor": {"prune": {"score": "taylor"}},
    "T = 4, labels 10 %": {"distill": {"temperature": 4.0, "alpha": 0.9}},
    "no features": {"distill": {"features": {}}},
    "features count a quarter, learning rate four times": {
        "distill": {"features": dict.fromkeys(("layer1", "layer2", "layer3"), 0.5), "learning_rate": 4.0}
    },
    "features count four times, learning rate halved": {
        "distill": {"features": dict.fromkeys(("layer1", "layer2", "layer3"), 8.0), "learning_rate": 0.5}
    },
    "T = 100": {"distill": {"temperature": 100.0}},
    "no mixup": {"distill": {"mixup": 0.0}},
    "learning rate halved": {"distill": {"learning_rate": 0.5}},
    "learning rate doubled": {"distill": {"learning_rate": 2.0}},
    "every batch new": {"distill": {"reuse": 1}},
    "every batch six times": {"distill": {"reuse": 6}},
}
"""Learning rates here are factors on the example's."""

HEAD = ("recipe", "MACs", "accuracy % before recovery", "after recovery", "agrees with the original %", "recovery s")
HELD_OUT = 10_000


@dataclass(frozen=True)
class Row:
    """What one variant came to. Shares are `(value, low, high)`."""

    name: str
    macs: int
    before: tuple[float, float, float]
    accuracy: tuple[float, float, float]
    agreement: tuple[float, float, float]
    seconds: float


@dataclass(frozen=True)
class Exam:
    """What to train on, the images held out, and the class that the original model gives each of them."""

    data: Dataset
    held: Split
    original: torch.Tensor


def main() -> None:
    """Read the command line, run the variants."""
    parser = arguments(__doc__)
    parser.add_argument("--root", help="the full Fashion-MNIST (default: where the system or torchvision keeps it)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="NAME", help="these rows; default: all")
    parser.add_argument("--steps", type=int, default=400, help="of recovery, in every row")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row")
    args = parser.parse_args()
    import shipworthy as sw

    data = sw.open_data("fashion-mnist", "bundled")
    held = held_out(data, sw.open_data("fashion-mnist", args.root).train, 500 if args.quick else HELD_OUT)
    model = sw.load("reference:fashion-resnet20")
    exam = Exam(data, held, answers(model, data, held))
    rows: list[Row] = []
    for name in args.only or VARIANTS:
        for seed in range(args.seeds):
            steps = passes(VARIANTS[name], 4 if args.quick else args.steps, seed)
            rows.append(run(f"{name}, seed {seed}" if args.seeds > 1 else name, model, steps, exam))
            print(*cells(rows[-1]), sep=" | ", flush=True)
    report(args.out, rows, args.steps, quick=args.quick)


def passes(change: Change, steps: int, seed: int) -> list[Any]:
    """Return the example's passes up to distillation, the last, with the changes of one variant."""
    import shipworthy as sw

    by_name: dict[str, Any] = {step.name: step.settings for step in sw.read_recipe(EXAMPLE).compress}
    distill = dict(change.get("distill", {}))
    rate = by_name["distill"].learning_rate * distill.pop("learning_rate", 1.0)
    changes = {**change, "distill": {"steps": steps, "seed": seed, "learning_rate": rate, **distill}}
    if changes.get("trim", {}).get("blocks") == ():
        del by_name["trim"]
    names = [name for name in ("trim", "prune", "distill") if name in by_name]
    return [replace(by_name[name], **changes.get(name, {})) for name in names]


def held_out(data: Dataset, full: Split, count: int) -> Split:
    """Return every fifth image of the full training set that the package's own does not have."""
    import torch

    from shipworthy.models.data import Split

    def looks(split: Split) -> list[bytes]:
        return [one.numpy().tobytes() for one in split.pixels(torch.arange(len(split)))]

    known = set(looks(data.train))
    places = torch.tensor([i for i, look in enumerate(looks(full)) if look not in known])[::5][:count]
    if len(places) < count:
        raise SystemExit(
            "this benchmark needs the full Fashion-MNIST, 60,000 training images: name its folder by --root"
        )
    return Split(full.labels[places], lambda indices: full.pixels(places[indices]))


def answers(model: Model, data: Dataset, held: Split) -> torch.Tensor:
    """Return the class that a model gives each image."""
    import torch

    with torch.inference_mode():
        parts = torch.split(torch.arange(len(held)), 500)
        return torch.cat([model.module(data.batch(held, part)[0]).argmax(1) for part in parts])


def run(name: str, model: Model, steps: list[Any], exam: Exam) -> Row:
    """Shrink and recover a model, and ask what is left on the images held out."""
    from shipworthy.models.metrics import accuracy, agreement

    data, labels = exam.data, exam.held.labels
    *shrink, distill = steps
    small = model
    for step in shrink:
        small = step(small, data=data).model
    recovered = distill(small, data=data, teacher=model)
    first, last = (answers(found, data, exam.held) for found in (small, recovered.model))
    return Row(
        name,
        recovered.facts["macs_after"],
        _share(accuracy(first, labels)),
        _share(accuracy(last, labels)),
        _share(agreement(exam.original, last)),
        recovered.facts["seconds"],
    )


def _share(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table."""
    shares = (interval(100 * value, 100 * low, 100 * high) for value, low, high in (row.accuracy, row.agreement))
    return (row.name, f"{row.macs:,}", f"{100 * row.before[0]:.1f}", *shares, f"{row.seconds:.0f}")


def report(out: Path, rows: list[Row], steps: int, *, quick: bool) -> None:
    """Write the table and the data."""
    where = machine()
    text = [
        f"# Recovery after trimming and pruning{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        f"{steps} steps each, one run a row; intervals are of the images, not of the runs.\n",
        table(HEAD, (cells(row) for row in rows)),
    ]
    write_results(
        out, f"recovery_{steps}", "\n".join(text),
        {"quick": quick, "machine": where, "steps": steps, "rows": [asdict(row) for row in rows]},
    )  # fmt: skip


if __name__ == "__main__":
    main()
