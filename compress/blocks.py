"""Parts of a captured graph that can be left out: residual blocks, and layers that keep their input's shape.

Analysis only: `bypass.py` takes them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch.fx import Node

from ..models.errors import BadInput, first_few
from ..models.graph import SUMS, aten, module_path, shape_of
from ..models.model import Model
from .folding import CONVOLUTIONS
from .patterns import matching

Kind = Literal["residual block", "convolution", "pooling"]

POOLINGS = (
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
    *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
    *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
)
LAYERS: dict[Any, Kind] = {
    **dict.fromkeys(CONVOLUTIONS, "convolution"),
    **dict.fromkeys(POOLINGS, "pooling"),
}


@dataclass(frozen=True)
class Block:
    """A part of the graph whose results something that went in can stand for.

    A residual block is a module with sums of its input, or what was made of it so far, and something computed from
    that. `sums` are pairs of a sum's name in the graph and the place of the shortcut among its arguments. A layer has
    its own operators for sums, and what stands for them is their input, at place 0.
    """

    path: str
    sums: tuple[tuple[str, int], ...]
    kind: Kind = "residual block"


# --- residual blocks


def find_blocks(model: Model) -> list[Block]:
    """Return all residual blocks, in the order of the graph."""
    sums: dict[str, list[tuple[str, int]]] = {}
    for node in model.module.graph.nodes:
        place = _place_of_shortcut(node)
        if place is not None:
            sums.setdefault(module_path(node) or node.name, []).append((node.name, place))
    return [Block(path, tuple(found)) for path, found in sums.items()]


def _place_of_shortcut(node: Node) -> int | None:
    """Return which side of a sum the other is computed from, by something with weights; None if neither is that."""
    if node.op != "call_function" or node.target not in SUMS or len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if not isinstance(left, Node) or not isinstance(right, Node) or shape_of(left) != shape_of(right):
        return None
    for place, (shortcut, branch) in enumerate(((left, right), (right, left))):
        if shortcut is not branch and _leads_to(shortcut, branch):
            return place
    return None


def _leads_to(source: Node, end: Node) -> bool:
    """Whether `end` is computed from `source`, and something between them has weights."""
    seen, ahead, reached, weights = {end}, [end], False, False
    while ahead:
        for used in ahead.pop().all_input_nodes:
            if used is source:
                reached = True
            elif used.op == "get_attr":
                weights = True
            elif used not in seen and source < used:
                seen.add(used)
                ahead.append(used)
    return reached and weights


# --- layers


def find_layers(model: Model) -> list[Block]:
    """Return the convolutions and poolings whose results have their inputs' shapes, in the order of the graph.

    A module that does nothing else goes by its path. What the code of another module does itself goes by that one's
    path and the operator's name in the graph: `Mixed_5b.avg_pool2d`.
    """
    return [
        Block(path, tuple((node.name, 0) for node in nodes), LAYERS[nodes[0].target])
        for path, nodes in _layers(model).items()
        if all(map(_keeps_shape, nodes))
    ]


def _layers(model: Model) -> dict[str, list[Node]]:
    """Return all convolutions and poolings by path."""
    parts: dict[str, list[Node]] = {}
    for node in model.module.graph.nodes:
        if node.op == "call_function":
            parts.setdefault(module_path(node), []).append(node)
    layers: dict[str, list[Node]] = {}
    for path, nodes in parts.items():
        alike = {LAYERS.get(node.target) for node in nodes}
        leaf = path and len(alike) == 1 and not any(other.startswith(f"{path}.") for other in parts)
        for node in (node for node in nodes if node.target in LAYERS and isinstance(node.args[0], Node)):
            name = path if leaf else f"{path}.{node.name}".removeprefix(".")
            layers.setdefault(name, []).append(node)
    return layers


def _keeps_shape(node: Node) -> bool:
    source = node.args[0]
    return isinstance(source, Node) and shape_of(node) is not None and shape_of(node) == shape_of(source)


# --- by name


def blocks_named(model: Model, patterns: Iterable[str]) -> list[Block]:
    """Return the blocks and layers whose paths match a pattern; layers only by patterns that match no residual block.

    Raises:
        BadInput: a pattern matches none.
    """
    blocks, layers = find_blocks(model), find_layers(model)
    named: set[str] = set()
    for pattern in patterns:
        layered = _fitting(layers, pattern) and not _fitting(blocks, pattern)
        try:
            paths = [block.path for block in (layers if layered else blocks)]
            named.update(matching((pattern,), paths, "residual block that keeps its input's shape"))
        except BadInput as fault:
            raise BadInput(f"{fault}; {_other_layers(model, layers, pattern)}") from fault
    return [block for block in in_order(model, (*blocks, *layers)) if block.path in named]


def in_order(model: Model, blocks: Iterable[Block]) -> list[Block]:
    """Sort blocks by their first sums' places in the graph."""
    places = {node.name: place for place, node in enumerate(model.module.graph.nodes)}
    return sorted(blocks, key=lambda block: places[block.sums[0][0]])


def _fitting(blocks: Iterable[Block], pattern: str) -> bool:
    return any(fnmatchcase(block.path, pattern) for block in blocks)


def _other_layers(model: Model, layers: list[Block], pattern: str) -> str:
    """Say which layers there are, and why one of the name cannot go."""
    kept = first_few([layer.path for layer in layers]) or "none"
    text = f"convolutions and poolings that do: {kept}"
    changing = [(path, node) for path, nodes in _layers(model).items() for node in nodes if not _keeps_shape(node)]
    named = [f"{path} makes {_example(node)} of {_example(node.args[0])}" for path, node in changing if fnmatchcase(path, pattern)]  # fmt: skip # noqa: E501
    return f"{text} ({'; '.join(named[:3])}: its input cannot stand for its result)" if named else text


def _example(node: object) -> tuple[Any, ...]:
    """Return the shape of one example of a node's result."""
    return (shape_of(node) or ())[1:] if isinstance(node, Node) else ()
