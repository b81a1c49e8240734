"""How channels pass products of activations: matrices, einsum, attention."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..models.graph import argument, sizes_of
from .atoms import Atoms, merge
from .channels import Dims, Tracker
from .rules_pointwise import together


def matmul(tracker: Tracker, node: Node) -> Dims:
    """Rows come from the left, columns from the right, what is summed over is one dimension of both."""
    left, right = node.args[0], node.args[1]
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    return _product(tracker, left, right)


def _product(tracker: Tracker, left: Node, right: Node) -> Dims:
    a, b = tracker.dims(left), tracker.dims(right)
    tracker.keep_fixed(left, -2)
    tracker.keep_fixed(right, -1)
    inner = b[-2] if len(b) > 1 else b[-1]
    tracker.link(a[-1], inner)
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    return (*_batch(tracker, left, right), *rows, *columns)


def _batch(tracker: Tracker, left: Node, right: Node) -> Dims:
    """Broadcast what stands before rows and columns."""
    sides = [(tracker.dims(side)[:-2], sizes_of(side)[:-2]) for side in (left, right)]
    rank = max(len(dims) for dims, _ in sides)
    found: list[Atoms | None] = []
    for place in range(-rank, 0):
        entries = [dims[place] for dims, sizes in sides if len(dims) >= -place and sizes[place] != 1]
        joined = entries[0] if entries else None
        for other in entries[1:]:
            joined = tracker.link(joined, other)
        found.append(joined)
    return tuple(found)


def add_matmul(tracker: Tracker, node: Node) -> Dims:
    """A product of matrices with something added that broadcasts to it."""
    added, left, right = node.args[:3]
    assert isinstance(added, Node)
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    product = _product(tracker, left, right)
    tracker.values[node] = product
    return together(tracker, [node, added])


def einsum(tracker: Tracker, node: Node) -> Dims | None:
    """Dimensions of one letter are one."""
    equation = str(node.args[0]).replace(" ", "")
    operands: Any = node.args[1]
    inputs, arrow, output = equation.partition("->")
    if "." in equation or not arrow:
        return None
    known: dict[str, Atoms | None] = {}
    if any(len(set(letters)) < len(letters) for letters in inputs.split(",")):
        return None  # a diagonal
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        for letter, atoms, size in zip(letters, tracker.dims(operand), sizes_of(operand), strict=True):
            if size != 1:
                known[letter] = tracker.link(known[letter], atoms) if letter in known else atoms
    return tuple(known.get(letter) for letter in output)


def attention(tracker: Tracker, node: Node) -> Dims:
    """Heads are one dimension of queries, keys and values; head sizes of queries and keys are one."""
    query, key, value = (tracker.dims(a) for a in node.args[:3])
    tracker.link(query[-1], key[-1])
    tracker.link(key[-2], value[-2])
    for sequence in (query[-2], key[-2]):
        tracker.table.freeze(sequence, "is what softmax runs along or attends from")
    batch = list(query[:-2])
    for others, node_of in ((key, node.args[1]), (value, node.args[2])):
        for place in range(-len(batch), 0):
            batch[place] = _heads(tracker, (batch[place], node.args[0]), (others[place - 2], node_of), place - 2)
    mask = argument(node, "attn_mask")
    if isinstance(mask, Node):
        _link_mask(tracker, batch, mask)
    return (*batch, None, value[-1])


def _heads(tracker: Tracker, query: tuple[Atoms | None, Any], other: tuple[Atoms | None, Any], place: int) -> Atoms | None:  # fmt: skip # noqa: E501
    """Link the heads of queries with those of keys; with fewer keys, each serves several queries in a row."""
    (mine, node), (its, other_node) = query, other
    if mine is None and its is None:
        return None
    sizes = sizes_of(node)[place], sizes_of(other_node)[place]
    if its is not None and all(isinstance(size, int) for size in sizes) and sizes[0] != sizes[1]:
        repeats = tracker.table.new(sizes[0] // sizes[1])
        its = merge([its, repeats], [sizes[1], len(repeats)])
    return tracker.link(mine, its)


def _link_mask(tracker: Tracker, batch: list[Atoms | None], mask: Node) -> None:
    dims, sizes = tracker.dims(mask), sizes_of(mask)
    for place in range(-len(dims), -2):
        if sizes[place] != 1:
            batch[place + 2] = tracker.link(batch[place + 2], dims[place])
    for atoms in dims[-2:]:
        tracker.table.freeze(atoms, "is what attention runs over")
