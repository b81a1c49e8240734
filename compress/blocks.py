"""Residual blocks of a captured graph: where they are, and the graph without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch.fx import Graph, GraphModule, Node

from ..models.errors import BadInput, first_few
from ..models.graph import SUMS, aten, changes, module_path, shape_of
from ..models.model import Model

RELUS = (aten.relu.default, aten.relu_.default)


@dataclass(frozen=True)
class Block:
    """A module with sums of its input, or what was made of it so far, and something computed from that.

    `sums` are pairs of a sum's name in the graph and the place of the shortcut among its arguments.
    """

    path: str
    sums: tuple[tuple[str, int], ...]


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


def blocks_named(blocks: Iterable[Block], patterns: Iterable[str]) -> list[Block]:
    """Return the blocks whose paths match a pattern.

    Raises:
        BadInput: a pattern matches none: a misspelt name would silently do nothing.
    """
    blocks = list(blocks)
    for pattern in patterns:
        if not any(fnmatchcase(block.path, pattern) for block in blocks):
            there = f"there are {first_few([block.path for block in blocks])}" if blocks else "the model has none"
            raise BadInput(f"the pattern {pattern!r} matches no residual block that keeps its input's shape; {there}")
    return [block for block in blocks if any(fnmatchcase(block.path, pattern) for pattern in patterns)]


def remove_blocks(model: Model, blocks: Iterable[Block]) -> Model:
    """Return the model without the branches of these blocks; the input model stays as it is.

    It gives what the original gives when the branches' results are zero.
    """
    made = model.copy()
    module = made.module
    nodes = {node.name: node for node in module.graph.nodes}
    had = _owners_in_use(module.graph)
    for block in blocks:
        for name, place in block.sums:
            shortcut = nodes[name].args[place]
            assert isinstance(shortcut, Node)
            _bypass(nodes[name], shortcut)
    _delete_constants(module, had - _owners_in_use(module.graph))
    module.recompile()
    return made


def _owners_in_use(graph: Graph) -> set[str]:
    """Return the paths of the modules whose tensors the graph uses."""
    return {_owner(node) for node in graph.nodes if node.op == "get_attr" and node.users}


def _owner(constant: Node) -> str:
    return str(constant.target).rpartition(".")[0]


def _delete_constants(module: GraphModule, owners: set[str]) -> None:
    """Delete what belongs to modules that are used no more: weights, statistics, and counters that nothing used."""
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and _owner(node) in owners and not node.users:
            module.graph.erase_node(node)
    for owner in owners:
        part = module.get_submodule(owner)
        for name in [name for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))]:
            delattr(part, name)


def _bypass(total: Node, shortcut: Node) -> None:
    """Let all that used the sum use the shortcut."""
    for user in list(total.users):
        if _rectified_already(user, total, shortcut):
            user.replace_all_uses_with(shortcut)
            user.graph.erase_node(user)
    in_place = total.args[0] is shortcut and changes(total, shortcut)
    stand_in = shortcut
    if not in_place and any(changes(user, total) for user in total.users):
        with total.graph.inserting_before(total):
            stand_in = total.graph.call_function(aten.clone.default, (shortcut,))
            stand_in.meta = dict(total.meta)
    total.replace_all_uses_with(stand_in)
    branch = total.all_input_nodes
    total.graph.erase_node(total)
    _erase_unused(branch)


def _rectified_already(user: Node, total: Node, shortcut: Node) -> bool:
    """Whether `user` is a ReLU of what is the result of one without the branch, and none of the three changes later."""
    if user.target not in RELUS or shortcut.target not in RELUS:
        return False
    others = [(other, node) for node in (user, total, shortcut) for other in node.users if other not in (user, total)]
    return not any(changes(other, node) for other, node in others)


def _erase_unused(nodes: Iterable[Node]) -> None:
    """Erase those of the nodes that have no users, and what was used by them alone, and so on."""
    ahead = set(nodes)
    while ahead:
        node = max(ahead)
        ahead.discard(node)
        if not node.users and node.op in ("call_function", "get_attr") and (not _in_place(node) or _changes_own(node)):
            ahead.update(node.all_input_nodes)
            node.graph.erase_node(node)


def _in_place(node: Node) -> bool:
    return any(changes(node, used) for used in node.all_input_nodes)


def _changes_own(node: Node) -> bool:
    """Whether what an operator changes in place was made for it and its like: nobody else sees the change."""
    while _in_place(node) or node.target in (aten.dropout.default, aten.dropout_.default):
        base = node.args[0]
        assert isinstance(base, Node)
        if set(base.users) - {node}:
            return False
        node = base
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not any(value.alias_info for value in schema.returns)
