"""Bring a captured graph into the form that fake quantization is inserted into: as the exporter will write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..models.graph import aten
from ..models.model import Model
from .folding import fold_batch_norm

_IN_PLACE = ("relu", "relu6", "hardtanh", "clamp", "clamp_min", "sigmoid", "hardsigmoid", "silu", "hardswish",
             "leaky_relu", "dropout")  # fmt: skip

_OUT_OF_PLACE: dict[Any, Any] = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    **{getattr(aten, f"{name}_").default: getattr(aten, name).default for name in _IN_PLACE},
}

# Give their input itself, or a view of it, now and then; others say in their schema that they always do.
_MAY_VIEW = (aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.contiguous.default,
             aten.dropout.default, aten.to.dtype, aten.expand_as.default)  # fmt: skip


def prepared(model: Model) -> Model:
    """Return the same function with batch norms folded, without in-place operators, and SiLU as the product it is.

    What a folded norm was is now a bias that can be trained. Weights that nobody reads any more are gone.
    """
    made = fold_batch_norm(model)
    graph = made.module.graph
    for node in list(graph.nodes):
        if node.target in _OUT_OF_PLACE and not _changes_a_view(node):
            _out_of_place(node)
    for node in [node for node in graph.nodes if node.target == aten.silu.default]:
        _silu_apart(graph, node)
    _train_biases(made)
    _drop_unread(made)
    made.module.recompile()
    return made


def _changes_a_view(node: Node) -> bool:
    """Whether what an operator changes in place may be part of another value, or have parts."""
    changed = node.args[0]
    assert isinstance(changed, Node)
    return changed.op != "call_function" or any(
        _gives_a_view(one) for one in (changed, *changed.users) if one is not node
    )


def _gives_a_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.target in _MAY_VIEW or schema is None or any(one.alias_info is not None for one in schema.returns)


def _out_of_place(node: Node) -> None:
    """Give a new value instead of a changed one; who read the old one afterwards reads the new one."""
    changed = node.args[0]
    assert isinstance(changed, Node)
    node.target = _OUT_OF_PLACE[node.target]
    order = {one: place for place, one in enumerate(node.graph.nodes)}
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])


def _silu_apart(graph: Graph, node: Node) -> None:
    source = node.args[0]
    with graph.inserting_before(node):
        gate = graph.call_function(aten.sigmoid.default, (source,))
        product = graph.call_function(aten.mul.Tensor, (source, gate))
    for new in (gate, product):
        new.meta = dict(node.meta)
    node.replace_all_uses_with(product)
    graph.erase_node(node)


def _train_biases(model: Model) -> None:
    """Make parameters of the buffers that folding stored the norms' shifts in, where the norms were trained."""
    for name, value in list(model.module.named_buffers()):
        if name.endswith("_folded_bias") and isinstance(value, Tensor):
            delattr(model.module, name)
            model.module.register_parameter(name, torch.nn.Parameter(value))


def _drop_unread(model: Model) -> None:
    """Remove parameters and buffers that no operator reads."""
    read = {str(node.target) for node in model.module.graph.nodes if node.op == "get_attr"}
    for name in [*dict(model.module.named_parameters()), *dict(model.module.named_buffers())]:
        if not any(name == one or name.startswith(f"{one}.") for one in read):
            owner, _, leaf = name.rpartition(".")
            delattr(model.module.get_submodule(owner), leaf)


__all__ = ["prepared"]
