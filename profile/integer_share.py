"""How much of a file's arithmetic a runtime really does in integers: from the graph as it optimized and ran it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .affinity import bound
from .errors import BadPlan, ProfileError
from .fallback import EDGES, Surroundings, reason, unfused
from .inputs import Array
from .layer_costs import flops
from .layers_ort import GRAPH, prepared, profiling_session
from .ort_graph import Graph, Node, match, operation, read_graph
from .ort_modules import module_of, producers
from .ort_session import CPU, CUDA
from .ort_trace import Ran, inferences
from .plan import Plan

INTEGER = frozenset(
    {
        "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulInteger16",
        "MatMulIntegerToFloat", "QAttention", "QGemm", "QLinearConv", "QLinearConvTranspose", "QLinearMatMul",
    }
)  # fmt: skip
"""Operators that multiply integers and add them up as integers."""

WEIGHTS_ONLY = frozenset({"MatMulBnb4", "MatMulNBits"})
"""Operators whose weights are integers. In what they multiply them a kernel chooses, which no graph tells."""

FLOAT = frozenset(
    {
        "Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "FusedConv", "FusedConvTranspose", "FusedGemm",
        "FusedMatMul", "FusedMatMulActivation", "GRU", "Gemm", "GemmFastGelu", "GroupQueryAttention", "LSTM", "MatMul",
        "MultiHeadAttention", "NhwcConv", "NhwcFusedConv", "RNN", "TransposeMatMul",
    }
)  # fmt: skip
"""Operators of multiply-accumulates in floating point."""

_REORDERS = ("ReorderInput", "ReorderOutput", "Transpose")
_DEVICES = {device.runtime: device for device in (CPU, CUDA)}


@dataclass(frozen=True)
class FloatNode:
    """An operator of multiply-accumulates that did not run in integers.

    Attributes:
        name: of the node in the optimized graph.
        macs: an example; None where they cannot be counted.
        reason: as far as the optimized graph tells.
        module: the path of the module whose weights it has, an empty text where it is not known.
    """

    name: str
    operator: str
    macs: int | None
    reason: str
    module: str = ""

    @property
    def title(self) -> str:
        """What people know it by."""
        return f"{self.operator} {self.module or self.name}"


@dataclass(frozen=True)
class IntegerShare:
    """What a runtime does in integers.

    MACs are of an example, counted in the shapes that the runtime ran with: what it pads is computed too.

    Attributes:
        runtime: a key of `runners.RUNTIMES`.
        nodes: operators that ran, of any kind; an engine's layers.
        products: how many of them multiply and accumulate.
        integer_products: how many of these do so in integers.
        macs: of all that could be counted; None where the runtime does not tell shapes.
        integer_macs: those in integers.
        weights_only_macs: those of operators whose weights alone are integers; not among `integer_macs`.
        in_float: operators that stayed in float, those with the most MACs first.
        not_counted: operators without a count; they are in no share.
        unfused: operators in float between a DequantizeLinear and a QuantizeLinear, by kind and name.
        pairs: QuantizeLinear and DequantizeLinear nodes that ran, by operator.
        edges: how many of these only turn the file's own inputs and outputs from and to float.
        reorders: layout changes that the runtime added, by operator.
        casts: Cast nodes that the runtime added.
        formats: an engine's kernels by the number format that they write.
        absent: why there is no share; None where there is one.
    """

    runtime: str
    nodes: int = 0
    products: int = 0
    integer_products: int = 0
    macs: int | None = None
    integer_macs: int = 0
    weights_only_macs: int = 0
    in_float: tuple[FloatNode, ...] = ()
    not_counted: tuple[str, ...] = ()
    unfused: tuple[str, ...] = ()
    pairs: Mapping[str, int] | None = None
    edges: int = 0
    reorders: Mapping[str, int] | None = None
    casts: int = 0
    formats: Mapping[str, int] | None = None
    absent: str | None = None

    @property
    def share(self) -> float | None:
        """MACs in integers of all MACs, 0 to 1; None where they were not counted."""
        return self.integer_macs / self.macs if self.macs else None

    @property
    def inner_pairs(self) -> int:
        """QuantizeLinear and DequantizeLinear nodes that ran inside the graph, not at its edges."""
        return sum((self.pairs or {}).values()) - self.edges

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"share": self.share}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> IntegerShare:
        """Return what `to_dict` made plain."""
        nodes = tuple(FloatNode(**one) for one in plain["in_float"])
        lists = {key: tuple(plain[key]) for key in ("not_counted", "unfused")}
        return cls(**{key: value for key, value in plain.items() if key != "share"} | {"in_float": nodes} | lists)


def integer_share(
    path: str | Path, runtime: str = "ort-cpu", plan: Plan | None = None, inputs: Mapping[str, Array] | None = None
) -> IntegerShare:
    """Run a file a few times and see which of its multiply-accumulates ran in integers.

    Args:
        path: an ONNX file.
        runtime: `ort-cpu` or `ort-cuda`.
        plan: batch, threads, seed and shapes matter here; `Plan()` if None.
        inputs: arrays by name; random ones if None.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: another runtime, or a file or inputs that it cannot run.
        ProfileError: the inference failed.
    """
    if runtime not in _DEVICES:
        raise BadPlan(f"integer_share: got runtime {runtime!r}, wanted one of {', '.join(_DEVICES)}")
    plan = plan or Plan()
    ran, graph, origin = _traced(Path(path), runtime, plan, inputs)
    if graph is None:
        return IntegerShare(runtime, len(ran), absent="the onnx package is not installed, so that MACs are not counted")
    return _share(runtime, ran, (graph, origin), plan.batch)


def _traced(
    path: Path, runtime: str, plan: Plan, inputs: Mapping[str, Array] | None
) -> tuple[list[Ran], Graph | None, Graph | None]:
    """Return the nodes of one inference, the optimized graph, and the file's own."""
    device = _DEVICES[runtime]
    with tempfile.TemporaryDirectory(prefix="integers-") as name, bound(plan):
        folder = Path(name)
        session = profiling_session(path, device, plan, folder)
        try:
            prepared(session, device, plan, inputs)()
        except (BadPlan, MemoryError):
            raise
        except Exception as fault:
            raise ProfileError(f"{path}: the inference failed: {fault}") from fault
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = read_graph(folder / GRAPH)
    found = list(inferences(events))
    if not found:
        raise ProfileError(f"{path}: ONNX Runtime's trace holds no whole inference")
    return found[-1], graph, read_graph(path)


def _share(runtime: str, ran: Sequence[Ran], graphs: tuple[Graph, Graph | None], batch: int) -> IntegerShare:
    graph, origin = graphs
    around = Surroundings.of(graph)
    counts, before = Counter(one.operator for one in ran if not one.inside), _operators(origin)
    products = list(_products(ran, graph, batch))
    macs, integers = Counter[str](), 0
    for one, _, cost in products:
        macs[_kind(one.operator)] += cost or 0
        integers += one.operator in INTEGER
    return IntegerShare(
        runtime=runtime,
        nodes=len(ran),
        products=len(products),
        integer_products=integers,
        macs=sum(macs.values()),
        integer_macs=macs["integer"],
        weights_only_macs=macs["weights"],
        in_float=_in_float(products, around, producers(origin)),
        not_counted=tuple(f"{one.operator} {one.name}" for one, _, cost in products if cost is None),
        unfused=unfused(graph.main, around),
        pairs={name: counts[name] for name in EDGES if counts[name]},
        edges=around.edges(graph.main),
        reorders={name: more for name in _REORDERS if (more := counts[name] - before[name]) > 0},
        casts=max(0, counts["Cast"] - before["Cast"]),
    )


def _operators(graph: Graph | None) -> Counter[str]:
    return Counter(node.operator for node in (graph.main if graph else ()))


def _products(ran: Sequence[Ran], graph: Graph, batch: int) -> Iterator[tuple[Ran, Node | None, int | None]]:
    """Yield what multiplied and accumulated, with its MACs an example."""
    for one, node in zip(ran, match(graph, ran), strict=True):
        if one.operator in INTEGER | WEIGHTS_ONLY | FLOAT:
            cost = flops(operation(one, node))
            yield one, node, None if cost is None else cost // 2 // batch


def _kind(operator: str) -> str:
    return "integer" if operator in INTEGER else "weights" if operator in WEIGHTS_ONLY else "float"


def _in_float(
    products: Sequence[tuple[Ran, Node | None, int | None]], around: Surroundings, made_by: Mapping[str, Node]
) -> tuple[FloatNode, ...]:
    found: dict[tuple[str, str], FloatNode] = {}
    for one, node, cost in products:
        if one.operator in FLOAT:
            key = (one.name, one.inside)
            made = FloatNode(one.name, one.operator, cost, reason(node, around), module_of(node, made_by))
            # In a loop it runs again and again.
            found[key] = replace(made, macs=(found[key].macs or 0) + (cost or 0)) if key in found else made
    return tuple(sorted(found.values(), key=lambda node: -(node.macs or 0)))


def engine_share(manifest: Mapping[str, Any]) -> IntegerShare:
    """Read from an engine's manifest which number formats its kernels write; TensorRT tells no MACs.

    Args:
        manifest: as `export` writes it beside an engine.
    """
    runtime, formats = str(manifest["flavour"]), dict(manifest.get("engine_precisions") or {})
    if not formats:
        return IntegerShare(runtime, absent="TensorRT tells of an engine's kernels only where a GPU can load it")
    return IntegerShare(runtime, sum(formats.values()), formats=formats, absent="TensorRT tells no MACs of its kernels")
