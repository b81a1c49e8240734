"""How important each channel is, summed over every parameter that it is part of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.graph import get_tensor
from ..models.model import Model
from .channels import Atoms, Channels

if TYPE_CHECKING:
    from ..models.data import Dataset

Score = Literal["l1", "l2", "taylor"]


def channel_scores(
    model: Model, channels: Channels, score: Score, gradients: Mapping[str, Tensor] | None = None
) -> dict[int, float]:
    """Score every channel (root) of every group; higher is more important.

    Args:
        model: the analysed model.
        channels: its channels.
        score: `l1`, `l2` (norms of the channel's weights; Li et al. 2017) or `taylor`.
        gradients: for `taylor`, weight x gradient of every parameter (Molchanov et al. 2019, equation 8 summed
            over a channel's weights before the absolute value is taken).
    """
    totals: dict[int, float] = {root: 0.0 for group in channels.groups for root in group.channels}
    parameters = {name for name, _ in model.module.named_parameters()}
    for name, dims in channels.tensors.items():
        if name not in parameters:
            continue
        value = get_tensor(model.module, name).detach() if gradients is None else gradients[name]
        for dim, atoms in enumerate(dims):
            if atoms is not None:
                _add(totals, atoms, _reduce(value, dim, score), signed=score == "taylor")
    return {root: total**0.5 for root, total in totals.items()} if score == "l2" else totals


def _reduce(value: Tensor, dim: int, score: Score) -> Tensor:
    rows = value.movedim(dim, 0).flatten(1) if value.ndim > 1 else value.unsqueeze(1)
    if score == "taylor":
        return rows.sum(1)
    return (rows.abs() if score == "l1" else rows.square()).sum(1)


def _add(totals: dict[int, float], atoms: Atoms, values: Tensor, signed: bool) -> None:
    """Add what one dimension says of its channels; behind a flatten a channel has many positions there."""
    roots, places = np.unique(atoms, return_inverse=True)
    sums = np.bincount(places, weights=values.double().numpy())
    for root, value in zip(roots.tolist(), sums.tolist(), strict=True):
        totals[root] += abs(value) if signed else value


def taylor_gradients(model: Model, data: Dataset, samples: int, seed: int) -> dict[str, Tensor]:
    """Return weight x gradient of the mean cross-entropy over training examples, for every parameter.

    The model runs in evaluation mode, on a copy.
    """
    work = model.copy()
    indices = data.sample(samples, seed)
    for part in torch.split(indices, 128):
        x, y = data.batch(data.train, part)
        loss = F.cross_entropy(work.module(x), y, reduction="sum") / len(indices)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return {
        name: p.detach() * p.grad if p.grad is not None else torch.zeros_like(p)
        for name, p in work.module.named_parameters()
    }
