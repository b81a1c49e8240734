"""Which channels to keep, by what the layers behind them lose: greedy, by least squares.

A channel is worth what it adds to the outputs of the layers that read it, when all weights on the kept channels may be
fitted anew. From nothing, the channel is taken that explains most of what is still unexplained, again and again:
forward selection by orthogonal least squares (Chen, Billings and Luo 1989), as in ThiNet (Luo et al. 2017) but with
blocks of columns, one for each channel, and the refitted weights that `reconstruct` gives afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from ..models.graph import get_tensor
from ..models.model import Model
from .atoms import Atoms
from .channels import Channels, Group
from .layers import layer_of, norm_scale, patch_sums, running
from .least_squares import RIDGE


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels: the covariance of its inputs, and its weights.

    `atoms` are the channels of its input dimension, each with `kernel` columns of `covariance` `(k, k)` and `weight`
    `(o, k)`; the weight is scaled as the batch norm behind it scales.
    """

    atoms: Atoms
    kernel: int
    covariance: Tensor
    weight: Tensor


def selection_scores(
    model: Model, channels: Channels, x: Tensor | tuple[Tensor, ...], keep: Mapping[Group, int]
) -> dict[int, float]:
    """Score channels by the order in which they are taken; those that are not taken have 0.

    Args:
        model: the analysed model.
        channels: its channels.
        x: examples `(n, ...)` of each input, or of the only one; no more are used than fit into memory.
        keep: how many channels of each group to take; other groups are left out.

    Returns:
        For each channel (root), a score by which the taken ones rank above the others of their group. Groups that no
        convolution or linear layer reads alone (`reconstruct` says which it can fit) are left out.
    """
    wanted = {root for group in keep for root in group.channels}
    readers = _readers(model, channels, x, wanted)
    scores: dict[int, float] = {}
    for group, count in keep.items():
        views = [view for reader in readers if (view := _view(reader, group)) is not None]
        if views:
            taken = _take(views, len(group.channels), count)
            scores |= dict.fromkeys(group.channels, 0.0)
            scores |= {group.channels[place]: float(count - rank) for rank, place in enumerate(taken)}
    return scores


def _readers(model: Model, channels: Channels, x: Tensor | tuple[Tensor, ...], wanted: set[int]) -> list[Reader]:
    found = (_reader(model, channels, node, values, wanted) for node, values in running(model, x))
    return [reader for reader in found if reader is not None]


def _reader(model: Model, channels: Channels, node: Node, values: Mapping[Node, Any], wanted: set[int]) -> Reader | None:  # fmt: skip # noqa: E501
    """Return what a node reads, if it is a layer that can be fitted and reads channels that may go."""
    layer = layer_of(model, node)
    atoms = channels.tensors[layer.weight][1] if layer is not None else None
    if layer is None or atoms is None or wanted.isdisjoint(atoms.ravel().tolist()):
        return None
    weight = get_tensor(model.module, layer.weight).detach().flatten(1).double()
    scale = norm_scale(model, layer.norm) if layer.norm is not None else None
    if scale is not None:
        weight = weight * scale[:, None]
    sums = patch_sums(layer.patches, values[layer.source])
    mean = sums.inputs / sums.count
    covariance = sums.gram / sums.count - torch.outer(mean, mean)
    return Reader(atoms, weight.shape[1] // len(atoms), covariance, weight)


@dataclass
class _View:
    """One reader as one group sees it: what is unexplained after each choice.

    Attributes:
        inputs: covariance of the columns of the group's channels `(channels, k, channels, k)`.
        outputs: their covariance with the outputs `(channels, k, o)`.
        ridge: added to the diagonal.
        total: the variance of all outputs.
    """

    inputs: Tensor
    outputs: Tensor
    ridge: float
    total: float

    def gains(self) -> Tensor:
        """Return the share of the outputs' variance that each channel would explain now `(channels,)`."""
        blocks = torch.diagonal(self.inputs, dim1=0, dim2=2).permute(2, 0, 1)
        solved = torch.linalg.solve(blocks + self.ridge * torch.eye(blocks.shape[-1], dtype=blocks.dtype), self.outputs)
        explained: Tensor = (solved * self.outputs).sum((1, 2)) / self.total
        return explained

    def take(self, place: int) -> None:
        """Remove from everything what one channel explains."""
        count, k = self.outputs.shape[:2]
        rows = self.inputs[place].reshape(k, count * k)
        block = self.inputs[place, :, place] + self.ridge * torch.eye(k, dtype=rows.dtype)
        solved = torch.linalg.solve(block, torch.cat([rows, self.outputs[place]], 1))
        self.inputs = self.inputs - (rows.T @ solved[:, : count * k]).view_as(self.inputs)
        self.outputs = self.outputs - (rows.T @ solved[:, count * k :]).view_as(self.outputs)


def _view(reader: Reader, group: Group) -> _View | None:
    """Return a reader's columns of a group's channels; None if it reads none, or some more often than others."""
    places = [np.flatnonzero((reader.atoms == root).any(1)) for root in group.channels]
    if not len(places[0]) or len({len(found) for found in places}) > 1:
        return None
    each = [(found[:, None] * reader.kernel + np.arange(reader.kernel)).ravel() for found in places]
    columns, count, k = torch.from_numpy(np.concatenate(each)), len(each), len(each[0])
    with_outputs = reader.covariance @ reader.weight.T
    return _View(
        reader.covariance[columns][:, columns].view(count, k, count, k),
        with_outputs[columns].view(count, k, -1),
        RIDGE * float(reader.covariance.diagonal().mean()) + torch.finfo(torch.float64).tiny,
        float((with_outputs * reader.weight.T).sum()) or 1.0,
    )


def _take(views: list[_View], count: int, keep: int) -> list[int]:
    taken: list[int] = []
    free = torch.ones(count, dtype=torch.bool)
    for _ in range(keep):
        gains = sum((view.gains() for view in views), torch.zeros(count, dtype=torch.float64))
        best = int(torch.where(free, gains, -torch.inf).argmax())
        taken.append(best)
        free[best] = False
        for view in views:
            view.take(best)
    return taken
