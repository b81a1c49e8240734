"""Which models can be pruned, and whether what comes out is right: the zoo, pruned by half, beside Torch-Pruning.

Each model is captured, loses half of its channels, and is then held against the original with those channels masked
(float64), trained for a step, exported to ONNX and compared with ONNX Runtime. Torch-Pruning gets the module itself, as
its README shows, and less is asked of it: that what comes out runs, is smaller, has the same outputs, trains and
exports. Every model has a process of its own, with a time limit.
"""

from __future__ import annotations

import fnmatch
import importlib
import multiprocessing
import re
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipworthy.benchmarks.common import (
    add_row,
    arguments,
    machine,
    machine_text,
    pruning_tool,
    read_rows,
    table,
    write_results,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shipworthy.benchmarks.zoo import Entry
    from shipworthy.compress.channels import Channels
    from shipworthy.models.model import Model

Row = dict[str, Any]
Work = Callable[["Entry", Row], None]

LAW = 1e-9
TOOLS = ["ours", "theirs"]
ONNX = 1e-4
HEAD = (
    "model", "parameters", "left %", "MACs left %", "prunable %", "analysis s", "rewriting s", "MiB for both", "law",
    "ONNX", "ours", "Torch-Pruning",
)  # fmt: skip


def main() -> None:
    """Read the command line, check the models, write the table."""
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", default=["*"], help="patterns such as 'timm:*vit*' (default: all)")
    parser.add_argument("--seconds", type=float, default=600, help="limit of processor time for one model")
    parser.add_argument("--their-seconds", type=float, default=120, help="limit for Torch-Pruning")
    parser.add_argument("--tool", choices=TOOLS, help="whose pruning (default: both)")
    parser.add_argument("--rows", type=Path, help="a file of rows: those in it are not taken again, new ones are added")
    args = parser.parse_args()
    tools = [args.tool] if args.tool else TOOLS
    if "theirs" in tools:
        pruning_tool()
    import torch

    from shipworthy.benchmarks.zoo import ENTRIES

    torch.set_num_threads(1)
    known = _read(args.rows)
    chosen = [name for name in ENTRIES if any(fnmatch.fnmatch(name, pattern) for pattern in args.names)]
    for name in chosen[:3] if args.quick else chosen:
        row = known.setdefault(name, {"name": name})
        for tool in tools:
            if tool not in row:
                work, limit = (ours, args.seconds) if tool == "ours" else (theirs, args.their_seconds)
                row[tool] = apart(work, ENTRIES[name], limit)
                add_row(args.rows, {"name": name, tool: row[tool]})
        print(*cells(known[name]), sep=" | ", flush=True)
    report(args.out, [known[name] for name in chosen if name in known], quick=args.quick)


def _read(path: Path | None) -> dict[str, Row]:
    """Return what is known of each model: a line for each tool."""
    rows: dict[str, Row] = {}
    for found in read_rows(path):
        rows[found["name"]] = rows.get(found["name"], {}) | found
    return rows


def apart(work: Work, entry: Entry, seconds: float) -> Row:
    """Do the work in a process of its own; a crash, a wrong answer or a late one is a row too.

    Args:
        work: fills in a row.
        entry: of the zoo.
        seconds: of processor time, so that other load takes nothing from the limit; ten times as many on the clock.
    """
    psutil: Any = importlib.import_module("psutil")
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(work, entry, sender))
    child.start()
    sender.close()
    found: Row = {"fault": f"still running after {seconds:.0f} s"}
    deadline = time.monotonic() + 10 * seconds
    try:
        while time.monotonic() < deadline and sum(psutil.Process(child.pid).cpu_times()[:2]) < seconds:
            if receiver.poll(1.0):
                found = receiver.recv()
                break
    except EOFError:
        found = {"fault": "the process died"}
    child.kill()
    child.join()
    return found


def _send(work: Work, entry: Entry, sender: Any) -> None:
    found: Row = {}
    try:
        work(entry, found)
    except Exception as fault:
        said = re.sub(r"\S*/site-packages/", "", str(fault).strip().partition("\n")[0])  # no path of this machine
        found["fault"] = f"{found.get('step', 'build')}: {type(fault).__name__}: {said[:200]}"
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sender.send(found)


# --- ours


def ours(entry: Entry, row: Row) -> None:
    """Prune one model and check it; `row` is filled in step by step."""
    from shipworthy.benchmarks.zoo import build
    from shipworthy.compress.channels import find_channels
    from shipworthy.compress.prune import Prune
    from shipworthy.compress.prune_choice import choose
    from shipworthy.compress.rewrite import remove_channels
    from shipworthy.compress.scores import channel_scores
    from shipworthy.models.model import capture

    row["step"] = "capture"
    row["capture_s"], model = timed(lambda: capture(*build(entry), **entry.options))
    row["step"] = "analysis"
    start = peak_memory(anew=True)
    row["analysis_s"], channels = timed(lambda: find_channels(model))
    row["unknown"], row["prunable"] = list(channels.unknown), prunable(model, channels)
    settings = Prune(ratio=0.5, head_size=0.5, round_to=1, min_channels=1)
    gone = choose(settings, channels, channel_scores(model, channels, "l2"), 0.5)
    row["step"] = "rewriting"
    row["rewriting_s"], pruned = timed(lambda: remove_channels(model, channels, gone))
    row["memory_mb"] = peak_memory() - start
    row["before"], row["after"] = sizes(model), sizes(pruned)
    row["step"] = "law"
    row["law"] = law(model, channels, gone, pruned)
    row["step"] = "training"
    row["trains"] = trains(pruned)
    row["step"] = "ONNX"
    row["onnx"] = onnx_difference(pruned)
    del row["step"]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many seconds of processor time something took, and what it gave."""
    start = time.process_time()
    found = work()
    return round(time.process_time() - start, 3), found


def peak_memory(anew: bool = False) -> float:
    """Return the most MiB that this process has held since it was asked to count anew; on Linux only, elsewhere 0."""
    with suppress(OSError):
        if anew:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return 0.0


def sizes(model: Model) -> dict[str, int]:
    """Return parameters and MACs."""
    from shipworthy.models.summary import summarize

    found = summarize(model)
    return {"params": found.params, "macs": found.macs}


def prunable(model: Model, channels: Channels) -> float:
    """Return the share of parameters that some free channel takes with it."""
    total = stay = 0.0
    for name, parameter in model.module.named_parameters():
        total += parameter.numel()
        staying = float(parameter.numel())
        for atoms in channels.tensors.get(name, ()):
            staying *= 1.0 if atoms is None else float((atoms < 0).all(1).mean())
        stay += staying
    return 1 - stay / total


def law(model: Model, channels: Channels, gone: set[int], pruned: Model) -> float:
    """Return the largest relative difference between the pruned model and the masked original, in float64."""
    import torch

    from shipworthy.tests.masked import float64_by_default, in_float64, masked_outputs, tensors, worst_difference

    draw = torch.Generator().manual_seed(1)
    inputs = tuple(
        torch.randn(x.shape, generator=draw, dtype=torch.float64) if x.is_floating_point() else x
        for x in model.example_inputs
    )
    with torch.no_grad(), float64_by_default():
        wanted = masked_outputs(in_float64(model), channels, gone, inputs)
        return worst_difference(wanted, tensors(in_float64(pruned).module(*inputs)))


def trains(pruned: Model) -> bool:
    """Take one step of gradient descent; return whether weights moved and all are finite."""
    import torch

    from shipworthy.models.graph import set_training
    from shipworthy.tests.masked import tensors

    work = pruned.copy()
    set_training(work.module, True)
    parameters = [p for p in work.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    torch.stack([y.float().square().mean() for y in tensors(work.module(*work.example_inputs))]).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    moved = sum(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    return moved > len(parameters) // 2 and all(bool(p.isfinite().all()) for p in parameters)


def onnx_difference(pruned: Model) -> float:
    """Return the largest relative difference of the ONNX file in ONNX Runtime, with one example more than captured."""
    import onnxruntime
    import torch

    import shipworthy as sw
    from shipworthy.tests.masked import tensors, worst_difference

    more = tuple(torch.cat([x, x[:1]]) for x in pruned.example_inputs)
    with torch.no_grad():
        wanted = tensors(pruned.module(*more))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        sw.to_onnx(pruned, path)
        return worst_difference(wanted, run_onnx(onnxruntime, path, more))


def run_onnx(runtime: Any, path: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what ONNX Runtime gives on one thread."""
    import torch

    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, feeds)]


# --- Torch-Pruning


def theirs(entry: Entry, row: Row) -> None:
    """Prune one model by Torch-Pruning as its README shows, and check that it still is a model of the same outputs."""
    import torch

    from shipworthy.benchmarks.zoo import build
    from shipworthy.models.model import capture
    from shipworthy.tests.masked import tensors

    tool = pruning_tool()
    module, inputs = build(entry)
    with torch.no_grad():
        shapes = [y.shape for y in tensors(module(*inputs))]
    before = sum(p.numel() for p in module.parameters())
    classes = shapes[0][-1]
    heads = [m for m in module.modules() if _makes(m) == classes]
    row["step"] = "pruning"
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    pruner = tool.pruner.MagnitudePruner(
        module, inputs if len(inputs) > 1 else inputs[0], importance=tool.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5, ignored_layers=heads[-1:],
    )  # fmt: skip
    row["seconds"], _ = timed(pruner.step)
    row["step"] = "running"
    with torch.no_grad():
        found = [y.shape for y in tensors(module(*inputs))]
    row["params_left"] = sum(p.numel() for p in module.parameters()) / before
    row["step"] = "checking"
    if found != shapes:
        raise ValueError(f"outputs {[tuple(s) for s in shapes]} became {[tuple(s) for s in found]}")
    if row["params_left"] > 0.9:
        raise ValueError(f"{100 * row['params_left']:.0f} % of the parameters are left")
    row["step"] = "training"
    if not trains(capture(module, inputs, **entry.options)):
        raise ValueError("its weights do not move, or are not finite")
    del row["step"]


def _makes(module: nn.Module) -> int | None:
    size = getattr(module, "out_features", getattr(module, "out_channels", None))
    return size if isinstance(size, int) else None


# --- the report


def right(found: Row) -> bool:
    """Whether everything asked of ours holds."""
    return (
        "fault" not in found and found["law"] <= LAW and found["onnx"] <= ONNX and found["trains"]
        and found["after"]["params"] < found["before"]["params"]
    )  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """Return a row of the table."""
    found, other = row.get("ours", {"fault": ""}), row.get("theirs")
    their = "" if other is None else other.get("fault") or f"ok, {100 * other['params_left']:.0f} % left"
    if "after" not in found:
        return (row["name"], *[""] * 9, found["fault"], their)
    after, before = found["after"], found["before"]
    shares = [f"{100 * after[key] / max(before[key], 1):.0f}" for key in ("params", "macs")]
    seconds = [f"{found[key]:.2f}" for key in ("analysis_s", "rewriting_s")]
    errors = [f"{found[key]:.0e}" if key in found else "" for key in ("law", "onnx")]
    verdict = "ok" if right(found) else found.get("fault", "wrong")
    return (
        row["name"],
        f"{before['params']:,}",
        *shares,
        f"{100 * found['prunable']:.0f}",
        *seconds,
        f"{found['memory_mb']:.0f} of {before['params'] / 2**18:.0f}" if "memory_mb" in found else "",
        *errors,
        verdict,
        their,
    )


def summary(rows: Sequence[Row]) -> str:
    """Return how many of each family are right."""
    families = sorted({row["name"].partition(":")[0] for row in rows})
    lines = []
    for family in families:
        mine = [row for row in rows if row["name"].startswith(f"{family}:")]
        own = [row["ours"] for row in mine if "ours" in row]
        others = [row["theirs"] for row in mine if "theirs" in row]
        good = sum("fault" not in other for other in others)
        theirs = f"{good} of {len(others)}" if others else "not taken"
        lines.append((family, f"{sum(map(right, own))} of {len(own)}", theirs))
    return table(("family", "ours: right", "Torch-Pruning: runs, smaller, same outputs, trains"), lines)


def report(out: Path, rows: Sequence[Row], *, quick: bool) -> None:
    """Write the table and the data."""
    where = machine()
    text = [
        f"# Coverage of pruning{' (smoke run: the figures mean nothing)' if quick else ''}\n",
        machine_text(where),
        "Half of the channels of each group, one thread, seconds of processor time. `law`: largest relative\n"
        "difference from the masked original, float64 (at most 1e-9). `ONNX`: in ONNX Runtime, fp32 (at most 1e-4).\n",
        summary(rows),
        table(HEAD, (cells(row) for row in rows)),
    ]
    write_results(out, "coverage", "\n".join(text), {"quick": quick, "machine": where, "rows": list(rows)})


if __name__ == "__main__":
    main()
