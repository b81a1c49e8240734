"""Compute what depends on weights alone once, before export, instead of at every inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..models.graph import changes, get_tensor
from ..models.model import Model


def fold_constants(model: Model) -> Model:
    """Return a model in which weights that its graph first transforms (standardized ones) are stored as they are used.

    The exporter would keep the arithmetic in the file, in fp32: variances as differences of large means lose digits
    there. Only what grows no larger by it is folded.
    """
    foldable = [node.name for node in _last_constants(model)]
    if not foldable:
        return model
    made = model.copy()
    values: dict[Node, Any] = {}
    for node in list(made.module.graph.nodes):
        if node.op == "get_attr":
            values[node] = _tensor(made, node)
        elif node.op == "call_function" and node.all_input_nodes and all(values.get(n) is not None for n in node.all_input_nodes):  # fmt: skip # noqa: E501
            with torch.no_grad():
                values[node] = node.target(*_given(node.args, values), **_given(node.kwargs, values))
    for node, value in values.items():
        if node.name in foldable:
            _store(made, node, value)
    made.module.graph.eliminate_dead_code()
    made.module.recompile()
    return made


def _last_constants(model: Model) -> list[Node]:
    """Return the operators on constants alone whose results others use: tensors no larger than their sources."""
    sizes: dict[Node, int] = {}
    for node in model.module.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" and not any(changes(user, node) for user in node.users):
            value = _tensor(model, node)
            if value is not None:
                sizes[node] = value.numel()
        elif node.op == "call_function" and inputs and all(n in sizes for n in inputs) and _is_plain(node):
            sizes[node] = sum(sizes[n] for n in inputs)
    found = [n for n in sizes if n.op == "call_function" and any(user not in sizes for user in n.users)]
    return [n for n in found if isinstance(n.meta.get("val"), Tensor) and n.meta["val"].numel() <= sizes[n]]


def _is_plain(node: Node) -> bool:
    """Whether an operator always gives the same, changes nothing, and gives a tensor of known size."""
    schema, value = getattr(node.target, "_schema", None), node.meta.get("val")
    fixed = isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    mutated = any(changes(user, node) for user in node.users)
    return schema is not None and not schema.is_mutable and fixed and not random and not mutated


def _tensor(model: Model, node: Node) -> Tensor | None:
    try:
        return get_tensor(model.module, str(node.target)).detach()
    except TypeError:
        return None  # a graph


def _given(arguments: Any, values: dict[Node, Any]) -> Any:
    return torch.fx.node.map_arg(arguments, lambda node: values[node])


def _store(model: Model, node: Node, value: Tensor) -> None:
    name = f"folded_{node.name}"
    model.module.register_buffer(name, value.contiguous())
    with model.module.graph.inserting_before(node):
        stored = model.module.graph.get_attr(name)
    stored.meta = dict(node.meta)
    node.replace_all_uses_with(stored)
