"""Exported files beside the rounding noise that parity judges them by: does the noise foretell their error?

Small networks of many kinds are exported in each precision and compared with the captured torch model on 64 inputs. A
file's error over the noise is what the factors of `docs/parity.md` must stay above.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from shipworthy.benchmarks.common import arguments, machine, machine_text, table, write_results
from shipworthy.benchmarks.parity_nets import NETS, net
from shipworthy.export.artifact import Precision
from shipworthy.export.onnx_file import OnnxSettings, to_onnx
from shipworthy.export.parity import Comparing, parity

FEW = ("resnet18", "conv1d")
PRECISIONS: tuple[Precision, ...] = tuple(one for one in get_args(Precision) if one not in ("int8", "mixed"))
HEAD = ("architecture", "precision", "noise", "error of the file", "error / noise", "tolerance", "passed")


def rows_of(name: str) -> list[dict[str, Any]]:
    """Export a network in each precision, nothing kept in fp32, and compare every file with it."""
    model, x = net(name)
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            file = to_onnx(model, Path(folder, f"{precision}.onnx"), precision, settings=OnnxSettings(keep_fp32="none"))
            found = parity(model, file, {model.inputs[0].name: x.numpy()}, precision, Comparing(layers=False))
            (output,) = found.outputs
            made.append({
                "net": name, "precision": precision, "noise": output.noise, "relative": output.relative,
                "tolerance": output.tolerance, "passed": output.passed,
            })  # fmt: skip
    return made


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Return all files, and by precision the range of their error over the noise."""
    ranges = []
    for precision in PRECISIONS:
        ratios = [_ratio(row) for row in rows if row["precision"] == precision]
        ranges.append(f"{precision} {min(ratios):.2g} to {max(ratios):.2g}")
    passed = sum(row["passed"] for row in rows)
    head = (
        f"{passed} of {len(rows)} files pass. Errors are the largest difference from torch\n"
        "relative to its largest output, half precision computed as it is written. Error over noise:\n"
        f"{'; '.join(ranges)}.\n\n"
    )
    return head + table(HEAD, map(_line, rows))


def _ratio(row: dict[str, Any]) -> float:
    return float(row["relative"] / row["noise"])


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (f"{row['noise']:.1e}", f"{row['relative']:.1e}", f"{_ratio(row):.2f}", f"{row['tolerance']:.1e}")
    return (row["net"], row["precision"], *numbers, "yes" if row["passed"] else "NO")


def main() -> None:
    """Read the command line, compare, write the table."""
    args = arguments(__doc__).parse_args()
    where = machine()
    rows = []
    for name in FEW if args.quick else NETS:
        rows += rows_of(name)
        print(name, flush=True)
    text = f"# Rounding noise and exported files\n\n{machine_text(where)}\n{report(rows)}"
    write_results(args.out, "parity_noise", text, {"quick": args.quick, "machine": where, "rows": rows})


if __name__ == "__main__":
    main()
