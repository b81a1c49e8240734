"""What `inspect` shows of an ONNX file of any origin: parameters and MACs by operator, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..export.foreign import Facts, Value, facts_of, operator_of, type_name, weights
from ..export.onnx_claims import memory_bytes
from ..export.onnx_ranks import check_ranks
from ..export.onnx_read import read_onnx, subgraphs
from ..export.onnx_shapes import shape_table, with_shapes
from ..models.errors import BadInput
from ..profile.dims import Sizes, sizes
from ..profile.errors import BadPlan
from ..profile.integer_share import IntegerShare
from ..profile.layer_costs import Operation, Tensor, flops
from .foreign_integers import integers_in
from .input_shapes import ShapeTable

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

MAC_OPERATORS = frozenset(
    {
        "Conv", "ConvTranspose", "ConvInteger", "DeformConv", "QLinearConv", "QLinearConvTranspose", "FusedConv",
        "Gemm", "FusedGemm", "QGemm", "MatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "FusedMatMul",
        "QLinearMatMul", "DynamicQuantizeMatMul", "Einsum", "LSTM", "GRU", "RNN", "DynamicQuantizeLSTM",
        "Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention",
    }
)  # fmt: skip
"""Operators that cost multiply-accumulates as papers count them."""

_OPEN_BODIES = ("If", "Loop", "Scan", "SequenceMap")
_HANDS_ON = frozenset(
    {"Identity", "Cast", "Transpose", "DequantizeLinear", "QuantizeLinear", "Reshape", "Squeeze", "Unsqueeze"}
)
_OWN_DOMAINS = ("", "ai.onnx", "com.microsoft")


@dataclass(frozen=True)
class OnnxLayer:
    """A node that has parameters or costs multiply-accumulates.

    Attributes:
        name: of the node, or of its output where it has none.
        kind: the operator.
        output_shape: at the batch that was counted; None where it is not known.
        params: of weights that no earlier node took.
        macs: an example; None where they cannot be counted.
    """

    name: str
    kind: str
    output_shape: tuple[int | str, ...] | None
    params: int
    macs: int | None


@dataclass(frozen=True)
class OnnxSummary:
    """What `inspect` shows of an ONNX file.

    Attributes:
        facts: what the file tells of itself.
        batch: that the MACs were counted at, before they were divided by it.
        macs: an example, of all that could be counted.
        macs_by_operator: the same, by operator.
        not_counted: reasons, each with what it holds of; MACs are complete where there are none.
        integers: the share of MACs that ONNX Runtime runs in integers; None for a file that is not quantized.
    """

    facts: Facts
    batch: int
    macs: int
    macs_by_operator: dict[str, int]
    not_counted: tuple[str, ...]
    layers: tuple[OnnxLayer, ...] = field(repr=False)
    integers: IntegerShare | None = None


def summarize_onnx(path: Path, shapes: ShapeTable | None = None) -> OnnxSummary:
    """Read a file and count its parameters and MACs.

    Args:
        path: an ONNX file.
        shapes: whole shapes of inputs whose dynamic dimensions are not the batch alone.

    Raises:
        BadInput: see `read_onnx`; a shape does not fit.
        ToolFailed: onnx's shape inference fails.
    """
    model = read_onnx(path)
    check_ranks(model, path, memory_bytes())  # what it cannot bound, the child that infers shapes can
    facts = facts_of(model, path)
    known = _sizes(facts.inputs, shapes or {}, path)
    declared = {value.name: _dims(value) for value in facts.inputs}
    inferred = with_shapes(model, path, lambda name, place, _: _size(known, declared, name, place))
    layers = tuple(_layers(model, inferred, known.batch))
    by_operator: Counter[str] = Counter()
    for layer in layers:
        by_operator[layer.kind] += layer.macs or 0
    missing = (*_not_counted(layers, facts, known, declared), *_strange(facts))
    counts = {name: count for name, count in by_operator.most_common() if count}
    integers = integers_in(path, facts.nodes, shapes or {}, known.batch)
    return OnnxSummary(facts, known.batch, sum(counts.values()), counts, missing, layers, integers)


def _sizes(inputs: Sequence[Value], shapes: ShapeTable, path: Path) -> Sizes:
    """Bind open sizes at batch 1, or at the number that the first input has in its first place."""
    declared = {value.name: _dims(value) for value in inputs}
    first = next((dims for dims in declared.values() if dims), ())
    open_batch = any(dims[:1] == (None,) or any(isinstance(d, str) for d in dims) for dims in declared.values())
    fixed = first[0] if len(first) > 1 and not open_batch else 1
    try:
        return sizes(declared, fixed if isinstance(fixed, int) and fixed > 0 else 1, shapes, str(path))
    except BadPlan as fault:
        raise BadInput(str(fault).replace("shape ", "--shape ", 1)) from fault


def _dims(value: Value) -> tuple[int | str | None, ...]:
    """Return declared sizes; a batch written as 0 or -1 is an open one."""
    dims = tuple(None if size == "?" or (isinstance(size, int) and size < 0) else size for size in value.shape or ())
    return (None, *dims[1:]) if dims and dims[0] == 0 else dims


def _size(known: Sizes, declared: Mapping[str, tuple[int | str | None, ...]], name: str, place: int) -> int | None:
    return known.of(name, declared[name], place) if name in declared else None


def _layers(model: ModelProto, inferred: ModelProto, batch: int) -> Iterator[OnnxLayer]:
    """Yield rows of the main graph, with functions unfolded, and then of graphs inside it."""
    held = {name: prod(tensor.dims) for name, tensor in weights(model)}
    held |= {name: prod(tensor.dims) for name, tensor in weights(inferred)}
    table = dict(shape_table(inferred.graph))
    yield from _rows(inferred.graph, table, held, batch, "")


def _rows(
    graph: GraphProto, table: dict[str, Any], held: dict[str, int], batch: int, inside: str
) -> Iterator[OnnxLayer]:
    sources = {name: name for name in held}
    for node in graph.node:
        if _hands_on(node, sources):
            continue
        names = [sources[name] for name in node.input if name in sources]
        params = sum(held.pop(name, 0) for name in dict.fromkeys(names))
        counts = node.op_type in MAC_OPERATORS
        if params or counts:
            macs = 0 if not counts else None if inside else _macs(node, table, batch)
            shape = table.get(node.output[0] if node.output else "", (0, None))[1]
            name = f"{inside}{node.name or next(iter(node.output), '')}"
            yield OnnxLayer(name, operator_of(node), _plain(shape), params, macs)
        for body in subgraphs(node):
            own = table | dict(shape_table(body))
            yield from _rows(body, own, held, batch, f"{inside}{node.name or node.op_type}/")


def _hands_on(node: NodeProto, sources: dict[str, str]) -> bool:
    """Follow a weight through what only changes its form, so that the layer that uses it has it."""
    if node.op_type not in _HANDS_ON or not node.input or node.input[0] not in sources or not node.output:
        return node.op_type == "Constant"
    sources[node.output[0]] = sources[node.input[0]]
    return True


def _macs(node: NodeProto, table: Mapping[str, Any], batch: int) -> int | None:
    """Count one node, or return None: shapes are open, or there is no rule."""
    from onnx import helper

    inputs = [None if not name else _tensor(table.get(name)) for name in node.input]
    outputs = [_tensor(table.get(name)) for name in node.output[:1] if name]
    if None in outputs or any(tensor is None for tensor, name in zip(inputs, node.input, strict=True) if name):
        return None
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute if not one.ref_attr_name}
    plain = {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in attributes.items()
    }
    found = flops(Operation(node.op_type, tuple(inputs), tuple(t for t in outputs if t), plain))
    return None if found is None else found // 2 // batch


def _tensor(known: tuple[int, Sequence[int | str | None]] | None) -> Tensor | None:
    if known is None or not all(isinstance(size, int) for size in known[1]):
        return None
    return Tensor(type_name(known[0]), tuple(size for size in known[1] if isinstance(size, int)))


def _plain(shape: Sequence[int | str | None] | None) -> tuple[int | str, ...] | None:
    return None if shape is None else tuple("?" if size is None else size for size in shape)


def _not_counted(
    layers: Sequence[OnnxLayer], facts: Facts, known: Sizes, declared: Mapping[str, tuple[int | str | None, ...]]
) -> Iterator[str]:
    """Say of which operators MACs are missing, and why."""
    inner = [layer for layer in layers if layer.macs is None and "/" in layer.name]
    outer = [layer for layer in layers if layer.macs is None and layer not in inner]
    if outer:
        open_sizes = [
            f"{name}={','.join(str(known.of(name, dims, i) or 'SIZE') for i in range(len(dims)))}"
            for name, dims in declared.items()
            if any(known.of(name, dims, i) is None for i in range(len(dims)))
        ]
        remedy = f"give --shape {' --shape '.join(open_sizes[:3])}" if open_sizes else "its shapes depend on values"
        yield f"{_kinds(outer)}: the shapes are not known; {remedy}"
    if inner:
        outside = ", ".join(kind for kind in _OPEN_BODIES if kind in facts.nodes)
        yield f"{_kinds(inner)} inside {outside}: how often they run is not in the file"


def _strange(facts: Facts) -> Iterator[str]:
    """Name operators whose work, and often weights, this does not know: custom ones, trees, linear models."""
    strange = [
        f"{count} x {name}" for name, count in facts.nodes.items() if name.rpartition(".")[0] not in _OWN_DOMAINS
    ]
    if strange and not facts.functions:
        yield f"{', '.join(strange[:5])}: their work is not known, nor weights in their attributes"


def _kinds(layers: Sequence[OnnxLayer]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in Counter(layer.kind for layer in layers).most_common())
