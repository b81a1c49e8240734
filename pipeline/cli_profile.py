"""`profile` and `compare`: what files cost, here or on another machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models.errors import BadInput
from .cli_output import Answer, Debug, Json, check_file, columns, command, read_npz
from .cli_sections import SECTIONS, Request, memory_text
from .input_shapes import Shapes, on_random, plan_shapes

if TYPE_CHECKING:
    from ..profile.compare import Comparison
    from ..profile.measure import Measurement
    from ..profile.plan import Plan
    from ..profile.sampling import Report

File = Annotated[
    str, typer.Argument(metavar="FILE", help="An ONNX file or an engine; for torch a model.", show_default=False)
]
Files = Annotated[
    list[str], typer.Argument(metavar="A B...", help="Files; each is compared with the first.", show_default=False)
]
Runtime = Annotated[
    str, typer.Option(help="ort-cpu, ort-cuda, ort-tensorrt, tensorrt, rtx, torch, torch-compile or command.")
]
Batch = Annotated[int, typer.Option(min=1, help="Examples an inference.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads inside one operator.")]
Budget = Annotated[float, typer.Option(min=0.0, help="Seconds of sampling at the most, for each figure.")]
Precision = Annotated[float, typer.Option(help="Half width of an interval that ends sampling, as a share.")]
Percentile = Annotated[float, typer.Option(help="The percentile that is to be so precise.")]
Samples = Annotated[Path | None, typer.Option(help="Inputs by name in an .npz file; random ones by default.")]
Cores = Annotated[str | None, typer.Option("--affinity", help="Bind to these cores, such as 0,1.")]
CudaGraph = Annotated[bool, typer.Option("--cuda-graph", help="On a GPU: capture once and replay.")]
Transfers = Annotated[bool, typer.Option("--transfers", help="On a GPU: count copies to it and back.")]
Fallback = Annotated[bool, typer.Option("--allow-fallback", help="On a GPU: let operators run on the CPU, and say so.")]
On = Annotated[str | None, typer.Option(metavar="URL", help="Measure there: ssh://user@host:port.")]
Python = Annotated[str, typer.Option(help="With --on: the interpreter there.")]

_CODES = {"faster": 0, "same": 0, "slower": 0, "unclear": 3}
_BASELINE_CODES = _CODES | {"slower": 1}
_IN_MEMORY = ("torch", "torch-compile")


@command
def profile(  # noqa: PLR0913 (the parameters of a command are its options)
    file: File,
    runtime: Runtime = "ort-cpu",
    batch: Batch = 1,
    threads: Threads = 1,
    budget: Budget = 20.0,
    precision: Precision = 0.01,
    percentile: Percentile = 50.0,
    samples: Samples = None,
    shape: Shapes = None,
    affinity: Cores = None,
    cuda_graph: CudaGraph = False,
    transfers: Transfers = False,
    allow_fallback: Fallback = False,
    memory: Annotated[bool, typer.Option("--memory", help="Add memory, in fresh processes.")] = False,
    energy: Annotated[bool, typer.Option("--energy", help="Add joules an inference.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Add the cold start.")] = False,
    gaps: Annotated[bool, typer.Option("--gaps", help="Add the latency after pauses.")] = False,
    throughput: Annotated[bool, typer.Option("--throughput", help="Add examples a second over batches.")] = False,
    concurrency: Annotated[bool, typer.Option("--concurrency", help="Add several callers at once.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Add the time of each layer, and the roofline.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the layers into this .svg file.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Compare with a stored run, the output of --json.")] = None,
    allow: Annotated[float, typer.Option(min=0.0, help="With --baseline: the share that counts as none.")] = 0.05,
    on: On = None,
    python: Python = "python3",
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure the latency of a file, with 95 % intervals; with --baseline exit code 1 where it got slower."""
    from ..profile.plan import Plan

    chosen = (memory, energy, cold, gaps, throughput, concurrency, layers or picture is not None)
    wanted = [name for name, asked in zip(SECTIONS, chosen, strict=True) if asked]
    plan = Plan(
        batch=batch, threads=threads, budget_s=budget, precision=precision, quantile=percentile,
        affinity=_cores(affinity), cuda_graph=cuda_graph, transfers=transfers,
        shapes=plan_shapes(shape, samples, runtime), allow_fallback=allow_fallback,
    )  # fmt: skip
    if picture:
        from .group_picture import check_picture

        check_picture(picture)
    stored = _stored(baseline) if baseline else None
    _check_wishes(runtime, wanted, plan, stored, far=on is not None)
    inputs = read_npz(samples) if samples else None
    with on_random(inputs), _sampling(f"measure {Path(file).name}") as report:
        request = _request(file, runtime, plan, inputs, report)
        seen, answer = _far(request, on, python, wanted) if on else _near(replace(request, picture=picture), wanted)
    return answer if stored is None else _with_baseline(answer, seen, stored, allow)


def _check_wishes(runtime: str, wanted: list[str], plan: Plan, stored: Measurement | None, far: bool) -> None:
    """Refuse before measuring what could only be refused after it; another machine is not known before."""
    from ..profile.compare import check_comparable
    from ..profile.environment import environment

    fileless = [name for name in wanted if name in ("memory", "cold") and runtime in (*_IN_MEMORY, "command")]
    if fileless:
        raise BadInput(f"--{fileless[0]}: is measured of a file in a fresh process; runtime {runtime} has none")
    if stored is not None:
        check_comparable(stored, runtime, plan, stored.environment if far else environment())


def _near(request: Request, wanted: list[str]) -> tuple[Measurement, Answer]:
    from ..profile.measure import measure_all

    seen = measure_all((request.target,), request.runtime, request.plan, request.inputs, report=request.report)[0]
    found = {name: SECTIONS[name](request) for name in wanted}
    texts = [_latency_text(seen), *(text for text, _ in found.values())]
    data = {name: found[name][1] if name in found else None for name in SECTIONS}
    return seen, Answer("\n\n".join(texts), seen.to_dict() | data)


def _far(request: Request, on: str, python: str, wanted: list[str]) -> tuple[Measurement, Answer]:
    from ..profile.memory_figures import Memory
    from ..profile.remote import measure_on

    others = [name for name in wanted if name != "memory"]
    if others:
        raise BadInput(f"--{others[0]}: is measured on this machine alone; leave --on or --{others[0]} out")
    memory = "memory" in wanted
    seen = measure_on(
        on, request.target, request.runtime, request.plan, request.inputs,
        memory=memory, python=python, report=request.report,
    )  # fmt: skip
    held = seen.details.get("memory") if memory else None
    texts = [_latency_text(seen), *([memory_text(Memory(**held))] if held else [])]
    return seen, Answer("\n\n".join(texts), seen.to_dict() | dict.fromkeys(SECTIONS) | {"memory": held})


@command
def compare(  # noqa: PLR0913 (the parameters of a command are its options)
    files: Files,
    runtime: Runtime = "ort-cpu",
    batch: Batch = 1,
    threads: Threads = 1,
    budget: Budget = 20.0,
    samples: Samples = None,
    shape: Shapes = None,
    affinity: Cores = None,
    allow_fallback: Fallback = False,
    on: On = None,
    python: Python = "python3",
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Say whether others are faster than the first, from paired samples; exit code 3 when that stays unclear."""
    from ..profile.compare import compare_all
    from ..profile.plan import Plan
    from ..profile.remote import compare_on

    if len(files) < 2 or (on and len(files) > 2):
        raise BadInput(f"compare: got {len(files)} file(s), wanted {'two' if on else 'two or more'}")
    shapes = plan_shapes(shape, samples, runtime)
    plan = Plan(
        batch=batch, threads=threads, budget_s=budget, affinity=_cores(affinity), shapes=shapes,
        allow_fallback=allow_fallback,
    )  # fmt: skip
    inputs = read_npz(samples) if samples else None
    with on_random(inputs), _sampling("compare " + " and ".join(Path(file).name for file in files)) as report:
        if runtime in _IN_MEMORY:
            raise BadInput(f"compare: runtime {runtime} takes no files; export the models and compare those")
        for file in files:
            _check_file(file, runtime)
        if on:
            found: tuple[Comparison, ...] = (
                compare_on(on, files[0], files[1], runtime, plan, inputs, python=python, report=report),
            )
        else:
            found = compare_all(files, runtime, plan, inputs, report=report)
    return Answer(_comparison_text(found), _comparison_data(found), max(_CODES[one.outcome] for one in found))


def _request(file: str, runtime: str, plan: Any, inputs: Any, report: Report) -> Request:
    """Return what the profiler takes; a model's source is loaded and captured."""
    if runtime not in _IN_MEMORY:
        _check_file(file, runtime)
        return Request(file, runtime, plan, inputs, report)
    import torch

    from .cli_models import load_source

    model = load_source(file)
    if inputs is not None:
        given = tuple(torch.from_numpy(inputs[spec.name]) for spec in model.inputs if spec.name in inputs)
    else:
        given = tuple(torch.cat([x[:1]] * plan.batch) if model.dynamic_batch else x for x in model.example_inputs)
    return Request(model.module, runtime, plan, given, report)


def _check_file(file: str, runtime: str) -> None:
    if runtime == "command":
        return
    path = check_file(Path(file), "an engine" if runtime in ("tensorrt", "rtx") else "an ONNX file")
    if runtime.startswith("ort-"):
        from ..export.onnx_read import check_file_safe

        check_file_safe(path)


def _cores(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise BadInput(f"--affinity: got {text!r}, wanted numbers of cores with commas between, such as 0,1")
    return tuple(map(int, parts))


def _stored(path: Path) -> Measurement:
    from ..profile.measure import Measurement

    check_file(path, "a run stored by `profile --json`")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Measurement.from_dict({key: data[key] for key in data if key not in (*SECTIONS, "comparison")})
    except (ValueError, TypeError, AttributeError) as fault:
        raise BadInput(f"{path}: not a run stored by `profile --json` ({fault})") from fault


def _with_baseline(answer: Answer, seen: Measurement, stored: Measurement, allow: float) -> Answer:
    from ..profile.compare import compare_with_stored

    found = compare_with_stored(stored, seen, allow)
    data = {"ratio": found.ratio, "low": found.low, "high": found.high, "outcome": found.outcome}
    text = f"{answer.text}\n\n{found.outcome.upper()}: {found.reason}"
    return Answer(text, answer.data | {"comparison": data}, _BASELINE_CODES[found.outcome])


def _comparison_text(found: tuple[Comparison, ...]) -> str:
    first = found[0].a
    rows = [("A", first.name, f"{first.p50_ms:.4g} ms")]
    rows += [(chr(ord("B") + i), one.b.name, f"{one.b.p50_ms:.4g} ms") for i, one in enumerate(found)]
    answers = [f"{one.outcome.upper()}: {one.reason}" for one in found]
    together = [f"the {len(found)} intervals hold together with 95 %"] if len(found) > 1 else []
    return _with_notes("\n".join([columns([("", "file", "p50"), *rows]), "", *answers, *together]), first)


def _comparison_data(found: tuple[Comparison, ...]) -> dict[str, Any]:
    """Return the one comparison, or all of them under `comparisons`, each without the first one's samples."""
    if len(found) == 1:
        return found[0].to_dict()
    others = [{key: value for key, value in one.to_dict().items() if key != "a"} for one in found]
    return {"a": found[0].a.to_dict(), "comparisons": others}


@contextmanager
def _sampling(name: str) -> Iterator[Report]:
    """Show a bar for a measurement; it is drawn between rounds, never inside one."""
    from .cli_progress import showing

    with showing() as progress:
        progress.stage(name)
        yield lambda share, text: progress.advance(round(share * 1000), 1000)


def _latency_text(seen: Measurement) -> str:
    from ..profile.histogram import histogram

    rows = [(f"p{p.q:g}", f"{p.ms:.4g} ms", _interval(p.low_ms, p.high_ms)) for p in seen.percentiles()]
    plan, where = seen.plan, seen.details.get("on")
    of = f"{len(seen.samples_ns)} samples of {seen.inputs} inputs"
    parts = [
        f"{seen.name} on {seen.runtime}{f' at {where}' if where else ''}: batch {plan.batch}, "
        f"{plan.threads} thread(s), {of}",
        columns([("", "latency", "95 % interval"), *rows]),
        "\n".join(histogram(seen.samples_ns)),
    ]
    return _with_notes("\n\n".join(parts), seen)


def _interval(low_ms: float | None, high_ms: float | None) -> str:
    return f"{'?' if low_ms is None else f'{low_ms:.4g}'} to {'?' if high_ms is None else f'{high_ms:.4g}'} ms"


def _with_notes(text: str, seen: Measurement) -> str:
    return "\n".join([text, *(f"note: {note}" for note in seen.notes)])
