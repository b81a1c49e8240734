"""How much memory calibration takes as examples grow: ours and that of ONNX Runtime's own quantization.

Each file is quantized in a fresh process, from the same .npz file, which is written in parts. The peak is the most that
the process held (resident, imports included). A process may take so much memory and no more; one that wants more is a
row too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shipworthy.benchmarks.calibration_memory_child import REQUEST
from shipworthy.benchmarks.common import arguments, machine, machine_text, table, write_results
from shipworthy.profile.child import MODULE_FLAGS, run_to_end

OURS, THEIRS = "shipworthy", "ONNX Runtime"
METHODS = {OURS: ("minmax", "percentile", "entropy", "mse"), THEIRS: ("MinMax", "Percentile", "Entropy")}
COUNTS = (256, 1024, 4096)
NET = "torchvision:resnet18"
MB = 1e6
_TIMEOUT_S = 3600.0
_AT_ONCE = 64


@dataclass(frozen=True)
class Case:
    """What one process does."""

    tool: str
    method: str
    examples: int


@dataclass(frozen=True)
class Row:
    """What one process took.

    Attributes:
        tool: whose quantization.
        method: how ranges are found.
        examples: how many it calibrated with.
        before_bytes: resident when everything was imported.
        peak_bytes: the most that was resident; None where it failed.
        seconds: without the imports.
        failed: why there is no peak.
    """

    tool: str
    method: str
    examples: int
    before_bytes: int | None = None
    peak_bytes: int | None = None
    seconds: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Given:
    """What all processes share: the file, the name and shape of its input, the folder of the examples, the limit."""

    model: Path
    name: str
    shape: tuple[int, ...]
    folder: Path
    limit_bytes: int


def main() -> None:
    """Read the command line, measure, report."""
    parser = arguments(__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="examples (default: 256 1024 4096)")
    parser.add_argument("--size", type=int, default=64, help="pixels, each way (default: 64)")
    parser.add_argument("--limit-gb", type=float, default=4.0, help="of memory for each process (default: 4)")
    args = parser.parse_args()
    counts, size = ([16, 32], 32) if args.quick else (sorted(args.counts), args.size)
    with tempfile.TemporaryDirectory(prefix="calibration-") as name:
        rows = measured(_given(Path(name), size, int(args.limit_gb * 1e9)), counts)
    report(args.out, rows, (3, size, size), {"quick": args.quick, "limit_bytes": int(args.limit_gb * 1e9)})


def _given(folder: Path, size: int, limit_bytes: int) -> Given:
    import shipworthy as sw

    made = sw.to_onnx(sw.load(NET, input_shape=(3, size, size)), folder / "fp32.onnx")
    return Given(folder / "fp32.onnx", made.inputs[0].name, (3, size, size), folder, limit_bytes)


def measured(given: Given, counts: Sequence[int]) -> list[Row]:
    """Quantize with every method of both tools; what did not fit is not tried with more examples."""
    rows: list[Row] = []
    for count in counts:
        examples = given.folder / "examples.npz"
        write_examples(examples, given.name, (count, *given.shape))
        for case in cases(count, rows):
            rows.append(one_process(given, case, examples))
            print(" ".join(text_of(rows[-1])), flush=True)
    return rows


def cases(count: int, rows: Sequence[Row]) -> Iterator[Case]:
    """Yield what is to be tried with `count` examples after the rows so far."""
    gone = {(row.tool, row.method) for row in rows if row.failed}
    every = ((tool, method) for tool, methods in METHODS.items() for method in methods)
    yield from (Case(tool, method, count) for tool, method in every if (tool, method) not in gone)


def write_examples(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """Write random examples `shape`, batch first, as `numpy.savez` would, few at a time."""
    import numpy as np

    random = np.random.default_rng(0)
    head = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w") as packed, packed.open(f"{name}.npy", "w", force_zip64=True) as opened:
        np.lib.format.write_array_header_1_0(opened, head)
        for start in range(0, shape[0], _AT_ONCE):
            count = min(_AT_ONCE, shape[0] - start)
            opened.write(random.standard_normal((count, *shape[1:]), dtype=np.float32).tobytes())


def one_process(given: Given, case: Case, examples: Path) -> Row:
    """Quantize once in a fresh process."""
    request = {
        "tool": case.tool, "method": case.method, "model": str(given.model), "examples": str(examples),
        "limit_bytes": given.limit_bytes,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        Path(name, REQUEST).write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, *MODULE_FLAGS, "shipworthy.benchmarks.calibration_memory_child", name]
        ended = run_to_end(command, Path(name), _TIMEOUT_S)
    if ended.failed is None:
        return Row(**asdict(case), **ended.reply)
    lack = f"over {given.limit_bytes / 1e9:g} GB" if ended.fits is False else ended.failed.splitlines()[0]
    return Row(**asdict(case), failed=lack)


def growth_bytes(rows: Sequence[Row]) -> float | None:
    """Return the bytes by which one method's peak grows with one more example; None with fewer than two peaks."""
    peaks = sorted((row.examples, row.peak_bytes) for row in rows if row.peak_bytes is not None)
    if len(peaks) < 2:
        return None
    (first, low), (last, high) = peaks[0], peaks[-1]
    return (high - low) / (last - first)


def report(out: Path, rows: list[Row], shape: tuple[int, int, int], more: dict[str, object]) -> None:
    """Write the table and the data."""
    where, one = machine(), 4 * shape[0] * shape[1] * shape[2]
    text = [
        f"# Memory of calibration{' (smoke run: the figures mean nothing)' if more['quick'] else ''}\n",
        machine_text(where),
        f"ResNet-18, examples of {shape[0]} x {shape[1]} x {shape[2]} numbers ({one / 1e3:.0f} KB each) from an .npz "
        f"file. Peak resident MB of a fresh process that quantizes the file; {_held(rows)} of it are imports. The last "
        "column is what one more example adds between the fewest and the most that were measured.\n",
        peaks_table(rows),
    ]
    data = {**more, "machine": where, "net": NET, "shape": shape, "rows": [*map(asdict, rows)]}
    write_results(out, "calibration_memory", "\n".join(text), data)


def _held(rows: Sequence[Row]) -> str:
    before = {row.tool: row.before_bytes for row in rows if row.before_bytes is not None}
    return " and ".join(f"{held / MB:.0f} ({tool})" for tool, held in before.items())


def peaks_table(rows: Sequence[Row]) -> str:
    """Return a table with a line for each method and a column for each number of examples."""
    counts = sorted({row.examples for row in rows})
    head = ("quantization", "ranges", *(f"{count} examples" for count in counts), "KB for one more")
    return table(head, (_line(kept, counts) for kept in by_method(rows)))


def by_method(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each tool and method together."""
    names = dict.fromkeys((row.tool, row.method) for row in rows)
    return [[row for row in rows if (row.tool, row.method) == name] for name in names]


def _line(rows: Sequence[Row], counts: Sequence[int]) -> tuple[str, ...]:
    found = {row.examples: text_of(row)[-1] for row in rows}
    more = growth_bytes(rows)
    per_one = "" if more is None else f"{more / 1e3:.1f}"
    return (rows[0].tool, rows[0].method, *(found.get(count, "not tried") for count in counts), per_one)


def text_of(row: Row) -> tuple[str, str, str, str]:
    """Return a row in words; the last is its peak in MB, or why there is none."""
    peak = row.failed if row.peak_bytes is None else f"{row.peak_bytes / MB:.0f}"
    return row.tool, row.method, str(row.examples), peak


if __name__ == "__main__":
    main()
