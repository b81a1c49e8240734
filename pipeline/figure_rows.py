"""From what the profiler found to a row of the record: its numbers with their intervals, and data without samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..profile.cold import STAGES, ColdStart
from ..profile.concurrency import Concurrency, Level
from ..profile.gaps import GapLatency, effect
from ..profile.layer_costs import Tensor
from ..profile.layer_profile import Layer, LayerProfile
from ..profile.layer_table import time_text
from ..profile.plan import Plan
from ..profile.roofline import MemoryLevel, Peak, Roofline
from ..profile.stats import Estimate
from ..profile.throughput import KNEE_SHARE, Throughput
from .record import Figure, FigureRow, ValueRow

if TYPE_CHECKING:
    from .taking import Layers, Taken

TITLES = {
    "cold": "cold start",
    "gaps": "after a pause",
    "throughput": "throughput",
    "concurrency": "callers at once",
    "layers": "layers",
}
RAW = {
    "samples_ns", "pairs_ns", "warm_ns", "windows", "rates", "plain_ns", "profiled_ns", "attributed_ns", "tries",
    "environment", "file",
}  # fmt: skip
"""Keys of what the record leaves out: raw samples, and what it says once for the whole run."""


def row_of(name: str, runtime: str, taken: Taken) -> FigureRow:
    """Return the row of a figure that was taken."""
    data = without_raw(taken.found.to_dict())
    return FigureRow(name, runtime, list(_VALUES[name](taken.found)), list(taken.lines), data)


def without_raw(value: Any) -> Any:
    """Return plain data without the keys of `RAW` at any depth; infinities and not-a-number become None."""
    if isinstance(value, Mapping):
        return {key: without_raw(item) for key, item in value.items() if key not in RAW}
    if isinstance(value, list | tuple):
        return [without_raw(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_row(data: Mapping[str, Any]) -> FigureRow:
    """Return the row that became these plain data."""
    return FigureRow(**{**data, "values": [_read_value(**value) for value in data["values"]]})


def _read_value(figure: Mapping[str, float] | None, **rest: str) -> ValueRow:
    return ValueRow(figure=None if figure is None else Figure(**figure), **rest)


def read_layers(data: Mapping[str, Any]) -> tuple[LayerProfile, Roofline | None]:
    """Return a profile by layer, whose medians stand for its samples, and the ceilings, from a row's data."""
    plain, profiled = data["plain_median_ns"], data["profiled_median_ns"]
    profile = LayerProfile(
        name=data["name"],
        runtime=data["runtime"],
        file=None,
        sha256=data["sha256"],
        plan=Plan(**data["plan"]),
        environment={},
        layers=tuple(map(_layer, data["layers"])),
        plain_ns=(plain,),
        profiled_ns=(profiled,),
        attributed_ns=(profiled - data["unattributed_ns"],),
        resolution_ns=data["resolution_ns"],
        notes=tuple(data["notes"]),
    )
    return profile, _roofline(data["roofline"])


def _layer(row: Mapping[str, Any]) -> Layer:
    derived = ("intensity", "flops_per_s", "bytes_per_s")
    read = {"inputs": _tensors(row["inputs"]), "outputs": _tensors(row["outputs"]), "facts": tuple(row["facts"])}
    return Layer(**{key: value for key, value in row.items() if key not in derived} | read)


def _tensors(rows: Sequence[Mapping[str, Any] | None]) -> tuple[Any, ...]:
    return tuple(row and Tensor(**{**row, "shape": tuple(row["shape"])}) for row in rows)


def _roofline(data: Mapping[str, Any] | None) -> Roofline | None:
    if data is None:
        return None
    return Roofline(
        runtime=data["runtime"],
        threads=data["threads"],
        peaks=tuple(Peak(**row) for row in data["peaks"]),
        levels=tuple(MemoryLevel(**row) for row in data["levels"]),
        dispatch_ns=data["dispatch_ns"],
        environment={},
        notes=tuple(data["notes"]),
    )


def _cold(found: ColdStart) -> Iterator[ValueRow]:
    known = {stage: one for stage in STAGES if (one := found.stage_ns(stage)) is not None}
    parts = [f"{STAGES[stage]} {time_text(one.value)}" for stage, one in known.items()]
    # The last stage comes after the first result.
    first, second = ", ".join(parts[:-1]), parts[-1] if parts else ""
    how = f"to the first result: {first}; then {second}; {len(found.starts)} starts, {found.page_cache}"
    yield _value("cold start", found.total_ns, "ms", f"failed: {found.failed}" if found.failed else how, 1e-6)


def _gaps(found: GapLatency) -> Iterator[ValueRow]:
    low, high = found.gaps_s
    pause = f"{len(found.pairs_ns)} requests {low:g} to {high:g} s apart; warm {time_text(found.warm_p50_ns.value)}"
    yield _value("after a pause, p50", found.p50_ns, "ms", pause, 1e-6)
    if found.p90_ns:
        yield _value("after a pause, p90", found.p90_ns, "ms", "of the same requests", 1e-6)
    yield _value("after a pause, against warm", found.ratio, "x", effect(found.ratio))


def _throughput(found: Throughput) -> Iterator[ValueRow]:
    ranks = {found.knee: f"smallest within {KNEE_SHARE:.0%} of the best", found.best: "best"}
    for row in found.rows:
        if row.p50_ns is not None:
            what = f"{time_text(row.p50_ns.value)} a batch" + (f"; {ranks[row.batch]}" if row.batch in ranks else "")
            yield _value(f"throughput, batch {row.batch}", row.examples_per_s, "examples/s", what)
    failed = [row for row in found.rows if row.failed]
    if failed:
        batches = ", ".join(str(row.batch) for row in failed)
        yield ValueRow(f"throughput, batch {batches}", None, "", f"did not run: {failed[0].failed}")


def _concurrency(found: Concurrency) -> Iterator[ValueRow]:
    for level in found.levels:
        times = "" if level.callers == 1 else f"; {found.scaling(level).value:.3g} times one caller"
        name = f"{level.callers} caller{'s at once' * (level.callers > 1)}"
        yield _value(name, level.inferences_per_s, "inferences/s", _loaded(level) + times)


def _loaded(level: Level) -> str:
    return ", ".join(f"p{q:g} {time_text(one.value)}" for q, one in level.percentiles_ns().items())


def _layers(found: Layers) -> Iterator[ValueRow]:
    profile = found.profile
    outside = profile.unattributed_ns / profile.profiled_median_ns
    what = f"an inference without the profiler, which adds {profile.overhead:.1%}; {outside:.1%} is in no layer"
    seen = f"{len(profile.layers)} layers: {what}"
    yield _value("layers", Estimate(profile.plain_median_ns), "ms", f"{seen}; {found.why}" if found.why else seen, 1e-6)


def _value(name: str, found: Estimate | None, unit: str, what: str, factor: float = 1.0) -> ValueRow:
    if found is None:
        return ValueRow(name, None, "", what)
    ends = (None if end is None else end * factor for end in (found.low, found.high))
    return ValueRow(name, Figure(found.value * factor, *ends), unit, what)


_VALUES: dict[str, Callable[[Any], Iterator[ValueRow]]] = {
    "cold": _cold,
    "gaps": _gaps,
    "throughput": _throughput,
    "concurrency": _concurrency,
    "layers": _layers,
}
