"""Faults planted in exported files of many architectures: is the layer that parity names the one that was changed?

Each file gets one fault in the middle: a weight scaled by a tenth, a bias set to zero, a softmax over the wrong axis
(where there is none a concatenation in the wrong order, or a mean over the wrong axis), and numbers that overflow in
fp16 and nowhere else. The reference is the captured torch model, then the fp32 file. A layer is right when the tensor
that is named is the changed operator's, the next one's that reads it, or that of a layer made of both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from shipworthy.benchmarks.common import arguments, machine, machine_text, table, write_results
from shipworthy.benchmarks.parity_nets import NETS, net
from shipworthy.export.onnx_file import OnnxSettings, to_onnx
from shipworthy.export.parity import Parity, parity
from shipworthy.models.model import Model

FEW = ("resnet18", "conv1d")
HEAD = ("architecture", "fault", "reference", "changed operator", "layer named", "operator", "right",
        "before", "after", "its own", "agreement", "with it repaired", "runs")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One planted fault and what was found."""

    net: str
    fault: str
    reference: str
    changed: str
    named: str
    operator: str
    right: bool
    found: dict[str, Any] | None
    cost: dict[str, Any] | None
    note: str


def scaled_weight(proto: ModelProto) -> str | None:
    """Scale the weight in the middle by 1.1; return the result of its operator."""
    held = {i.name: i for i in proto.graph.initializer if len(i.dims) >= 2}
    users = [n for n in proto.graph.node if n.op_type in ("Conv", "MatMul", "Gemm", "LSTM") and n.input[1] in held]
    return _changed(users, held, 1, lambda w: w * 1.1)


def dropped_bias(proto: ModelProto) -> str | None:
    """Set the bias in the middle to zero."""
    held = {i.name: i for i in proto.graph.initializer if len(i.dims) == 1 and numpy_helper.to_array(i).any()}
    users = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm") and len(n.input) > 2 and n.input[2] in held]
    sums = [n for n in proto.graph.node if n.op_type == "Add" and n.input[1] in held]
    return _changed(users, held, 2, np.zeros_like) if users else _changed(sums, held, 1, np.zeros_like)


def wrong_axis(proto: ModelProto) -> str | None:
    """Give a softmax the axis before its own, else mix a concatenation's inputs up, else a mean's axes."""
    for kind, change in (("Softmax", _other_axis), ("Concat", _turned), ("ReduceMean", _other_mean)):
        users = [n for n in proto.graph.node if n.op_type == kind and _is_computed(proto, n)]
        if users and change(proto, users[len(users) // 2]):
            return str(users[len(users) // 2].output[0])
    return None


def _is_computed(proto: ModelProto, node: NodeProto) -> bool:
    """Whether a concatenation is of values rather than of sizes: it has an axis above the first."""
    return node.op_type != "Concat" or next(a.i for a in node.attribute if a.name == "axis") not in (0, -1)


def _other_axis(proto: ModelProto, node: NodeProto) -> bool:
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute.i = -2 if attribute.i in (-1, 3, 2) else 2
    return True


def _turned(proto: ModelProto, node: NodeProto) -> bool:
    names = list(node.input)
    del node.input[:]
    node.input.extend(names[::-1])
    return len(names) > 1


def _other_mean(proto: ModelProto, node: NodeProto) -> bool:
    axes = next(i for i in proto.graph.initializer if i.name == node.input[1])
    changed = numpy_helper.from_array(np.array([1], np.int64), axes.name)
    axes.CopyFrom(changed)
    return True


def _changed(users: list[NodeProto], held: dict[str, Any], place: int, change: Callable[[Any], Any]) -> str | None:
    if not users:
        return None
    node = users[len(users) // 2]
    weight = held[node.input[place]]
    value = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.asarray(change(value), value.dtype), weight.name))
    return str(node.output[0])


FAULTS: dict[str, Callable[[ModelProto], str | None]] = {
    "scaled weight": scaled_weight,
    "dropped bias": dropped_bias,
    "wrong axis or order": wrong_axis,
}


def rows_of(name: str, folder: Path) -> list[Row]:
    """Plant every fault in one architecture."""
    model, x = net(name)
    samples, file = {model.inputs[0].name: x.numpy()}, to_onnx(model, folder / "right.onnx")
    rows = []
    for fault, plant in FAULTS.items():
        proto = onnx.load(file.path)
        changed = plant(proto)
        if changed is not None:
            onnx.save(proto, folder / "wrong.onnx")
            for label, reference in (("torch", model), ("fp32 file", file.path)):
                found = parity(reference, folder / "wrong.onnx", samples)
                rows.append(_row((name, fault, label), proto, {changed}, found))
    return [*rows, *_overflow(name, folder)]


def _overflow(name: str, folder: Path) -> list[Row]:
    model, x = net(name, blown_up=True)
    samples, file = {model.inputs[0].name: x.numpy()}, to_onnx(model, folder / "right.onnx")
    half = to_onnx(model, folder / "half.onnx", "fp16", settings=OnnxSettings(keep_fp32="none"))
    proto = onnx.load(half.path)
    references: tuple[tuple[str, Model | Path], ...] = (("torch", model), ("fp32 file", file.path))
    changed = {n.output[0] for n in proto.graph.node if n.op_type in ("Mul", "Div") and _is_large(proto, n)}
    return [
        _row((name, "overflow in fp16", label), proto, changed, parity(one, half.path, samples))
        for label, one in references
    ]


def _is_large(proto: ModelProto, node: NodeProto) -> bool:
    """Whether a factor is one of those that numbers are blown up by."""
    held = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer if i.name in node.input}
    return any(np.abs(value.astype(np.float64)).max(initial=0) > 8e3 for value in held.values())


def _row(what: tuple[str, str, str], proto: ModelProto, changed: set[str], found: Parity) -> Row:
    layer = found.layer
    kinds = {n.op_type for n in proto.graph.node if n.output[0] in changed}
    right = layer is not None and layer.kind == "first" and layer.tensor in _around(proto, changed, layer.operator)
    row = Row(
        *what, " ".join(sorted(kinds)), layer.name if layer else "", layer.operator if layer else "", right,
        asdict(layer) if layer else None, asdict(found.cost) if found.cost else None,
        "passed" if found.passed else "; ".join(found.notes),
    )  # fmt: skip
    print(_cells(row), flush=True)
    return row


def _around(proto: ModelProto, changed: set[str], operators: str) -> set[str]:
    """Return the tensors that name a change: its own, the next, and those of one layer of several operators with it."""
    found, kinds = set(changed), operators.split(" + ")
    whole = len(kinds) > 1 and any(n.op_type in kinds for n in proto.graph.node if n.output[0] in changed)
    for _ in range(3 if whole else 1):
        found |= {out for node in proto.graph.node if found & set(node.input) for out in node.output}
    return found


def _cells(row: Row) -> tuple[str, ...]:
    layer, cost = row.found, row.cost
    numbers = [f"{layer[k]:.1e}" for k in ("before", "after", "own")] if layer else ["", "", row.note]
    shares = [f"{100 * cost[k]:.0f} %" for k in ("candidate", "repaired")] if cost else ["", ""]
    runs = str(layer["runs"]) if layer else ""
    return (row.net, row.fault, row.reference, row.changed, row.named, row.operator, "yes" if row.right else "NO",
            *numbers, *shares, runs)  # fmt: skip


def report(out: Path, rows: list[Row], quick: bool) -> None:
    """Write the table and the data."""
    where = machine()
    right = sum(row.right for row in rows)
    text = [
        f"# The layer that parity names{' (smoke run)' if quick else ''}\n",
        machine_text(where),
        f"{right} of {len(rows)} planted faults were named. Errors are relative to the largest value; agreement is the "
        "share of 64 inputs with the reference's top class.\n",
        table(HEAD, map(_cells, rows)),
    ]
    data = {"quick": quick, "machine": where, "rows": [_plain(asdict(row)) for row in rows]}
    write_results(out, "parity_faults", "\n".join(text), data)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> None:
    """Read the command line, plant, compare."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="*", default=list(NETS), choices=list(NETS), help="architectures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in (FEW if args.quick else args.only) for row in rows_of(name, Path(folder))]
    report(args.out, rows, args.quick)


if __name__ == "__main__":
    main()
