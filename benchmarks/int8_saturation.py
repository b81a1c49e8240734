"""8-bit against 7-bit weights under unsigned activations (U8S8) on this processor: accuracy and latency.

Without instructions that sum 8-bit products in 32 bits (VNNI and the like), x86 kernels add two neighbouring products
in 16 bits, which 8-bit weights can overflow: the sum saturates and the same file gives other results than elsewhere.
Each file is therefore also run with all graph optimizations off, where ONNX Runtime computes the same quantized
function in floating point: where the two disagree, it is the kernels and not the quantization.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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

    Scores = NDArray[np.float32]

FLOAT, EIGHT, SEVEN = "fp32", "8-bit weights", "7-bit weights"
HEAD = ("file", "accuracy %", "drop, 95 %", "agrees with fp32 %", "agrees with its simulation %",
        "largest error of a score", "p50 ms", "speed-up, 95 %")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What was found of one file. The kernels' error is against the simulation, relative to the largest score."""

    name: str
    accuracy: float
    drop: tuple[float, float, float]
    agreement: float
    self_agreement: float
    kernel_error: float
    p50_ms: float
    speedup: tuple[float, float | None, float | None]


def main() -> None:
    """Read the command line, quantize twice, compare."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, default=Path("out/model.pt2"), help="the compressed model of a build")
    args = parser.parse_args()
    if not args.model.is_file():
        raise SystemExit(f"{args.model}: no such file; run `shipworthy build examples/01_fashion.yaml -w out` first")
    import shipworthy as sw

    data = sw.open_data("fashion-mnist", "bundled")
    data = fewer_tests(data, 1000) if args.quick else data
    with tempfile.TemporaryDirectory() as name:
        paths = write_files(args.model, data, Path(name))
        rows = compare_files(paths, data, 5.0 if args.quick else 60.0)
    report(args.out, rows, len(data.test), args.quick)


def write_files(model: Path, data: Dataset, folder: Path) -> dict[str, Path]:
    """Export the model and quantize it with 8-bit and 7-bit weights, otherwise as `to_onnx` does for CPUs."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    import shipworthy as sw
    from shipworthy.benchmarks.glue import Examples

    paths = {name: folder / f"{index}.onnx" for index, name in enumerate((FLOAT, EIGHT, SEVEN))}
    sw.to_onnx(sw.load(str(model)), paths[FLOAT], "fp32")
    images, _ = data.batch(data.train, data.sample(512, 0))
    for name in (EIGHT, SEVEN):
        quantize_static(
            paths[FLOAT], paths[name], Examples(images.numpy()), quant_format=QuantFormat.QDQ, per_channel=True,
            reduce_range=name == SEVEN, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )  # fmt: skip
    return paths


def compare_files(paths: Mapping[str, Path], data: Dataset, budget_s: float) -> list[Row]:
    """Score every file with and without integer kernels, then time all interleaved."""
    import torch

    from shipworthy.benchmarks.timing import profiled
    from shipworthy.models.metrics import accuracy, agreement, paired_drop
    from shipworthy.profile.stats import median_ratio_interval

    labels = data.test.labels.numpy()
    scores = {name: scores_of(path, data, fused=True) for name, path in paths.items()}
    simulated = {name: scores_of(path, data, fused=False) for name, path in paths.items()}
    x, _ = data.batch(data.test, torch.arange(1))
    timed = profiled(paths, x.numpy(), budget_s)
    base, rows = scores[FLOAT].argmax(1), []
    for name in paths:
        found = scores[name].argmax(1)
        drop, ratio = (
            paired_drop(base, found, labels),
            median_ratio_interval(timed[FLOAT].samples_ns, timed[name].samples_ns),
        )
        rows.append(Row(
            name, accuracy(found, labels).value, (drop.value, drop.low, drop.high), agreement(base, found).value,
            agreement(simulated[name].argmax(1), found).value, relative_error(scores[name], simulated[name]),
            timed[name].p50_ms, (ratio.value, ratio.low, ratio.high),
        ))  # fmt: skip
    return rows


def scores_of(path: Path, data: Dataset, *, fused: bool) -> Scores:
    """Return the class scores `(images, classes)` of all test images; `fused` False computes Q/DQ pairs as written."""
    import numpy as np
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    parts = torch.split(torch.arange(len(data.test)), 256)
    return np.concatenate([session.run(None, {"x": data.batch(data.test, part)[0].numpy()})[0] for part in parts])


def relative_error(found: Scores, wanted: Scores) -> float:
    """Return the largest difference of two arrays, relative to the largest magnitude wanted."""
    return float(abs(found - wanted).max() / abs(wanted).max())


def report(out: Path, rows: list[Row], tests: int, quick: bool) -> None:
    """Write the table and the data."""
    where = machine()
    wide = int8_dot_products(where["instruction_sets"])
    said = f"present ({', '.join(wide)})" if wide else "absent: sums of two products saturate at 16 bits on x86"
    text = [
        f"# U8S8 with 8-bit and 7-bit weights{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        f"32-bit integer dot products: {said}. {tests:,} test images; latency interleaved, batch 1, one thread.\n",
        table(HEAD, map(_cells, rows)),
    ]
    data: dict[str, Any] = {"quick": quick, "machine": where, "dot_products": wide, "rows": [asdict(r) for r in rows]}
    write_results(out, "int8_saturation", "\n".join(text), data | {"test_images": tests})


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name, f"{100 * row.accuracy:.2f}", interval(*row.drop), f"{100 * row.agreement:.2f}",
        f"{100 * row.self_agreement:.2f}", f"{100 * row.kernel_error:.2f} %", f"{row.p50_ms:.3f}",
        interval(*row.speedup),
    )  # fmt: skip


if __name__ == "__main__":
    main()
