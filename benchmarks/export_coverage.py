"""Whether every torchvision classifier becomes a right ONNX file: fp32 and fp16, two batch sizes, engines.

Weights are drawn so that outputs tell inputs apart. The truth is the module itself in torch. One file with a dynamic
batch must agree with it at batch 1 and 3. The fp16 file is computed with every rounding written out (a CPU leaves them
out) and may differ by `NOISE` times what torch differs from itself when each operator's result and each weight is
rounded to fp16: roundings fall elsewhere in the file, as it folds norms into convolutions. Every model has a process of
its own, with a time limit.
"""

from __future__ import annotations

import fnmatch
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import add_row, arguments, machine, machine_text, read_rows, table, write_results
from shipworthy.benchmarks.coverage import apart, timed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shipworthy.benchmarks.zoo import Entry

Row = dict[str, Any]

FP32 = 1e-4
NOISE = 4.0
FLOOR = 2.0**-11
APART = 1e-3
CHAOS = 1e-2
"""Where torch's fp32 is so far from float64, activations grow without end on inputs that the statistics of batch
norms have not seen; these are then taken from all inputs."""
BATCHES = (1, 3)
HEAD = (
    "model", "parameters M", "capture s", "export s", "fp32 batch 1", "fp32 batch 3", "torch's own", "fp16",
    "noise of fp16",
    "1 - cosine", "kept in fp32", "engine fp32", "engine fp16", "verdict",
)  # fmt: skip


def main() -> None:
    """Read the command line, export the models, write the table."""
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", default=["*"], help="patterns such as 'torchvision:resnet*' (default: all)")
    parser.add_argument("--seconds", type=float, default=1200, help="limit of processor time for one model")
    parser.add_argument("--engines", action="store_true", help="build TensorRT for RTX engines of both files")
    parser.add_argument("--rows", type=Path, help="a file of rows: those in it are not taken again, new ones are added")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    known = {row["name"]: row for row in read_rows(args.rows)}
    chosen = [entry for entry in _by_size() if any(fnmatch.fnmatch(entry.name, pattern) for pattern in args.names)]
    for entry in chosen[:3] if args.quick else chosen:
        if entry.name not in known:
            known[entry.name] = {"name": entry.name} | _one(entry, args.seconds, engines=args.engines)
            add_row(args.rows, known[entry.name])
        print(*cells(known[entry.name]), sep=" | ", flush=True)
    report(args.out, [known[entry.name] for entry in chosen if entry.name in known], quick=args.quick)


def _by_size() -> list[Entry]:
    """Return torchvision's classifiers, small ones first."""
    from torchvision.models import get_model_weights

    from shipworthy.benchmarks.zoo import ENTRIES

    def size(entry: Entry) -> int:
        return int(next(iter(get_model_weights(entry.name.partition(":")[2]))).meta["num_params"])

    return sorted((entry for entry in ENTRIES.values() if entry.family == "torchvision"), key=size)


def _one(entry: Entry, seconds: float, *, engines: bool) -> Row:
    def work(entry: Entry, row: Row) -> None:
        _export(entry, row, engines=engines)

    return apart(work, entry, seconds)


def _export(entry: Entry, row: Row, *, engines: bool) -> None:
    """Export one model and compare; `row` is filled in step by step."""
    import torch

    import shipworthy as sw
    from shipworthy.benchmarks.zoo import build
    from shipworthy.benchmarks.zoo_weights import difference, initialise

    module, inputs = build(entry)
    row["params"] = sum(parameter.numel() for parameter in module.parameters())
    _check_memory(row["params"])
    shown = torch.cat([inputs[0], inputs[0].flip(-1)])
    with torch.no_grad():
        wanted = {batch: module(shown[:batch]) for batch in BATCHES}
    if _own_error(module, shown[: max(BATCHES)], wanted[max(BATCHES)]) > CHAOS:
        initialise(module, 0, (shown,))
        with torch.no_grad():
            wanted = {batch: module(shown[:batch]) for batch in BATCHES}
    row["apart"] = difference(wanted[max(BATCHES)])
    row["step"] = "capture"
    row["capture_s"], model = timed(partial(sw.capture, module, inputs, source=entry.name))
    row["step"] = "noise"
    row["torch"] = max(_own_error(module, shown[:batch], wanted[batch]) for batch in BATCHES)
    row["noise"], row["noise_cosine"] = _distance(_rounded(module, shown[: max(BATCHES)]), wanted[max(BATCHES)])
    del module
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row["step"] = "fp32"
        row["export_s"], made = timed(partial(sw.to_onnx, model, folder / "fp32.onnx"))
        row["files"], row["bytes"] = len(list(folder.iterdir())), made.bytes
        row["fp32"] = [_distance(_onnx(made, shown[:batch]), wanted[batch])[0] for batch in BATCHES]
        if engines:
            row["step"] = "engine of fp32"
            row["engine_fp32"] = _engine(made, folder)
        row["step"] = "fp16"
        row["export_fp16_s"], half = timed(partial(sw.to_onnx, model, folder / "fp16.onnx", precision="fp16"))
        del model
        row["fp32_nodes"] = len(half.fp32_nodes)
        row["fp16"], row["fp16_cosine"] = _distance(_roundings(half, shown[: max(BATCHES)]), wanted[max(BATCHES)])
        row["fp16_runs"] = [_distance(_onnx(half, shown[:batch]), wanted[batch])[0] for batch in BATCHES]
        if engines:
            row["step"] = "engine of fp16"
            row["engine_fp16"] = _engine(half, folder)
    del row["step"]


def _check_memory(params: int) -> None:
    """Leave the machine to others: about six copies of the weights are held at the worst."""
    psutil: Any = importlib.import_module("psutil")
    wanted, free = 24 * params, psutil.virtual_memory().available
    if wanted > free:
        raise MemoryError(f"{wanted / 2**30:.0f} GiB wanted, {free / 2**30:.0f} free")


def _distance(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Return the largest difference relative to the largest value, and one less the cosine."""
    import torch

    a, b = found.double().flatten(), wanted.double().flatten()
    relative = float((a - b).abs().max() / b.abs().max())
    return relative, 1 - float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def _own_error(module: nn.Module, x: Tensor, wanted: Tensor) -> float:
    """Return how far torch's fp32 is from its float64."""
    import torch

    with torch.no_grad():
        exact = module.double()(x.double())
    module.float()
    return _distance(wanted, exact)[0]


def _rounded(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a module gives when weights and each operator's result are rounded to fp16; its weights change."""
    import torch

    with torch.no_grad(), _roundings_in_torch():
        for value in (*module.parameters(), *module.buffers()):
            value.data = _near(value.data) if value.is_floating_point() else value.data
        found: Tensor = module(_near(x))
    return found


def _near(value: Tensor) -> Tensor:
    """Return values with the digits of fp16; what is beyond its range keeps as many, since files keep it in fp32."""
    import torch

    half = value.half().float()
    digits, power = torch.frexp(value)
    held = half.isfinite() & ((value.abs() >= 2.0**-14) | (value == 0))
    return torch.where(held | ~value.isfinite(), half, torch.ldexp((digits * 2**11).round() / 2**11, power))


@contextmanager
def _roundings_in_torch() -> Iterator[None]:
    """Round the result of every operator inside to fp16."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            """Run the operator; a view is not rounded, as its base has been."""
            found = func(*args, **(kwargs or {}))
            if func._schema.is_mutable:
                tree_map_only(torch.Tensor, _in_place, found)
                return found
            return tree_map_only(torch.Tensor, _anew, found) if not func.is_view else found

    def _in_place(value: Tensor) -> Tensor:
        return value.copy_(_near(value)) if value.dtype == torch.float32 else value

    def _anew(value: Tensor) -> Tensor:
        return _near(value) if value.dtype == torch.float32 else value

    with _Mode():  # type: ignore[no-untyped-call]  # torch's own
        yield


def _onnx(file: Any, x: Tensor) -> Tensor:
    """Return what ONNX Runtime gives on one thread."""
    import torch

    from shipworthy.export.session import OnnxSession

    return torch.from_numpy(OnnxSession(file, 1).run({file.inputs[0].name: x.numpy()})[0])


def _roundings(file: Any, x: Tensor) -> Tensor:
    """Return what a file of lower precision gives with its roundings written out."""
    import torch

    from shipworthy.export.onnx_graph import read_graph
    from shipworthy.export.rounding import run, with_roundings

    found = run(with_roundings(read_graph(file.path)), {file.inputs[0].name: x.numpy()})
    return torch.from_numpy(found[file.outputs[0].name])


def _engine(file: Any, folder: Path) -> str:
    """Return `ok`, or why TensorRT for RTX builds no engine."""
    from shipworthy.export.engine import to_engine
    from shipworthy.models.errors import ShipworthyError

    try:
        to_engine(file, folder / "m.engine", "rtx")
    except ShipworthyError as fault:
        return str(fault).replace(str(folder), "")[:200]
    return "ok"


# --- the report


def right(row: Row) -> bool:
    """Whether everything asked of a model holds."""
    if "fault" in row or row["apart"] < APART or max(row["fp32"]) > allowed(row):
        return False
    close = row["fp16"] <= max(NOISE * row["noise"], FLOOR)
    aligned = row["fp16_cosine"] <= max(NOISE**2 * row["noise_cosine"], FLOOR**2)
    return close and aligned and {row.get("engine_fp32", "ok"), row.get("engine_fp16", "ok")} == {"ok"}


def allowed(row: Row) -> float:
    """Return the largest difference in fp32 that is right: more where torch itself is further from float64."""
    return max(FP32, NOISE * float(row.get("torch", 0.0)))


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table."""
    name = row["name"].partition(":")[2]
    if "fault" in row:
        return (name, *[""] * (len(HEAD) - 2), row["fault"])
    engines = [row.get(key, "") for key in ("engine_fp32", "engine_fp16")]
    return (
        name,
        f"{row['params'] / 1e6:.1f}",
        f"{row['capture_s']:.1f}",
        f"{row['export_s']:.1f}",
        *(
            f"{value:.0e}"
            for value in (*row["fp32"], row.get("torch", 0.0), row["fp16"], row["noise"], row["fp16_cosine"])
        ),
        str(row["fp32_nodes"]),
        *engines,
        "ok" if right(row) else "wrong",
    )


def summary(rows: Sequence[Row]) -> str:
    """Return how many models hold what."""
    done = [row for row in rows if "fault" not in row]
    lines = [
        ("exported", sum("fp32" in row for row in done)),
        (f"fp32 within {FP32:g} at both batches", sum(max(row["fp32"]) <= FP32 for row in done)),
        ("fp32 within that or torch's own error", sum(max(row["fp32"]) <= allowed(row) for row in done)),
        ("fp16 within its noise", sum(row["fp16"] <= max(NOISE * row["noise"], FLOOR) for row in done)),
        ("engines of both files", sum(row.get("engine_fp32") == row.get("engine_fp16") == "ok" for row in done)),
        ("all of it", sum(map(right, rows))),
    ]
    return table(("", "models"), ((what, f"{count} of {len(rows)}") for what, count in lines))


def report(out: Path, rows: Sequence[Row], *, quick: bool) -> None:
    """Write the table and the data."""
    where = machine()
    text = [
        f"# Coverage of export{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        "One thread, seconds of processor time. Differences are the largest, relative to the largest output of the\n"
        f"torch module. fp32: at most {FP32:g}, or {NOISE:g} times torch's own distance from float64. fp16: at most\n"
        f"{NOISE:g} times the noise, roundings written out; the noise is torch with weights and every result rounded\n"
        "to fp16 against torch without.\n",
        summary(rows),
        table(HEAD, (cells(row) for row in rows)),
    ]
    write_results(out, "export_coverage", "\n".join(text), {"quick": quick, "machine": where, "rows": list(rows)})


if __name__ == "__main__":
    main()
