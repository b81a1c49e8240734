"""How many entries the shapes in an ONNX file have, at the most, as far as the file tells.

Shape inference makes a dimension of each entry, and ONNX Runtime infers when it opens a file: a shape of 10**8 entries,
computed by two nodes out of one number, takes all memory there is. What cannot be bounded here is tried out in a child.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.errors import BadInput
from .onnx_read import MOST_RANK, subgraphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Bound = int | None
"""Entries of a vector at the most; None where nothing tells."""

_TAKES_SHAPE = {"ConstantOfShape": 0, "Reshape": 1, "Expand": 1, "Tile": 1, "Unsqueeze": 1, "Squeeze": 1, "Pad": 1}
"""Operators whose result has as many dimensions as this input has numbers, or that go through them one by one."""

_MOST_VALUES = 64
_MOST_ENTRIES = 65_536
"""Of a shape: more than any real one, and few enough to cost nothing."""

_NUMBER_BYTES = 4


class _Lengths:
    """Bounds and small constant values, by name; a subgraph sees those around it."""

    def __init__(self, bounds: dict[str, Bound], values: dict[str, list[int]], memory: int) -> None:
        self.bounds, self.values, self.memory = bounds, values, memory
        self.exact: set[str] = set()

    def inner(self) -> _Lengths:
        return _Lengths({**self.bounds}, {**self.values}, self.memory)

    def take(self, tensor: TensorProto, name: str) -> None:
        self.bounds[name] = prod(tensor.dims)
        self.exact.add(name)
        if prod(tensor.dims) <= _MOST_VALUES and tensor.data_type in (6, 7) and not tensor.external_data:
            from onnx import numpy_helper

            self.values[name] = [int(value) for value in numpy_helper.to_array(tensor).ravel()]

    def of(self, name: str) -> Bound:
        return self.bounds.get(name, 0)  # an input of an open length is bounded by what is given to it


def check_ranks(model: ModelProto, path: Path, memory: int) -> bool:
    """Refuse shapes with absurdly many entries, and constants too large for `memory` bytes.

    Returns:
        Whether all that are computed could be bounded.

    Raises:
        BadInput: one has more than `_MOST_ENTRIES`, or a node makes a constant that does not fit.
    """
    bounded = _check_graph(model.graph, path, _Lengths({}, {}, memory))
    # What functions compute depends on their callers.
    return bounded and not any(node.op_type in _TAKES_SHAPE for f in model.functions for node in f.node)


def _check_graph(graph: GraphProto, path: Path, known: _Lengths) -> bool:
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        known.bounds[value.name] = prod(max(dim.dim_value, 1) for dim in dims)
        known.exact.add(value.name)
    for tensor in graph.initializer:
        known.take(tensor, tensor.name)
    bounded = True
    for node in graph.node:
        bounded = _check_node(node, path, known) and bounded
        for body in subgraphs(node):
            bounded = _check_graph(body, path, known.inner()) and bounded
        _follow(node, known)
    return bounded


def _check_node(node: NodeProto, path: Path, known: _Lengths) -> bool:
    made = _made(node, known)
    if made * _NUMBER_BYTES > known.memory:
        raise BadInput(
            f"{path}: {node.op_type} {node.name or node.output[0]!r} makes {made:.3g} numbers by the file's own "
            f"constants, and this machine's memory is {known.memory / 1e9:.3g} GB"
        )
    place = _TAKES_SHAPE.get(node.op_type)
    if place is None or place >= len(node.input):
        return True
    name = node.input[place]
    bound = known.of(name)
    if bound is None or bound <= _MOST_ENTRIES:
        return bound is not None
    if name in known.exact:
        raise BadInput(
            f"{path}: {node.op_type} {node.name or node.output[0]!r} takes the shape {name!r} of {bound} entries, "
            f"wanted at most {_MOST_ENTRIES}"
        )
    return False


def _follow(node: NodeProto, known: _Lengths) -> None:
    from .onnx_shapes import constant_of

    tensor = constant_of(node)
    if tensor is not None:
        known.take(tensor, node.output[0])
        return
    bound = _RULES.get(node.op_type, _unknown)(node, known)
    if node.op_type == "Constant":
        bound = max((len(one.ints) for one in node.attribute), default=1) or 1
    for name in node.output:
        known.bounds[name] = bound
        if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range"):
            known.exact.add(name)


def _made(node: NodeProto, known: _Lengths) -> int:
    """Return how many numbers a node makes at the least, by constants alone; 0 where they do not tell."""
    numbers = [known.values.get(name, []) for name in node.input]
    if node.op_type == "Range" and len(numbers) == 3 and all(numbers) and numbers[2][0]:
        start, end, step = (values[0] for values in numbers)
        return max((end - start) // step, 0)
    if node.op_type == "Pad" and len(numbers) > 1:
        return max(numbers[1], default=0)
    place = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}.get(node.op_type)
    return (
        0 if place is None or place >= len(numbers) or not numbers[place] else prod(max(v, 1) for v in numbers[place])
    )


def _unknown(node: NodeProto, known: _Lengths) -> Bound:
    return None


def _at_most_rank(node: NodeProto, known: _Lengths) -> Bound:
    return MOST_RANK


def _of_input(place: int) -> Callable[[NodeProto, _Lengths], Bound]:
    return lambda node, known: known.of(node.input[place])


def _widest(node: NodeProto, known: _Lengths) -> Bound:
    return _over(max, [known.of(name) for name in node.input])


def _together(node: NodeProto, known: _Lengths) -> Bound:
    return _over(sum, [known.of(name) for name in node.input])


def _over(join: Callable[[Sequence[int]], int], bounds: Sequence[Bound]) -> Bound:
    found = [bound for bound in bounds if bound is not None]
    return join(found) if found and len(found) == len(bounds) else None


def _filled(place: int) -> Callable[[NodeProto, _Lengths], Bound]:
    """Return a rule for what is made by a shape: as large as the file's own numbers say."""

    def rule(node: NodeProto, known: _Lengths) -> Bound:
        if place >= len(node.input) or node.input[place] not in known.values:
            return None
        size = _made(node, known)
        return size if place == 0 else _over(prod, [size, known.of(node.input[0])])

    return rule


def _counted(node: NodeProto, known: _Lengths) -> Bound:
    return _made(node, known) if all(name in known.values for name in node.input) else None


_RULES: dict[str, Callable[[NodeProto, _Lengths], Bound]] = {
    **dict.fromkeys(("Shape", "Size"), _at_most_rank),
    **dict.fromkeys(
        ("Cast", "Identity", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Neg", "Abs", "Floor", "Ceil",
         "Not", "Sqrt", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceSum", "Split", "Transpose", "Clip",
         "Round", "CumSum"),
        _of_input(0),
    ),
    **dict.fromkeys(("Gather", "GatherElements"), _of_input(1)),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Mod", "Equal", "Less", "Greater", "GreaterOrEqual", "LessOrEqual", "And", "Or",
         "Where", "Max", "Min", "Pow", "ScatterElements", "ScatterND"), _widest,
    ),
    "Concat": _together,
    "ConstantOfShape": _filled(0),
    "Expand": _filled(1),
    "Tile": _filled(1),
    "Range": _counted,
}  # fmt: skip
