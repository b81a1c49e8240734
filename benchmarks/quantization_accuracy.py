"""Int8 on trained models: what it costs in accuracy, on both targets, and which setting mends it.

EfficientNet-Lite0 (ImageNet's weights) and MobileNetV2 learn Fashion-MNIST first, MiniLM to tell good film reviews from
bad ones; the reference model comes trained. Each setting gives a file for CPUs and one for TensorRT, both scored by
ONNX Runtime on test examples, drops paired with the fp32 file's. Which setting is taken is decided by examples that
were held out of the training set.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import (
    ROOT,
    add_row,
    arguments,
    int8_dot_products,
    interval,
    machine,
    machine_text,
    read_rows,
    table,
    write_results,
)

if TYPE_CHECKING:
    from shipworthy.benchmarks.accuracy_subjects import Array, Subject

FLOAT, CPU, TENSORRT = "fp32", "cpu", "tensorrt"
APART = 0.3
"""Points that the accuracy of TensorRT's file may differ by from the CPU's."""

HEAD = (
    "model", "setting", "for", "accuracy %", "drop, points, 95 %", "held out, points", "from cpu's, points, 95 %",
    "speed-up, 95 %", "MACs in integers %", "MB", "engine MB",
)  # fmt: skip
ANSWER_HEAD = ("model", "goal, points", "cpu", "tensorrt", "tensorrt within 0.3 of cpu", "speed-up")
_BUDGET_S = 20.0

Interval = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Row:
    """One file.

    Attributes:
        net: the model.
        setting: how it was quantized; `fp32` for the file that others are compared with.
        target: the family of runtimes.
        accuracy: percent of the test examples that are classified rightly, by ONNX Runtime on the CPU.
        drop: points less than fp32, paired by example, with its 95 % interval; 0 for fp32.
        held_drop: the same on examples that were held out of training: what chooses.
        apart: points less than the CPU's file of the same setting, for TensorRT's.
        ratio: how much faster than fp32, with its 95 % interval, for the CPU's.
        share: of MACs that ran in integers, for the CPU's.
        bytes: of the file.
        engine_bytes: of the engine that was built of it, for TensorRT's.
        fault: why there is none.
        seconds: that the setting took, with training and searching.
    """

    net: str
    setting: str
    target: str
    accuracy: float
    drop: Interval
    held_drop: float
    bytes: int
    apart: Interval | None = None
    ratio: Interval | None = None
    share: float | None = None
    engine_bytes: int | None = None
    fault: str | None = None
    seconds: float = 0.0


def main() -> None:
    """Read the command line, train, quantize, score."""
    parser = arguments(__doc__)
    parser.add_argument("nets", nargs="*", help="models (default: all four)")
    parser.add_argument("--workdir", type=Path, default=ROOT / "out" / "quantization_accuracy", help="keeps trained models")  # fmt: skip # noqa: E501
    parser.add_argument("--rows", type=Path, help="file of finished rows: the same command again goes on")
    parser.add_argument("--all", action="store_true", help="try every setting, not only until one holds the goal")
    args = parser.parse_args()
    from shipworthy.benchmarks.accuracy_subjects import GOALS, subject

    done = [row_of(one) for one in read_rows(args.rows)]
    rows = []
    for net in args.nets or GOALS:
        if net not in GOALS:
            parser.error(f"{net}: choose of {', '.join(GOALS)}")
        one = subject(net, args.workdir, args.quick, progress(net))
        for row in rows_of(one, [row for row in done if row.net == net], args.all, args.quick):
            rows.append(row)
            if row not in done:
                add_row(args.rows, asdict(row))
    report(args.out, rows, GOALS, quick=args.quick)


def progress(what: str) -> Callable[[int, int], None]:
    """Return what tells of training, on the error stream."""

    def told(done: int, total: int) -> None:
        if done % max(1, total // 20) == 0:
            print(f"{what}: step {done} of {total}", file=sys.stderr, flush=True)

    return told


def rows_of(one: Subject, done: Sequence[Row], everything: bool, quick: bool) -> Iterator[Row]:
    """Yield the rows of a model: those that are done as they are, others by carrying their setting out."""
    import tempfile

    from shipworthy.benchmarks.accuracy_subjects import GOALS

    goal = GOALS[one.name]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "fp32.onnx")
        one.write_float(path)
        base = {part: one.classes(path, part) for part in one.labels}
        rows = [float_row(one, path, base)]
        yield rows[0]
        for setting in one.settings:
            known = [row for row in done if row.setting == setting]
            if not known and not everything and all(taken(rows, goal, target) for target in (CPU, TENSORRT)):
                continue
            folder = Path(name, setting.replace(" ", "-"))
            found = known or measured(one, setting, Base(path, base), folder, quick=quick)
            rows += found
            yield from found


@dataclass(frozen=True, eq=False)
class Base:
    """The fp32 file, and its classes by part."""

    path: Path
    classes: dict[str, Array]


def float_row(one: Subject, path: Path, base: dict[str, Array]) -> Row:
    """Return the row of the file that others are compared with."""
    right = 100 * float((base["test"] == one.labels["test"]).mean())
    return Row(one.name, FLOAT, CPU, right, (0.0, None, None), 0.0, path.stat().st_size)


def measured(one: Subject, setting: str, base: Base, folder: Path, *, quick: bool) -> list[Row]:
    """Carry a setting out and return the row of each target."""
    folder.mkdir()
    began = time.perf_counter()
    files = one.write(setting, folder)
    seconds = time.perf_counter() - began
    classes = {target: {part: one.classes(path, part) for part in one.labels} for target, path in files.items()}
    rows = []
    for target, path in files.items():
        found = classes[target]
        more = on_cpu(one, path, base.path, quick=quick) if target == CPU else engine(one, path)
        if target == TENSORRT:
            more["apart"] = drop(classes["cpu"]["test"], found["test"], one.labels["test"])
        rows.append(
            Row(
                one.name, setting, target, 100 * float((found["test"] == one.labels["test"]).mean()),
                drop(base.classes["test"], found["test"], one.labels["test"]),
                drop(base.classes["held"], found["held"], one.labels["held"])[0], path.stat().st_size,
                seconds=seconds, **more,
            )
        )  # fmt: skip
    return rows


def drop(before: Array, after: Array, labels: Array) -> Interval:
    """Return by how many points the second is less accurate, paired by example, with its 95 % interval."""
    from shipworthy.models.metrics import paired_drop

    found = paired_drop(before, after, labels)
    return found.value, found.low, found.high


def on_cpu(one: Subject, path: Path, before: Path, *, quick: bool) -> dict[str, Any]:
    """Compare latency with the fp32 file, interleaved, and see what runs in integers."""
    import shipworthy as sw
    from shipworthy.profile.integer_share import integer_share

    plan = sw.Plan(budget_s=2.0 if quick else _BUDGET_S)
    found = sw.compare(before, path, plan=plan, inputs=one.example)
    share = integer_share(path, plan=plan, inputs=one.example).share
    return {"ratio": (found.ratio, found.low, found.high), "share": share}


def engine(one: Subject, path: Path) -> dict[str, Any]:
    """Build an engine with TensorRT for RTX, which needs no GPU for that, and return its size, or why there is none."""
    import shipworthy as sw

    try:
        made = sw.to_engine(path, path.with_suffix(".engine"), settings=sw.EngineSettings(shapes=one.shapes))
    except sw.ShipworthyError as fault:
        return {"fault": str(fault)}
    return {"engine_bytes": made.path.stat().st_size}


def taken(rows: Iterable[Row], goal: float, target: str) -> Row | None:
    """Return the first file for a target that loses no more than the goal on held-out examples."""
    fit = (row for row in rows if row.setting != FLOAT and row.target == target and row.held_drop <= goal)
    return next(fit, None)


def row_of(given: dict[str, Any]) -> Row:
    """Return a row that was kept as plain values."""
    intervals = {name: tuple(given[name]) for name in ("drop", "apart", "ratio") if given.get(name) is not None}
    return Row(**{**given, **intervals})


def answer(rows: Sequence[Row], goal: float) -> tuple[str, ...]:
    """Return whether a model's goals hold, by the intervals on test examples."""
    cpu, other = (taken(rows, goal, target) for target in (CPU, TENSORRT))
    built = "no engine" if other is None or other.engine_bytes is None else "engine builds"
    return (
        title(rows[0].net), f"{goal:g}", "missed by all" if cpu is None else f"{cpu.setting}: {said(cpu.drop, goal)}",
        "missed by all" if other is None else f"{other.setting}: {said(other.drop, goal)}; {built}",
        within(other.apart, APART) if other and other.apart else "", interval(*cpu.ratio) if cpu and cpu.ratio else "",
    )  # fmt: skip


def said(found: Interval, most: float) -> str:
    """Return met, missed or unclear with the value: the whole interval is on one side of the limit, or it is not."""
    value, low, high = found
    low, high = value if low is None else low, value if high is None else high
    word = "met" if high <= most else "missed" if low > most else "unclear"
    return f"{word}: {interval(*found)}"


def within(found: Interval, most: float) -> str:
    """Return the same for a difference that may go either way."""
    value, low, high = found
    low, high = value if low is None else low, value if high is None else high
    inside, outside = -most <= low and high <= most, low > most or high < -most
    return f"{'met' if inside else 'missed' if outside else 'unclear'}: {interval(*found)}"


def report(out: Path, rows: list[Row], goals: dict[str, float], *, quick: bool) -> None:
    """Write the tables and the data."""
    where = machine()
    nets = list(dict.fromkeys(row.net for row in rows))
    by_net = {net: [row for row in rows if row.net == net] for net in nets}
    dots = ", ".join(int8_dot_products(where["instruction_sets"])) or "none: int8 gains less here than with VNNI"
    text = [
        f"# Accuracy of int8{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        f"Latency: batch 1, one thread, interleaved. Instructions for 8-bit dot products: {dots}.\n",
        table(ANSWER_HEAD, [answer(found, goals[net]) for net, found in by_net.items()]),
        table(HEAD, map(cells, rows)),
    ]
    data = {"quick": quick, "machine": where, "goals": goals, "rows": [*map(asdict, rows)]}
    write_results(out, "quantization_accuracy", "\n".join(text), json.loads(json.dumps(data)))


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table."""
    first = row.setting == FLOAT
    return (
        title(row.net), row.setting, "" if first else row.target, f"{row.accuracy:.2f}",
        "" if first else interval(*row.drop), "" if first else f"{row.held_drop:.2f}",
        "" if row.apart is None else interval(*row.apart), "" if row.ratio is None else interval(*row.ratio),
        "" if row.share is None else f"{100 * row.share:.1f}", f"{row.bytes / 1e6:.2f}",
        f"{row.engine_bytes / 1e6:.2f}" if row.engine_bytes else "none" if row.fault else "",
    )  # fmt: skip


def title(net: str) -> str:
    """Return a model's name without the kind of its source."""
    return net.rpartition(":")[2]


if __name__ == "__main__":
    main()
