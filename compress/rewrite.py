"""Remove channels from a captured graph: index the weights and recompute the sizes that the graph carries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from ..models.graph import aten, get_tensor, put_tensor
from ..models.model import Model
from .channels import Atoms, Channels, Dims
from .folding import CONVOLUTIONS


def remove_channels(model: Model, channels: Channels, gone: Collection[int]) -> Model:
    """Return a smaller model without the channels `gone` (roots of the analysis); the input model stays as it is."""
    made = model.copy()
    lost = np.fromiter(gone, np.int64, len(gone))
    for name, dims in channels.tensors.items():
        value = without(get_tensor(made.module, name).detach(), dims, lost)
        if value.shape != get_tensor(made.module, name).shape:
            put_tensor(made.module, name, value)
    for node in made.module.graph.nodes:
        _resize(node, channels, lost)
    _refresh_shapes(made)
    made.module.recompile()
    return made


def without(value: Tensor, dims: Dims, lost: Atoms) -> Tensor:
    """Return a tensor of the original without the channels `lost`; `dims` are the atoms of its dimensions."""
    for dim, atoms in enumerate(dims):
        if atoms is not None and np.isin(atoms, lost).any():
            value = value.index_select(dim, torch.from_numpy(np.flatnonzero(~np.isin(atoms, lost))))
    return value


def _resize(node: Node, channels: Channels, lost: Atoms) -> None:
    if node.op != "call_function":
        return
    if node.target in CONVOLUTIONS and len(node.args) > 6:
        _resize_groups(node, channels, lost)
    elif node.target in (aten.view.default, aten.reshape.default):
        _resize_view(node, channels, lost)


def _resize_groups(node: Node, channels: Channels, lost: Atoms) -> None:
    out = channels.nodes[node.name][1]
    if node.args[6] != 1 and out is not None:
        left = int((~np.isin(out, lost)).sum())
        if left != len(out):
            node.update_arg(6, left)


def _resize_view(node: Node, channels: Channels, lost: Atoms) -> None:
    """Write the new width where a view names the old one."""
    sizes: list[Any] = list(node.args[1])  # type: ignore[arg-type]  # the schema says it is a list
    for dim, atoms in enumerate(channels.nodes[node.name]):
        if atoms is not None and isinstance(sizes[dim], int) and sizes[dim] != -1:
            sizes[dim] = int((~np.isin(atoms, lost)).sum())
    node.update_arg(1, sizes)


def _refresh_shapes(model: Model) -> None:
    """Record every node's shape anew, with the same symbol for the batch."""
    inputs = [node.meta["val"] for node in model.module.graph.nodes if node.op == "placeholder"]
    mode = inputs[0].fake_mode
    allowed = mode.allow_non_fake_inputs
    mode.allow_non_fake_inputs = True
    try:
        FakeTensorProp(model.module, mode).propagate_dont_convert_inputs(*inputs)
    finally:
        mode.allow_non_fake_inputs = allowed
