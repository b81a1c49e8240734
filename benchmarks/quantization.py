"""Int8 on this processor: ours beside fp32 and the two static forms of ONNX Runtime's own quantization.

With `--tools` NNCF, Olive and Model-Optimizer too, each in an environment of its own. Every network goes from one fp32
file to all int8 files, with the same calibration images, and all files of a network are measured in one interleaved
run. The share of multiply-accumulates in integers is read from the graph that ONNX Runtime ran. Accuracy is of the
reference model, whose weights are trained; the weights of the others are random, which changes no latency.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import (
    arguments,
    fewer_tests,
    int8_dot_products,
    interval,
    machine,
    machine_text,
    table,
    write_results,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shipworthy.models.data import Dataset

    Array = NDArray[np.float32]

REFERENCE = "reference:fashion-resnet20"
NETS = (REFERENCE, "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:efficientnet_b0")
FLOAT, OURS = "fp32", "shipworthy"
UNSIGNED, SIGNED = "ONNX Runtime U8S8", "ONNX Runtime S8S8 (its default)"
HEAD = ("network", "file", "speed-up, 95 %", "p50 ms", "MACs in integers %", "MB", "drop, points, 95 %")
LIMIT_S = 60.0
EXAMPLES = "examples.npz"


@dataclass(frozen=True)
class Row:
    """One file. Ratios are against fp32; a drop is paired, None where weights are random."""

    net: str
    file: str
    ratio: tuple[float, float | None, float | None]
    p50_ms: float
    share: float | None
    bytes: int
    drop: tuple[float, float, float] | None


@dataclass(frozen=True)
class Absent:
    """A file that there is none of, and why."""

    net: str
    file: str
    reason: str


def main() -> None:
    """Read the command line, quantize, compare."""
    parser = arguments(__doc__)
    parser.add_argument("nets", nargs="*", default=list(NETS), help="model sources (default: all four)")
    parser.add_argument(
        "--tools", type=Path, help="compare other tools too: the folder of their environments, made here"
    )
    args = parser.parse_args()
    import shipworthy as sw

    data = sw.open_data("fashion-mnist", "bundled")
    data = fewer_tests(data, 500) if args.quick else data
    rows = [row for net in args.nets for row in measured(net, data, args.tools, quick=args.quick)]
    report(args.out, rows, quick=args.quick)


def measured(net: str, data: Dataset, tools: Path | None, *, quick: bool) -> list[Row | Absent]:
    """Make all files of a network and measure them interleaved."""
    import shipworthy as sw
    from shipworthy.profile.compare import compare_all
    from shipworthy.profile.integer_share import integer_share

    with tempfile.TemporaryDirectory() as name:
        paths, absent = files(net, data, Path(name), 16 if quick else 64), list[Absent]()
        if tools is not None:
            more, absent = theirs(net, tools, paths[FLOAT])
            paths |= more
        plan = sw.Plan(budget_s=3.0 if quick else LIMIT_S)
        found = compare_all(list(paths.values()), plan=plan)
        drops = _drops(paths, data) if net == REFERENCE else {}
        first = Row(net, FLOAT, (1.0, None, None), found[0].a.p50_ms, None, paths[FLOAT].stat().st_size, None)
        others = [
            Row(net, label, (one.ratio, one.low, one.high), one.b.p50_ms, integer_share(path).share,
                path.stat().st_size, drops.get(label))
            for (label, path), one in zip(list(paths.items())[1:], found, strict=True)
        ]  # fmt: skip
    return [first, *others, *absent]


def files(net: str, data: Dataset, folder: Path, count: int) -> dict[str, Path]:
    """Write the fp32 file, `count` calibration images beside it, and the files made of both."""
    import numpy as np

    import shipworthy as sw
    from shipworthy.export.quantize_file import quantize_onnx

    paths = {label: folder / f"{place}.onnx" for place, label in enumerate((FLOAT, UNSIGNED, SIGNED, OURS))}
    made = sw.to_onnx(sw.load(net, weights=None), paths[FLOAT])
    images, name = _images(net, data, count, made.inputs[0].shape), made.inputs[0].name
    given: dict[str, Any] = {name: images}
    np.savez(folder / EXAMPLES, **given)
    for label, unsigned in ((UNSIGNED, True), (SIGNED, False)):
        _their_own(paths[FLOAT], paths[label], name, images, unsigned=unsigned)
    quantize_onnx(paths[FLOAT], paths[OURS], folder / EXAMPLES)
    return paths


def theirs(net: str, tools: Path, source: Path) -> tuple[dict[str, Path], list[Absent]]:
    """Quantize with the other tools, with the images beside the file; return their files, and those that are not."""
    from shipworthy.benchmarks.quantization_tools import quantize_with_all

    paths, absent = dict[str, Path](), list[Absent]()
    for made in quantize_with_all(tools, source, source.with_name(EXAMPLES), source.parent):
        reason = unusable(made.path, source.with_name(EXAMPLES)) if made.path else made.reason
        if made.path and not reason:
            paths[made.label] = made.path
        else:
            absent.append(Absent(net, made.label, reason))
    return paths, absent


def unusable(path: Path, examples: Path) -> str:
    """Return why ONNX Runtime cannot run a file on the first example, or nothing."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        with np.load(examples) as held:
            session.run(None, {name: held[name][:1] for name in held.files})
    except Exception as fault:
        return str(fault).splitlines()[0].replace(str(path), "the file")
    return ""


def _images(net: str, data: Dataset, count: int, shape: tuple[int | str, ...]) -> Array:
    import numpy as np

    if net == REFERENCE:
        return data.batch(data.train, data.sample(count, 0))[0].numpy()
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    return np.random.default_rng(0).standard_normal((count, *sizes), dtype=np.float32)


def _their_own(source: Path, path: Path, name: str, images: Array, *, unsigned: bool) -> None:
    """Quantize with `onnxruntime.quantization`: Q/DQ, weights per channel, its own choice of operators."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from shipworthy.models.quiet import quiet

    parts = iter([{name: images[start : start + 16]} for start in range(0, len(images), 16)])

    class _Reader:
        def get_next(self) -> dict[str, Any] | None:
            return next(parts, None)

    activations = QuantType.QUInt8 if unsigned else QuantType.QInt8
    with quiet():
        quantize_static(
            source, path, _Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=unsigned,
            activation_type=activations, weight_type=QuantType.QInt8,
        )  # fmt: skip


def _drops(paths: dict[str, Path], data: Dataset) -> dict[str, tuple[float, float, float]]:
    from shipworthy.export.score import score
    from shipworthy.models.metrics import paired_drop

    scores = {label: score(path, data) for label, path in paths.items()}
    base = scores[FLOAT]
    found = {label: paired_drop(base.predictions, one.predictions, base.labels) for label, one in scores.items()}
    return {label: (drop.value, drop.low, drop.high) for label, drop in found.items()}


def report(out: Path, rows: list[Row | Absent], *, quick: bool) -> None:
    """Write the table and the data."""
    where = machine()
    dots = ", ".join(int8_dot_products(where["instruction_sets"])) or "none: int8 gains less here than with VNNI"
    text = [
        f"# Quantization{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        f"Batch 1, one thread. Instructions for 8-bit dot products: {dots}.\n",
        table(HEAD, map(cells, rows)),
    ]
    write_results(
        out, "quantization", "\n".join(text), {"quick": quick, "machine": where, "rows": [*map(asdict, rows)]}
    )


def cells(row: Row | Absent) -> tuple[str, ...]:
    """Return a row of the table."""
    if isinstance(row, Absent):
        return row.net.partition(":")[2], row.file, row.reason.replace("|", "/"), "", "", "", ""
    share = "" if row.share is None else f"{100 * row.share:.1f}"
    drop = "" if row.drop is None else interval(*row.drop)
    name = row.net.partition(":")[2]
    return name, row.file, interval(*row.ratio), f"{row.p50_ms:.2f}", share, f"{row.bytes / 1e6:.2f}", drop


if __name__ == "__main__":
    main()
