"""Read the trace that ONNX Runtime's profiler writes: which nodes ran in each inference, and for how long. Pure.

What is built on, as 1.31 writes it: one `model_run` event closes each inference; a node's event is written when it
ends, so that those inside an `If` or a `Loop` come before it; durations are cut to whole microseconds; weights that a
kernel has packed for itself are missing from the list of inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .layer_costs import Tensor

RESOLUTION_NS = 1000

_SUFFIX = "_kernel_time"
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_TYPES = {"float": "float32", "double": "float64"}


Key = tuple[str, str, int, str]
"""What tells the nodes of one file apart: name, operator, number in its graph, and what is around it."""


@dataclass(frozen=True)
class Ran:
    """One node in one inference.

    Attributes:
        name: of the node; made up of operator and number where it has none.
        index: of the node in its own graph.
        start_us: when it began.
        own_ns: its time without the nodes inside it.
        device_ns: time of its kernels on a GPU; None where the trace has none.
        inputs: those that the trace names; weights may be missing.
        inside: the control-flow operator around it, or an empty text.
    """

    name: str
    operator: str
    provider: str
    index: int
    start_us: int
    own_ns: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    device_ns: int | None = None
    inside: str = ""

    @property
    def key(self) -> Key:
        """What tells it apart."""
        return self.name, self.operator, self.index, self.inside


def inferences(events: Iterable[Mapping[str, Any]]) -> Iterator[list[Ran]]:
    """Yield the nodes of each whole inference in the order in which they began.

    Args:
        events: of the trace, in its order.
    """
    ran: list[Ran] = []
    for event in events:
        kind, name = event.get("cat"), str(event.get("name"))
        if kind == "Session" and name == "model_run":
            yield sorted(ran, key=lambda one: one.start_us)
            ran = []
        elif kind == "Kernel" and ran:
            ran[-1] = replace(ran[-1], device_ns=(ran[-1].device_ns or 0) + _span_ns(event))
        elif kind == "Node" and name.endswith(_SUFFIX):
            _add(ran, _node(event, name.removesuffix(_SUFFIX).strip()))


def _add(ran: list[Ran], node: Ran) -> None:
    """Add a node; those that ended before a control-flow node and began after it are inside it."""
    if node.operator in _CONTROL:
        first = next((i for i, one in enumerate(ran) if one.start_us > node.start_us), len(ran))
        inner = ran[first:]
        node = replace(node, own_ns=max(0, node.own_ns - sum(one.own_ns for one in inner)))
        ran[first:] = [replace(one, inside=f"{node.operator} {one.inside}".strip()) for one in inner]
    ran.append(node)


def _node(event: Mapping[str, Any], name: str) -> Ran:
    args = event.get("args") or {}
    operator, index = str(args.get("op_name", "")), int(args.get("node_index", -1))
    return Ran(
        name=name or f"{operator}_{index}",
        operator=operator,
        provider=str(args.get("provider", "")),
        index=index,
        start_us=int(event["ts"]),
        own_ns=_span_ns(event),
        inputs=_tensors(args.get("input_type_shape")),
        outputs=_tensors(args.get("output_type_shape")),
    )


def _span_ns(event: Mapping[str, Any]) -> int:
    """Return the middle of what a duration that was cut to whole microseconds may have been."""
    return int(event["dur"]) * RESOLUTION_NS + RESOLUTION_NS // 2


def _tensors(listed: Any) -> tuple[Tensor, ...]:
    pairs = ((str(kind).lower(), shape) for one in listed or () for kind, shape in one.items())
    return tuple(Tensor(_TYPES.get(kind, kind), tuple(map(int, shape))) for kind, shape in pairs)
