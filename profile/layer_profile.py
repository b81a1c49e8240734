"""What a profile by layer consists of. Plain values; everything derived is derived here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .layer_costs import Operation, Tensor, bytes_moved, compute_dtype, flops
from .plan import Plan

SCHEMA = 1
MOST_SAMPLES = 100_000
"""Samples kept in a profile at the most, of all layers together; beyond that only their medians and sums are kept."""


@dataclass(frozen=True)
class Seen:
    """One layer as a runtime's profiler saw it.

    Attributes:
        name: of the node, or of torch's operator.
        provider: what ran it, such as `CPUExecutionProvider`.
        operation: with the shapes it ran with.
        samples_ns: nanoseconds in each run.
        calls: how often it ran in one run; more than once in a loop.
        facts: what else is worth knowing, such as `fused: Relu`.
        shown: the operator's own name where it is not that of `operation`, whose rules it is counted by.
        module: the path of the user's module, or an empty text.
    """

    name: str
    provider: str
    operation: Operation
    samples_ns: tuple[int, ...]
    calls: int = 1
    facts: tuple[str, ...] = ()
    shown: str = ""
    module: str = ""


@dataclass(frozen=True)
class Found:
    """What a runtime's profiler found.

    Attributes:
        layers: in the order of execution, all with one sample per run.
        plain_ns: whole inferences without the profiler.
        profiled_ns: whole inferences with it, one per run.
        notes: what a reader should know.
    """

    layers: Sequence[Seen]
    plain_ns: Sequence[int]
    profiled_ns: Sequence[int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One executed node of the graph as the runtime optimized it, or one operator of a module.

    Attributes:
        name: of the node, or of torch's operator.
        operator: its ONNX name, or torch's.
        provider: what ran it.
        dtype: in which it computes; `int8` for quantized operators.
        inputs: in the operator's order, weights included; None for an optional one that is left out.
        outputs: empty where they are not known.
        flops: of one run, see `layer_costs.flops`; None where it is not counted.
        bytes: that must move at the least in one run; None where it is not counted.
        calls: how often it ran in one run.
        median_ns: of its time in one run.
        total_ns: of all runs.
        share: of the median in the sum of all layers' medians, 0 to 1; one stalled run does not change it.
        samples_ns: by run; empty where there are too many to keep.
        facts: `int8`, `fused: Relu`, `reorder`, `blocked layout`, `channels last`, `inside If`.
        module: the path of the module whose weights it has or that calls it; an empty text where it is not known.
    """

    name: str
    operator: str
    provider: str
    dtype: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    flops: int | None
    bytes: int | None
    calls: int
    median_ns: float
    total_ns: int
    share: float
    samples_ns: tuple[int, ...] = ()
    facts: tuple[str, ...] = ()
    module: str = ""

    @property
    def title(self) -> str:
        """What people know it by: its module, else its own name."""
        return self.module or self.name

    @property
    def intensity(self) -> float | None:
        """Operations per byte; None where either is not counted or no byte moves."""
        return self.flops / self.bytes if self.flops is not None and self.bytes else None

    @property
    def flops_per_s(self) -> float | None:
        """Operations per second at the median; None where they are not counted."""
        return None if self.flops is None or not self.median_ns else self.flops / self.median_ns * 1e9

    @property
    def bytes_per_s(self) -> float | None:
        """Bytes per second at the median; None where they are not counted."""
        return None if self.bytes is None or not self.median_ns else self.bytes / self.median_ns * 1e9


@dataclass(frozen=True)
class LayerProfile:
    """Where the time of one inference goes.

    Attributes:
        layers: in the order of execution.
        plain_ns: whole inferences without the profiler.
        profiled_ns: whole inferences with it, one per run.
        attributed_ns: the sum of all layers, one per run.
        resolution_ns: the step of the profiler's own clock.
        notes: what a reader should know.
        details: of the runner.
    """

    name: str
    runtime: str
    file: str | None
    sha256: str | None
    plan: Plan
    environment: dict[str, Any]
    layers: tuple[Layer, ...]
    plain_ns: tuple[int, ...]
    profiled_ns: tuple[int, ...]
    attributed_ns: tuple[int, ...]
    resolution_ns: int
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def plain_median_ns(self) -> float:
        """The median inference without the profiler."""
        return statistics.median(self.plain_ns)

    @property
    def profiled_median_ns(self) -> float:
        """The median inference with it."""
        return statistics.median(self.profiled_ns)

    @property
    def overhead(self) -> float:
        """What the profiler itself adds, as a share of the time without it."""
        return self.profiled_median_ns / self.plain_median_ns - 1

    @property
    def unattributed_ns(self) -> float:
        """The median of what a profiled inference took beyond the sum of its layers: dispatch, and the profiler."""
        pairs = zip(self.profiled_ns, self.attributed_ns, strict=True)
        return statistics.median(whole - layers for whole, layers in pairs)

    @property
    def flops(self) -> int:
        """Operations of all layers where they are counted."""
        return sum(layer.flops or 0 for layer in self.layers)

    @property
    def not_counted(self) -> tuple[str, ...]:
        """The operators whose operations are not counted."""
        return tuple(sorted({layer.operator for layer in self.layers if layer.flops is None}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the schema version and what is derived."""
        derived = {
            name: getattr(self, name)
            for name in ("plain_median_ns", "profiled_median_ns", "overhead", "unattributed_ns", "flops", "not_counted")
        }
        layers = [
            asdict(layer) | {name: getattr(layer, name) for name in ("intensity", "flops_per_s", "bytes_per_s")}
            for layer in self.layers
        ]
        return {"schema": SCHEMA, **asdict(self), **derived, "layers": layers}


def make_layers(seen: Sequence[Seen]) -> tuple[Layer, ...]:
    """Count what each layer costs and what share of the time it takes.

    Args:
        seen: in the order of execution, all with the same number of samples.
    """
    medians = [statistics.median(one.samples_ns) for one in seen]
    keep = sum(len(one.samples_ns) for one in seen) <= MOST_SAMPLES
    whole = sum(medians) or 1.0
    return tuple(_layer(one, median, median / whole, keep) for one, median in zip(seen, medians, strict=True))


def _layer(one: Seen, median_ns: float, share: float, keep: bool) -> Layer:
    operation = one.operation
    dtype = compute_dtype(operation)
    cost, moved = flops(operation), bytes_moved(operation)
    return Layer(
        name=one.name,
        operator=one.shown or operation.operator,
        provider=one.provider,
        dtype=dtype,
        inputs=operation.inputs,
        outputs=operation.outputs,
        flops=None if cost is None else cost * one.calls,
        bytes=None if moved is None else moved * one.calls,
        calls=one.calls,
        median_ns=median_ns,
        total_ns=sum(one.samples_ns),
        share=share,
        samples_ns=one.samples_ns if keep else (),
        facts=(*(("int8",) if dtype in ("int8", "uint8") else ()), *one.facts),
        module=one.module,
    )
