"""Read ONNX files of any origin. What a file claims is held against what it holds before a library acts on it.

ONNX Runtime, TensorRT and onnx's own shape inference believe a file: a tensor of 2**40 numbers without any of them, or
a shape with a hundred million entries, ends a process that opens it. What a file asks for only when it runs (a tensor
whose size comes from an input) cannot be seen here; the limits of child processes hold there.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.errors import BadInput

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

MOST_BYTES = (1 << 31) - 1
"""Of a file without what lies beside it: protobuf's own limit."""

DEEPEST = 16
"""Levels of subgraphs; real files have three or four, and protobuf itself ends at about 30."""

MOST_RANK = 64
"""Dimensions of a tensor."""

MOST_CALLS = 1_000_000
"""Nodes that functions unfold into."""


def check_file_safe(path: str | PathLike[str]) -> None:
    """Raise unless an ONNX file can be handed to ONNX Runtime, TensorRT or onnx.

    Where a file computes shapes that cannot be bounded by reading it, a child process opens it first, under limits.

    Raises:
        BadInput: see `read_onnx`; or opening it takes more memory or time than a file of this size can need.
    """
    openable(path)


def openable(path: str | PathLike[str]) -> ModelProto:
    """Read a file as `read_onnx` does, checked as by `check_file_safe`."""
    from .onnx_claims import memory_bytes
    from .onnx_ranks import check_ranks

    path = Path(fspath(path))
    model = read_onnx(path)
    if not check_ranks(model, path, memory_bytes()):
        from .onnx_trial import try_open

        try_open(path)
    return model


def read_onnx(path: str | PathLike[str], weights: bool = False) -> ModelProto:
    """Read and check a file.

    Args:
        path: an ONNX file.
        weights: load what lies beside the file too; without it those tensors stay empty.

    Raises:
        BadInput: no such file, not ONNX, damaged, or too large; weights outside the file's folder or fewer than
            declared; sizes that this machine's memory cannot hold; subgraphs or functions too deep. The message names
            the place in the file.
    """
    path = Path(fspath(path))
    model = _parse(path)
    from .onnx_claims import check_claims

    check_claims(model, path)
    if weights:
        import onnx

        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except Exception as fault:
            raise BadInput(f"{path}: its weights cannot be read: {str(fault).splitlines()[0]}") from fault
    return model


def _parse(path: Path) -> ModelProto:
    if not path.is_file():
        raise BadInput(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; wanted an ONNX file")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise BadInput(f"{path}: has {size} bytes, wanted at most {MOST_BYTES}; keep the weights in a file beside it")
    import onnx

    damaged: Any = importlib.import_module("google.protobuf.message").DecodeError
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (damaged, OSError) as fault:
        raise BadInput(f"{path}: not an ONNX file, or a damaged one ({_reason(fault, size)})") from fault
    if not model.graph.node and not model.graph.output:
        raise BadInput(f"{path}: not an ONNX file: {_emptiness(size, model)}")
    return model


def _reason(fault: Exception, size: int) -> str:
    said = str(fault).rpartition(": ")[2].splitlines()
    return f"{size} bytes: {said[0] if said else type(fault).__name__}"


def _emptiness(size: int, model: ModelProto) -> str:
    if not size:
        return "it is empty"
    return "its graph has no nodes and no outputs" if model.HasField("graph") else "it holds no graph"


def graphs(model: ModelProto) -> Iterator[tuple[GraphProto, int]]:
    """Yield the main graph and all inside it, with their depth; the main one has 0."""
    waiting = [(model.graph, 0)]
    while waiting:
        graph, depth = waiting.pop()
        yield graph, depth
        waiting.extend((inner, depth + 1) for node in graph.node for inner in subgraphs(node))


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node runs."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield every node: of the main graph, of those inside it, and of functions with theirs."""
    waiting = [*model.graph.node]
    for function in model.functions:
        waiting.extend(function.node)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in subgraphs(node):
            waiting.extend(graph.node)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that a file holds: weights, those of `Constant` nodes, and the parts of sparse ones."""
    for graph, _ in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from _parts(sparse)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()), *attribute.sparse_tensors):  # fmt: skip # noqa: E501
                yield from _parts(sparse)


def _parts(sparse: SparseTensorProto) -> Iterator[TensorProto]:
    yield sparse.values
    yield sparse.indices


def bits_of(data_type: int) -> int:
    """Return the bits of one element; 0 for text.

    Raises:
        ValueError: ONNX has no such type.
    """
    import onnx

    kinds: Any = onnx.TensorProto.DataType
    name = str(kinds.Name(data_type))
    known = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8, "STRING": 0}
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    if name not in known and not digits:
        raise ValueError(f"no element type {name}")
    return known[name] if name in known else int(digits[0])


def bytes_of(data_type: int, dims: list[int]) -> int:
    """Return the bytes of a tensor whose sizes are known."""
    return -(-prod(dims) * bits_of(data_type) // 8)
