"""`profile`, `compare` and `doctor`: what a file costs here, and what can run here at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_output import Answer, Debug, Json, check_file, columns, command

if TYPE_CHECKING:
    from ..profile.measure import Measurement
    from ..profile.memory import Memory
    from ..profile.sampling import Report

EXTRAS = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Optional dependencies that a person can install, and the version that shows them."""

OnnxFile = Annotated[Path, typer.Argument(metavar="ONNX", help="An ONNX file.", show_default=False)]
Baseline = Annotated[Path, typer.Argument(metavar="A", help="The ONNX file to compare against.", show_default=False)]
Other = Annotated[Path, typer.Argument(metavar="B", help="The ONNX file that is compared.", show_default=False)]
Runtime = Annotated[str, typer.Option(help="Where it runs: ort-cpu or ort-cuda.")]
Batch = Annotated[int, typer.Option(min=1, help="Examples an inference.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads inside one operator.")]
Budget = Annotated[float, typer.Option(min=0.0, help="Seconds of sampling at the most.")]
WithMemory = Annotated[bool, typer.Option("--memory", help="Also read peak memory, in a fresh process.")]


@command
def profile(  # noqa: PLR0913 (the parameters of a command are its options)
    onnx: OnnxFile,
    runtime: Runtime = "ort-cpu",
    batch: Batch = 1,
    threads: Threads = 1,
    budget: Budget = 20.0,
    memory: WithMemory = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure the latency of an ONNX file, with 95 % intervals."""
    from ..profile.measure import interleave
    from ..profile.memory import peak_memory
    from ..profile.plan import Plan
    from ..profile.runners import open_runner

    check_file(onnx, "an ONNX file")
    plan = Plan(batch=batch, threads=threads, budget_s=budget)
    with _sampling(f"measure {onnx.name}") as report, open_runner(onnx, runtime, plan) as runner:
        seen = interleave((runner,), plan, report)[0]
    used = peak_memory(onnx, runtime, plan) if memory else None
    return Answer(_latency_text(seen, used), seen.to_dict() | {"memory": used})


@command
def compare(  # noqa: PLR0913 (the parameters of a command are its options)
    a: Baseline,
    b: Other,
    runtime: Runtime = "ort-cpu",
    batch: Batch = 1,
    threads: Threads = 1,
    budget: Budget = 20.0,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Say whether B is faster than A, from paired samples; exit code 3 when that stays unclear."""
    from ..profile.compare import compare as compare_files
    from ..profile.plan import Plan

    for path in (a, b):
        check_file(path, "an ONNX file")
    plan = Plan(batch=batch, threads=threads, budget_s=budget)
    with _sampling(f"compare {a.name} and {b.name}") as report:
        found = compare_files(a, b, runtime, plan, report=report)
    rows = [(name, file.name, f"{seen.p50_ms:.4g} ms") for name, file, seen in (("A", a, found.a), ("B", b, found.b))]
    text = f"{columns([('', 'file', 'p50'), *rows])}\n\n{found.outcome.upper()}: {found.reason}"
    return Answer(_with_notes(text, found.b), found.to_dict(), 3 if found.outcome == "unclear" else 0)


@command
def doctor(as_json: Json = False, debug: Debug = False) -> Answer:
    """Show which runtimes, devices and extras can be used here, and why others cannot."""
    from ..profile.available import runtimes
    from ..profile.devices import cuda_absent
    from ..profile.environment import environment

    where, states = environment(), runtimes()
    versions = where["versions"]
    extras = [{"name": name, "version": versions.get(module)} for name, module in EXTRAS.items()]
    rows = [(state.name, "yes" if state.usable else "no", state.note) for state in states]
    added = [(e["name"], "yes" if e["version"] else "no", e["version"] or _install(str(e["name"]))) for e in extras]
    text = "\n\n".join(
        (
            _machine(where, cuda_absent()),
            columns([("runtime", "usable", "version, or why not"), *rows]),
            columns([("extra", "there", "version, or how to get it"), *added]),
        )
    )
    plain_states = [state._asdict() for state in states]
    return Answer(text, {"runtimes": plain_states, "extras": extras, "environment": where})


def _install(extra: str) -> str:
    return f"pip install 'shipworthy[{extra}]'"


def _machine(where: dict[str, Any], no_gpu: str | None) -> str:
    names = [f"{gpu['name']} (driver {gpu['driver']})" for gpu in where["gpus"]]
    installed = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    lines = [
        f"system   {where['platform']}, Python {where['python']}",
        f"cpu      {where['cpu']}, {where['usable_cores']} of {where['logical_cores']} cores usable",
        f"sets     {', '.join(where['instruction_sets']) or 'none that matters'}",
        f"gpu      {', '.join(names) or (f'none: {no_gpu}' if no_gpu else 'there, but NVML cannot name it')}",
        f"versions {installed}",
    ]
    return "\n".join(lines)


@contextmanager
def _sampling(name: str) -> Iterator[Report]:
    """Show a bar for a measurement; it is drawn between rounds, never inside one."""
    from .cli_progress import showing

    with showing() as progress:
        progress.stage(name)
        yield lambda share, text: progress.advance(round(share * 1000), 1000)


def _latency_text(seen: Measurement, memory: Memory | None) -> str:
    from ..profile.histogram import histogram

    rows = [(f"p{p.q:g}", f"{p.ms:.4g} ms", _interval(p.low_ms, p.high_ms)) for p in seen.percentiles()]
    plan = seen.plan
    parts = [
        f"{seen.name} on {seen.runtime}: batch {plan.batch}, {plan.threads} thread(s), {len(seen.samples_ns)} samples",
        columns([("", "latency", "95 % interval"), *rows]),
        "\n".join(histogram(seen.samples_ns)),
    ]
    if memory is not None:
        parts.append(_memory_text(memory))
    return _with_notes("\n\n".join(parts), seen)


def _memory_text(memory: Memory) -> str:
    from .report_numbers import size

    if memory.peak_bytes is None:
        return f"peak memory: not measured: {memory.failed}"
    added = "" if memory.added_bytes is None else f", of which {size(memory.added_bytes)} for the model"
    return f"peak memory: {size(memory.peak_bytes)}{added}"


def _interval(low: float | None, high: float | None) -> str:
    return f"{'?' if low is None else f'{low:.4g}'} to {'?' if high is None else f'{high:.4g}'} ms"


def _with_notes(text: str, seen: Measurement) -> str:
    return "\n".join([text, *(f"note: {note}" for note in seen.notes)])
