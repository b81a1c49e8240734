"""Linear layers and tables of an fp32 graph: what large weights sit in, and the form that integers are written into."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..models.errors import BadInput
from .onnx_shapes import attributes_of
from .quant_plan import Wiring, inner_names

Array = NDArray[Any]

LEAST_WEIGHTS = 2**16
"""Below 256 by 256 a product of one row is no faster with smaller weights (measured), and they save 0.2 MB at most."""

ONNX = ("", "ai.onnx")
"""The names of ONNX's own domain."""

_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0}


@dataclass(frozen=True, eq=False)
class Linear:
    """A matrix product with a constant weight; its input may have any rank.

    Attributes:
        node: a MatMul, or a Gemm that is one with a bias.
        weight: `(inputs, outputs)`, float32.
        turned: the file holds it as `(outputs, inputs)`.
    """

    node: NodeProto
    weight: Array
    turned: bool

    @property
    def source(self) -> str:
        """A name for what is made of the weight: layers that read it alike share that."""
        return f"{self.node.input[1]}/{'turned' if self.turned else 'linear'}"

    def product(self, operator: str, inputs: Iterable[str]) -> Iterator[NodeProto]:
        """Yield the product by another operator, and the bias that a Gemm adds."""
        bias = self.node.input[2] if self.node.op_type == "Gemm" and len(self.node.input) > 2 else ""
        result = f"{self.node.output[0]}/product" if bias else self.node.output[0]
        yield kin(self.node, operator, inputs, result, f"{self.node.name}/product" if bias else self.node.name)
        if bias:
            yield kin(self.node, "Add", [result, bias], self.node.output[0], self.node.name)


def linear_layers(wiring: Wiring, keep: Collection[str] = (), least: int = 1) -> dict[str, Linear]:
    """Return the linear layers by their nodes' names.

    Args:
        wiring: of an fp32 graph.
        keep: names of nodes to leave out.
        least: weights that one must have.

    Raises:
        BadInput: a weight holds no numbers.
    """
    found: dict[str, Linear] = {}
    for node in wiring.graph.node:
        weight = wiring.weights.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or node.name in keep or not _is_linear(node, weight, wiring):
            continue
        values = numpy_helper.to_array(weight)
        if values.size < least:
            continue
        if not np.isfinite(values).all():
            raise BadInput(
                f"the weight {weight.name!r} of {node.op_type} {node.name!r} holds NaN or infinity, which no integers "
                "stand for; repair the file, or keep the layer in floating point (keep_float)"
            )
        turned = bool(attributes_of(node).get("transB"))
        found[node.name] = Linear(node, values.T if turned else values, turned)
    return found


def _is_linear(node: NodeProto, weight: TensorProto, wiring: Wiring) -> bool:
    held = attributes_of(node)
    plain = node.domain in ONNX and all(held.get(name, usual) == usual for name, usual in _PLAIN.items())
    return plain and len(weight.dims) == 2 and weight.name in wiring.floats and node.input[0] not in wiring.weights


def kin(near: NodeProto, operator: str, inputs: Iterable[str], result: str, name: str = "", **attributes: Any) -> NodeProto:  # fmt: skip # noqa: E501
    """Return a node that belongs where `near` does: to its module."""
    made = helper.make_node(operator, list(inputs), [result], name or f"{result}/{operator}", **attributes)
    made.metadata_props.extend(near.metadata_props)
    return made


class Weights:
    """Constants that are added to a graph, each once."""

    def __init__(self) -> None:
        self._made: dict[str, TensorProto] = {}

    def has(self, name: str) -> bool:
        """Whether there is one of this name."""
        return name in self._made

    def add(self, name: str, values: Array, kind: int | None = None) -> str:
        """Hold values by a name; `kind` is of ONNX's types, for those that numpy lacks."""
        if name not in self._made:
            plain = np.ascontiguousarray(values)
            self._made[name] = (
                numpy_helper.from_array(plain, name)
                if kind is None
                else helper.make_tensor(name, kind, plain.shape, packed(plain), raw=True)
            )
        return name

    def into(self, proto: ModelProto, nodes: Iterable[NodeProto]) -> ModelProto:
        """Return a graph of other nodes with these constants, without those that nothing reads any more."""
        made = ModelProto()
        made.CopyFrom(proto)
        kept = list(nodes)
        del made.graph.node[:], made.graph.value_info[:]
        made.graph.node.extend(kept)
        used = {name for node in kept for name in node.input} | {value.name for value in made.graph.output}
        inner = {name for node in kept for name in inner_names(node)}
        left = [one for one in proto.graph.initializer if one.name in used | inner]
        del made.graph.initializer[:]
        made.graph.initializer.extend([*left, *self._made.values()])
        return made


def packed(values: Array) -> bytes:
    """Return integers of 4 bits as ONNX keeps them: two to a byte, the first in the lower half."""
    flat = values.reshape(-1).astype(np.int8).view(np.uint8) & 0xF
    pairs = np.pad(flat, (0, flat.size % 2)).reshape(-1, 2)
    return bytes((pairs[:, 0] | (pairs[:, 1] << 4)).astype(np.uint8))


def in_tables(proto: ModelProto, wiring: Wiring, keep: Collection[str] = ()) -> ModelProto:
    """Return the graph with embeddings in int8, a scale for each row: looked up as integers, then multiplied.

    A row is one word's; a scale for all would cost the words with small weights theirs. Nothing but ONNX's plain
    operators is needed, and the file has a quarter of the table. A table that anything else reads stays as it is: the
    file would hold it twice.
    """
    weights, nodes = Weights(), list[NodeProto]()
    for node in proto.graph.node:
        nodes.extend(_looked_up(node, _table(node, wiring), weights) if _may_look_up(node, wiring, keep) else [node])
    return weights.into(proto, nodes)


def _may_look_up(node: NodeProto, wiring: Wiring, keep: Collection[str]) -> bool:
    held = wiring.weights.get(node.input[0]) if _is_lookup(node, keep) else None
    if held is None or len(held.dims) != 2 or held.name not in wiring.floats or held.name in wiring.outputs:
        return False
    alone = all(_is_lookup(one, keep) and one.input[0] == held.name for one in wiring.readers[held.name])
    return alone and prod(held.dims) >= LEAST_WEIGHTS and bool(np.isfinite(_table(node, wiring)).all())


def _is_lookup(node: NodeProto, keep: Collection[str]) -> bool:
    """Whether a node picks rows and may do so in integers."""
    plain = node.op_type == "Gather" and node.domain in ONNX and node.name not in keep
    return plain and attributes_of(node).get("axis", 0) == 0


def _table(node: NodeProto, wiring: Wiring) -> Array:
    return np.asarray(numpy_helper.to_array(wiring.weights[node.input[0]]))


def _looked_up(node: NodeProto, table: Array, weights: Weights) -> Iterator[NodeProto]:
    name, result = node.input[0], node.output[0]
    scales = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    whole, scale = weights.add(f"{name}/whole", np.round(table / scales).astype(np.int8)), weights.add(f"{name}/scale", scales)  # fmt: skip # noqa: E501
    # The names that end in /whole and /scale are those of a value on its own grid, as layers read it.
    yield kin(node, "Gather", [whole, node.input[1]], f"{result}/row", node.name)
    yield kin(node, "Gather", [scale, node.input[1]], f"{result}/row_scale")
    yield kin(node, "Cast", [f"{result}/row"], f"{result}/row_cast", to=TensorProto.FLOAT)
    yield kin(node, "Mul", [f"{result}/row_cast", f"{result}/row_scale"], result)
