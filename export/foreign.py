"""What an ONNX file of any origin says of itself: versions, inputs and outputs, weights, sizes on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .onnx_read import nodes, read_onnx, tensors
from .onnx_shapes import constant_of

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto, TypeProto, ValueInfoProto

_TYPES = {"FLOAT": "float32", "DOUBLE": "float64"}


@dataclass(frozen=True)
class Value:
    """An input or output as the file declares it.

    Attributes:
        dtype: such as `float32`; `seq(float32)`, `optional(...)` or `map(...)` where it is no tensor.
        shape: numbers, names, or `?`; None where the file gives none.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Facts:
    """What a file tells without being run.

    Attributes:
        ir_version: of the format.
        opsets: version by domain; the default one is `ai.onnx`.
        producer: the tool that wrote it and its version; empty where it does not tell.
        metadata: the file's own properties.
        inputs: those that must be given; initializers that are listed among them are not.
        outputs: in order.
        params: numbers in weights: tensors of floating point or of at most 8 bits, with more than one number.
        precision: parameters by their type.
        nodes: of all graphs and functions, by operator, with its domain where that is not ONNX's own.
        functions: that the file brings along.
        bytes: on disk, with the files beside it.
        beside: names of the files with weights.
    """

    path: Path
    ir_version: int
    opsets: dict[str, int]
    producer: str
    metadata: dict[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: int
    precision: dict[str, int]
    nodes: dict[str, int]
    functions: int
    bytes: int
    beside: tuple[str, ...]


def check_onnx(path: str | PathLike[str]) -> Facts:
    """Check a file and say what it is.

    Raises:
        BadInput: see `onnx_read.read_onnx`.
    """
    return facts_of(read_onnx(path), Path(fspath(path)))


def facts_of(model: ModelProto, path: Path) -> Facts:
    """Return the facts of a file that was read."""
    held = {tensor.name for tensor in model.graph.initializer}
    precision = _precision(model)
    beside = tuple(dict.fromkeys(name for tensor in tensors(model) for name in _locations(tensor)))
    return Facts(
        path=path,
        ir_version=model.ir_version,
        opsets={one.domain or "ai.onnx": one.version for one in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        metadata={one.key: one.value for one in model.metadata_props},
        inputs=tuple(_value(one) for one in model.graph.input if one.name not in held),
        outputs=tuple(map(_value, model.graph.output)),
        params=sum(precision.values()),
        precision=precision,
        nodes=dict(Counter(operator_of(node) for node in nodes(model)).most_common()),
        functions=len(model.functions),
        bytes=_on_disk(path, beside),
        beside=beside,
    )


def file_bytes(path: Path) -> int:
    """Return the bytes of a checked file with those of the files beside it."""
    return check_onnx(path).bytes


def _on_disk(path: Path, beside: tuple[str, ...]) -> int:
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)


def is_weight(tensor: TensorProto) -> bool:
    """Tell weights from shapes, indices and single numbers."""
    kind = type_name(tensor.data_type)
    return prod(tensor.dims) > 1 and ("float" in kind or kind.strip("u") in ("int8", "int4", "int2"))


def weights(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield each weight with the name of its value: initializers and `Constant` nodes, those of subgraphs too."""
    from .onnx_read import graphs

    for graph, _ in graphs(model):
        yield from ((tensor.name, tensor) for tensor in graph.initializer if is_weight(tensor))
        yield from ((one.values.name, one.values) for one in graph.sparse_initializer if is_weight(one.values))
    for node in nodes(model):
        tensor = constant_of(node)
        if tensor is not None and is_weight(tensor):
            yield node.output[0], tensor


def operator_of(node: Any) -> str:
    """Return an operator's name, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def type_name(data_type: int) -> str:
    """Return the name of an element type as numpy writes it."""
    import onnx

    kinds: Any = onnx.TensorProto.DataType
    name = str(kinds.Name(data_type))
    return _TYPES.get(name, name.lower())


def _precision(model: ModelProto) -> dict[str, int]:
    found: Counter[str] = Counter()
    for _, tensor in weights(model):
        found[type_name(tensor.data_type)] += prod(tensor.dims)
    return dict(found.most_common())


def _locations(tensor: TensorProto) -> Iterator[str]:
    if tensor.data_location == tensor.EXTERNAL:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _value(value: ValueInfoProto) -> Value:
    return Value(value.name, _kind(value.type), _shape(value.type))


def _kind(kind: TypeProto) -> str:
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        return type_name(getattr(kind, which).elem_type).replace("undefined", "?")
    if which == "sequence_type":
        return f"seq({_kind(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({_kind(kind.optional_type.elem_type)})"
    if which == "map_type":
        return f"map({type_name(kind.map_type.key_type)}, {_kind(kind.map_type.value_type)})"
    return "?"


def _shape(kind: TypeProto) -> tuple[int | str, ...] | None:
    if not (kind.HasField("tensor_type") and kind.tensor_type.HasField("shape")):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims)
