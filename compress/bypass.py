"""Take blocks and dead code out of a captured graph."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable

from torch.fx import Graph, GraphModule, Node

from ..models.graph import aten, changes
from ..models.model import Model
from .blocks import Block

RELUS = (aten.relu.default, aten.relu_.default)
DROPOUTS = (aten.dropout.default, aten.dropout_.default)


def remove_blocks(model: Model, blocks: Iterable[Block]) -> Model:
    """Return the model without these blocks; the input model stays as it is.

    It gives what the original gives when the branches' results are zero, and the layers give their inputs.
    """
    made = model.copy()
    module = made.module
    had = _owners_in_use(module.graph)
    bypass(module.graph, blocks)
    gone = had - _owners_in_use(module.graph)
    _delete(module, [name for name in _tensors(module) if _owner(name) in gone])
    module.recompile()
    return made


def without(graph: Graph, blocks: Iterable[Block]) -> Graph:
    """Return a copy of a graph without these blocks; its constants are the same ones, and all there."""
    made = copy.deepcopy(graph)
    bypass(made, blocks)
    return made


def names_of(graph: Graph) -> frozenset[str]:
    """Return the names of a graph's nodes."""
    return frozenset(node.name for node in graph.nodes)


def inside(block: Block, erased: frozenset[str]) -> bool:
    """Whether nothing is left of a block when nodes of these names are gone."""
    return all(name in erased for name, _ in block.sums)


def outermost(graph: Graph, blocks: Iterable[Block]) -> list[Block]:
    """Return the blocks that are not inside of another."""
    whole = names_of(graph)
    erased = {block.path: whole - names_of(without(graph, (block,))) for block in blocks}
    return [b for b in blocks if not any(b.path != path and inside(b, names) for path, names in erased.items())]


def bypass(graph: Graph, blocks: Iterable[Block]) -> None:
    """Let all that used the blocks' sums use their shortcuts, in place, and erase what only they needed."""
    dead_before = dead_nodes(graph)
    for block in blocks:
        for name, place in block.sums:
            total = next((node for node in graph.nodes if node.name == name), None)
            if total is not None:  # else it went with a block around it
                shortcut = total.args[place]
                assert isinstance(shortcut, Node)
                _bypass(total, shortcut)
    _erase(graph, dead_nodes(graph) - dead_before)


def _bypass(total: Node, shortcut: Node) -> None:
    """Let all that used the sum use the shortcut."""
    for user in list(total.users):
        if _rectified_already(user, total, shortcut):
            user.replace_all_uses_with(shortcut)
            user.graph.erase_node(user)
    in_place = total.args[0] is shortcut and changes(total, shortcut)
    stand_in = shortcut
    if not in_place and _changed_later(total, shortcut):
        with total.graph.inserting_before(total):
            stand_in = total.graph.call_function(aten.clone.default, (shortcut,))
            stand_in.meta = dict(total.meta)
    total.replace_all_uses_with(stand_in)
    total.graph.erase_node(total)


def _rectified_already(user: Node, total: Node, shortcut: Node) -> bool:
    """Whether `user` is a ReLU of what is the result of one without the branch, and none of the three changes later."""
    if user.target not in RELUS or shortcut.target not in RELUS:
        return False
    others = [(other, node) for node in (user, total, shortcut) for other in node.users if other not in (user, total)]
    return not any(changes(other, node) for other, node in others)


# --- shared memory


def _changed_later(total: Node, shortcut: Node) -> bool:
    """Whether an operator behind the sum changes its memory or the shortcut's: the two must then stay apart."""
    shared = _sharing(total) | _sharing(shortcut)
    return any(changes(user, node) and total < user for node in shared for user in node.users)


def _sharing(node: Node) -> set[Node]:
    """Return the nodes whose tensors may share their memory with this one's."""
    while (viewed := _viewed(node)) is not None:
        node = viewed
    found, ahead = {node}, [node]
    while ahead:
        base = ahead.pop()
        views = {user for user in base.users if _viewed(user) is base} - found
        found |= views
        ahead.extend(views)
    return found


def _viewed(node: Node) -> Node | None:
    """Return the node whose memory this one's result lies in, or may lie in; None if it has its own."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    views = node.target is operator.getitem or node.target in DROPOUTS or _returns_alias(node)
    return node.args[0] if views else None


def _returns_alias(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info for value in schema.returns)


# --- what nobody uses


def dead_nodes(graph: Graph) -> set[Node]:
    """Return operators and constants whose results, and what they change in place, nothing that is given needs."""
    writers = {node: _sharing(node.args[0]) for node in graph.nodes if _writes_first(node)}
    ahead = [node for node in graph.nodes if node not in writers and _needed_anyway(node)]
    live = set(ahead)
    while ahead:
        while ahead:
            new = set(ahead.pop().all_input_nodes) - live
            live |= new
            ahead.extend(new)
        ahead = [node for node, shared in writers.items() if node not in live and _seen(node, shared, live)]
        live.update(ahead)
    return {node for node in graph.nodes if node not in live}


def _needed_anyway(node: Node) -> bool:
    return node.op not in ("call_function", "get_attr") or node.is_impure(impure_random=False)


def _writes_first(node: Node) -> bool:
    """Whether an operator changes its first argument in place, and no other."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not node.args or not isinstance(node.args[0], Node):
        return False
    written = [value.alias_info is not None and value.alias_info.is_write for value in schema.arguments]
    return any(written) and not any(written[1:])


def _seen(writer: Node, shared: set[Node], live: set[Node]) -> bool:
    """Whether something needed reads, behind an operator, the memory that it changes; inputs and weights are read."""
    if any(node.op in ("placeholder", "get_attr") for node in shared):
        return True
    return any(writer < user and user in live for node in shared for user in node.users)


def _erase(graph: Graph, nodes: set[Node]) -> None:
    for node in reversed(list(graph.nodes)):
        if node in nodes:
            graph.erase_node(node)


def remove_dead(model: Model) -> tuple[int, int]:
    """Remove, in place, operators whose results nobody uses, and weights that no operator uses.

    Buffers beside weights in use stay, such as the counters of batch norms.

    Returns:
        How many operators went, and how many parameters (single numbers).
    """
    module = model.module
    before = _operators(module.graph)
    _erase(module.graph, {node for node in dead_nodes(module.graph) if node.op == "call_function"})
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr" and node.users}
    owners = {_owner(name) for name in used}
    parameters = dict(module.named_parameters())
    dead = [
        name
        for name in _tensors(module)
        if not _within(name, used) and (name in parameters or _owner(name) not in owners)
    ]
    size = sum(parameters[name].numel() for name in dead if name in parameters)
    _delete(module, dead)
    module.recompile()
    return before - _operators(module.graph), size


def _operators(graph: Graph) -> int:
    return sum(node.op == "call_function" for node in graph.nodes)


def _within(name: str, used: set[str]) -> bool:
    """Whether a tensor is used, or belongs to an inner graph that is (a branch of `torch.cond`)."""
    return name in used or any(name.startswith(f"{whole}.") for whole in used)


def _tensors(module: GraphModule) -> list[str]:
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]


def _owners_in_use(graph: Graph) -> set[str]:
    """Return the paths of the modules whose tensors the graph uses."""
    return {_owner(str(node.target)) for node in graph.nodes if node.op == "get_attr" and node.users}


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _delete(module: GraphModule, names: Iterable[str]) -> None:
    """Delete tensors that no operator uses, and their nodes."""
    names = set(names)
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and str(node.target) in names and not node.users:
            module.graph.erase_node(node)
    for name in names:
        delattr(module.get_submodule(_owner(name)), name.rpartition(".")[2])
