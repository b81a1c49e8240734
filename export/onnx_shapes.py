"""The shapes inside an ONNX file of any origin, at one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .onnx_trial import in_child

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, ValueInfoProto

_SMALL = 1024
Sized = Callable[[str, int, int | str | None], int | None]
"""Of an input's name, the place of a dimension and what it declares: the size, or None to leave it open."""


def with_shapes(model: ModelProto, path: Path, sized: Sized) -> ModelProto:
    """Return a copy without large weights, its functions unfolded, with all shapes that onnx can infer.

    Args:
        model: a checked file, see `onnx_read`.
        path: of the file, for messages.
        sized: fixes open dimensions of inputs.

    Raises:
        BadInput: inference takes more memory or time than a file of this size can need.
        ToolFailed: onnx fails on it.
    """
    bare = _bare(model)
    for value in bare.graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            size = sized(value.name, place, _declared(dim))
            if size is not None:
                dim.Clear()
                dim.dim_value = size
    del bare.graph.value_info[:]  # they were written for the open sizes
    import onnx

    inferred = onnx.ModelProto()
    inferred.ParseFromString(_infer(bare.SerializeToString(), path))
    return inferred


def _infer(content: bytes, path: Path) -> bytes:
    return in_child(path, "shapes", len(content), content)


def _bare(model: ModelProto) -> ModelProto:
    """Return a copy in which large weights are inputs without values: inference needs their shapes alone."""
    import onnx

    large = [tensor for tensor in model.graph.initializer if prod(tensor.dims) > _SMALL]
    names = {tensor.name for tensor in large}
    declared = {value.name for value in model.graph.input}
    bare = onnx.ModelProto(
        ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions
    )
    graph, made = model.graph, bare.graph
    made.name = graph.name
    made.input.extend(graph.input)
    made.output.extend(graph.output)
    made.initializer.extend(tensor for tensor in graph.initializer if tensor.name not in names)
    for tensor in large:
        if tensor.name not in declared:
            made.input.append(_as_value(tensor, tensor.name))
    for node in graph.node:
        tensor = constant_of(node) if len(node.output) == 1 else None
        if tensor is not None and prod(tensor.dims) > _SMALL:
            made.input.append(_as_value(tensor, node.output[0]))
        else:
            made.node.append(node)
    return bare


def _as_value(tensor: TensorProto, name: str) -> ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))


def constant_of(node: NodeProto) -> TensorProto | None:
    """Return the tensor of a `Constant` node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((one.t for one in node.attribute if one.name == "value" and one.HasField("t")), None)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes as plain values, by name."""
    from onnx import helper

    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _declared(dim: TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None


def shape_table(graph: GraphProto) -> Iterator[tuple[str, tuple[int, tuple[int | str | None, ...]]]]:
    """Yield the element type and shape of every value that has one."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            yield value.name, (kind.elem_type, tuple(map(_declared, kind.shape.dim)))
    for tensor in graph.initializer:
        yield tensor.name, (tensor.data_type, tuple(tensor.dims))
