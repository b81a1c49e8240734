"""Hold what an ONNX file claims against what it holds: weights, places of data, sizes, depth, functions."""

from __future__ import annotations

import importlib
import stat
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ..models.errors import BadInput
from .onnx_read import DEEPEST, MOST_CALLS, MOST_RANK, bits_of, bytes_of, graphs, subgraphs, tensors

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

_EXTERNAL = 1


def check_claims(model: ModelProto, path: Path) -> None:
    """Check a parsed file.

    Raises:
        BadInput: see `onnx_read.read_onnx`.
    """
    _check_depth(model, path)
    _check_functions(model, path)
    memory = memory_bytes()
    for tensor in tensors(model):
        _check_tensor(tensor, path, memory)
    for graph, _ in graphs(model):
        for value in (*graph.input, *graph.value_info, *graph.output):
            _check_value(value, path, memory)
        _check_sparse(graph, path, memory)


def _check_depth(model: ModelProto, path: Path) -> None:
    deepest = max(depth for _, depth in graphs(model))
    if deepest > DEEPEST:
        raise BadInput(f"{path}: subgraphs lie {deepest} deep in each other, wanted at most {DEEPEST}; flatten them")


def _check_functions(model: ModelProto, path: Path) -> None:
    """Count the nodes that functions unfold into: each may call another twice, and so on."""
    calls = {(f.domain, f.name): [*_calls(f.node)] for f in model.functions}
    if not calls:
        return
    try:
        order = [*TopologicalSorter({name: {c for c in made if c in calls} for name, made in calls.items()}).static_order()]  # fmt: skip # noqa: E501
    except CycleError as fault:
        raise BadInput(f"{path}: its function {fault.args[1][0][1]!r} calls itself; ONNX has no recursion") from fault
    sizes: dict[tuple[str, str], int] = {}
    for name in order:
        sizes[name] = sum(sizes.get(call, 1) for call in calls[name])
    whole = sum(sizes.get(call, 1) for call in _calls(model.graph.node))
    if whole > MOST_CALLS:
        raise BadInput(f"{path}: its functions unfold into {whole:.3g} nodes, wanted at most {MOST_CALLS}")


def _calls(found: Any) -> Iterator[tuple[str, str]]:
    waiting = [*found]
    while waiting:
        node = waiting.pop()
        yield node.domain, node.op_type
        for graph in subgraphs(node):
            waiting.extend(graph.node)


def _check_tensor(tensor: TensorProto, path: Path, memory: int) -> None:
    where = f"{path}: weight {tensor.name!r}" if tensor.name else f"{path}: a constant without a name"
    try:
        bits_of(tensor.data_type)
    except ValueError as fault:
        raise BadInput(f"{where}: its element type {tensor.data_type} is unknown to this release of onnx") from fault
    if min(tensor.dims, default=0) < 0:
        raise BadInput(f"{where}: has the shape {list(tensor.dims)}, wanted sizes of at least 0")
    wanted = bytes_of(tensor.data_type, list(tensor.dims))
    if tensor.data_location == _EXTERNAL:
        _check_external(tensor, path, wanted, where)
    else:
        _check_held(tensor, wanted, where)
    if wanted > memory:
        raise BadInput(f"{where}: takes {_gb(wanted)}, and this machine's memory is {_gb(memory)}")


def _check_held(tensor: TensorProto, wanted: int, where: str) -> None:
    if tensor.HasField("raw_data"):
        got, unit = len(tensor.raw_data), "bytes"
    else:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
        got, unit = sum(len(getattr(tensor, name)) for name in fields), "numbers"
        wanted = _entries(tensor)
    if got != wanted:
        raise BadInput(f"{where}: holds {got} {unit}, and its shape {list(tensor.dims)} needs {wanted}; it is damaged")


def _entries(tensor: TensorProto) -> int:
    """Return how many entries a tensor has in the field of its type: a complex number takes two, small ones share."""
    import onnx

    count, bits = int(prod(tensor.dims)), bits_of(tensor.data_type)
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * count
    return -(-count * bits // 8) if 0 < bits < 8 else count


def _check_external(tensor: TensorProto, path: Path, wanted: int, where: str) -> None:
    entries: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    file = _beside(entries.get("location", ""), path, where)
    size: int = file.stat().st_size
    offset = _number(entries, "offset", 0, where)
    length = _number(entries, "length", wanted, where)
    if length != wanted:
        raise BadInput(f"{where}: gives its length as {length} bytes, and its shape {list(tensor.dims)} needs {wanted}")
    if offset + length > size:
        raise BadInput(f"{where}: wants bytes {offset} to {offset + length} of {file}, which has {size}; copy it again")


def _beside(location: str, path: Path, where: str) -> Path:
    """Return the file of external data. Links are followed: where they end must be in the file's own folder.

    A file that is itself a link, as in caches of downloads, may have its data where it ends.
    """
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive
    if not location or "\0" in location or ".." in parts or absolute:
        raise BadInput(f"{where}: lies in {location!r}, wanted a file in the model's own folder, without '..'")
    file = path.parent / location
    try:
        real, kind = file.resolve(strict=True), file.stat().st_mode
    except (OSError, RuntimeError) as fault:
        raise BadInput(f"{where}: lies in {file}, which is not there; put it beside the model") from fault
    if not any(real.is_relative_to(folder) for folder in (path.parent.resolve(), path.resolve().parent)):
        raise BadInput(
            f"{where}: lies in {file}, a link out of the model's folder to {real}; put the file itself there"
        )
    if not stat.S_ISREG(kind):
        raise BadInput(f"{where}: lies in {file}, which is not a plain file")
    return file


def _number(entries: Mapping[str, str], key: str, usual: int, where: str) -> int:
    text = entries.get(key, "")
    if not text:
        return usual
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadInput(f"{where}: gives its {key} as {text[:40]!r}, wanted a number of bytes")
    return int(text)


def _check_value(value: ValueInfoProto, path: Path, memory: int) -> None:
    kind = value.type.tensor_type
    dims = [dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value")]
    if len(kind.shape.dim) > MOST_RANK:
        raise BadInput(f"{path}: {value.name!r} has {len(kind.shape.dim)} dimensions, wanted at most {MOST_RANK}")
    if prod(max(size, 1) for size in dims) > memory:
        raise BadInput(f"{path}: {value.name!r} has sizes {dims}: more than this machine's memory of {_gb(memory)}")


def _check_sparse(graph: GraphProto, path: Path, memory: int) -> None:
    """Check the size of sparse weights as runtimes keep them: filled up."""
    for sparse in graph.sparse_initializer:
        wanted = bytes_of(sparse.values.data_type, list(sparse.dims))
        if wanted > memory or min(sparse.dims, default=0) < 0:
            raise BadInput(
                f"{path}: sparse weight {sparse.values.name!r} of shape {list(sparse.dims)} takes {_gb(wanted)} filled "
                f"up, and this machine's memory is {_gb(memory)}"
            )


def memory_bytes() -> int:
    """Return the memory of this machine."""
    psutil: Any = importlib.import_module("psutil")
    return int(psutil.virtual_memory().total)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
