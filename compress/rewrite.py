"""Remove channels from a captured graph: index the weights and recompute the sizes that the graph carries."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..models.graph import get_tensor
from ..models.model import Model
from .atoms import Atoms, Lost, kept
from .channels import Channels, Dims
from .resize import resize


def remove_channels(model: Model, channels: Channels, gone: Collection[int]) -> Model:
    """Return a smaller model without the channels `gone` (roots of the analysis); the input model stays as it is."""
    lost = channels.lost(gone)
    olds = {name: get_tensor(model.module, name).detach() for name in channels.tensors}
    smaller = {name: without(olds[name], dims, lost) for name, dims in channels.tensors.items()}
    made = model.copy({name: value for name, value in smaller.items() if value.shape != olds[name].shape})
    for node in list(made.module.graph.nodes):
        if node.op == "call_function":
            resize(node, channels, lost)
    made.module.graph.eliminate_dead_code(is_impure_node=_not_arithmetic)
    _record_shapes(made.module.graph, channels, lost)
    made.module.recompile()
    return made


def without(value: Tensor, dims: Dims, lost: Lost) -> Tensor:
    """Return a tensor of the original without the atoms `lost`; `dims` are the atoms of its dimensions."""
    for dim, atoms in enumerate(dims):
        if atoms is None:
            continue
        left = kept(atoms, lost)
        if not left.all():
            times = value.shape[dim] // len(left)  # of batch x heads the atoms are those of one period
            value = value.index_select(dim, torch.from_numpy(np.flatnonzero(np.tile(left, times))).to(value.device))
    return value


def _not_arithmetic(node: Node) -> bool:
    """Keep every operator: only sums and products of sizes that nobody uses any more go."""
    return getattr(node.target, "__module__", "") != "_operator"


def _record_shapes(graph: Graph, channels: Channels, lost: Lost) -> None:
    """Record the new shape of every node that lost something, with the old symbol for the batch."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            sizes = [_size_left(*pair, lost) for pair in zip(value.shape, channels.nodes[node.name], strict=True)]
            if any(new is not old for new, old in zip(sizes, value.shape, strict=True)):
                node.meta["val"] = value.new_empty(sizes)
        if node.target is operator.getitem and isinstance(node.args[0].meta.get("val"), list | tuple):
            source, place = node.args
            source.meta["val"] = [node.meta["val"] if i == place else v for i, v in enumerate(source.meta["val"])]


def _size_left(size: Any, atoms: Atoms | None, lost: Lost) -> Any:
    left = None if atoms is None else int(kept(atoms, lost).sum())
    return size if left is None or atoms is None or left == len(atoms) else size // len(atoms) * left
