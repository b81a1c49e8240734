"""How important each channel is, summed over every parameter that it is part of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..models.graph import aten, get_tensor
from ..models.model import Model
from .atoms import STAYS, Atoms
from .channels import Channels

if TYPE_CHECKING:
    from ..models.data import Dataset

Score = Literal["l1", "l2", "bn", "taylor", "geometric_median", "random"]
Totals = dict[int, float]


def channel_scores(
    model: Model, channels: Channels, score: Score, gradients: Mapping[str, Tensor] | None = None, *, seed: int = 0
) -> Totals:
    """Score every channel (root) of every group; higher is more important.

    Args:
        model: the analysed model.
        channels: its channels.
        score: `l1`, `l2` (norms of the channel's weights; Li et al. 2017), `bn` (|scale| of its batch norms; Liu et al.
            2017; `l2` where it has none), `geometric_median` (distance to the weights of all other channels; He et al.
            2019), `random`, or `taylor`.
        gradients: for `taylor`, weight x gradient of every parameter (Molchanov et al. 2019, equation 8 summed
            over a channel's weights before the absolute value is taken).
        seed: for `random`.
    """
    totals = _nothing(channels)
    if score == "random":
        draw = np.random.default_rng(seed)
        return dict(zip(totals, draw.random(len(totals)).tolist(), strict=True))
    for name, dim, atoms in _places(model, channels, score):
        value = get_tensor(model.module, name).detach() if gradients is None else gradients[name]
        reduced = _reduce(value, dim, score).double().numpy()
        for column in atoms.T:
            add_to(totals, column, reduced, signed=score == "taylor")
    if score == "l2":
        return {root: total**0.5 for root, total in totals.items()}
    return totals if score in ("l1", "taylor") else with_scores_for_all(model, channels, totals)


def with_scores_for_all(model: Model, channels: Channels, totals: Totals) -> Totals:
    """Return scores where groups of which nothing is known are scored as by `l2`."""
    plain = channel_scores(model, channels, "l2")
    unknown = [g for g in channels.groups if not any(totals[root] for root in g.channels)]
    return totals | {root: plain[root] for group in unknown for root in group.channels}


def add_to(totals: Totals, column: Atoms, values: NDArray[np.float64], signed: bool = False) -> None:
    """Add what one dimension says of its channels; behind a flatten a channel has many positions there."""
    roots, places = np.unique(column, return_inverse=True)
    sums = np.bincount(places, weights=values)
    for root, value in zip(roots.tolist(), sums.tolist(), strict=True):
        if root != STAYS:
            totals[root] += abs(value) if signed else value


def _nothing(channels: Channels) -> Totals:
    return {root: 0.0 for group in channels.groups for root in group.channels}


def _places(model: Model, channels: Channels, score: Score) -> Iterator[tuple[str, int, Atoms]]:
    """Yield the dimensions of parameters that say something of their channels."""
    parameters = {name for name, _ in model.module.named_parameters()}
    scales = _norm_scales(model) if score == "bn" else set()
    for name, dims in channels.tensors.items():
        for dim, atoms in enumerate(dims):
            if atoms is None or name not in parameters or (score == "bn" and name not in scales):
                continue
            if score != "geometric_median" or (dim == 0 and len(dims) > 1):
                yield name, dim, atoms


def _norm_scales(model: Model) -> set[Any]:
    norms = [n for n in model.module.graph.nodes if n.target is aten.batch_norm.default and n.args[1] is not None]
    return {norm.args[1].target for norm in norms}


def _reduce(value: Tensor, dim: int, score: Score) -> Tensor:
    """Return one number for each position of a dimension."""
    rows = value.movedim(dim, 0).flatten(1) if value.ndim > 1 else value.unsqueeze(1)
    if score == "taylor":
        return rows.sum(1)
    if score == "geometric_median":
        return torch.cdist(rows[None], rows[None])[0].sum(1)
    return (rows.square() if score == "l2" else rows.abs()).sum(1)


def taylor_gradients(model: Model, data: Dataset, samples: int, seed: int) -> dict[str, Tensor]:
    """Return weight x gradient of the mean cross-entropy over training examples, for every parameter.

    The model runs in evaluation mode, on a copy.
    """
    work = model.copy()
    indices = data.sample(samples, seed)
    for part in torch.split(indices, 128):
        scores = work.module(*data.inputs(data.train, part))
        loss = F.cross_entropy(scores, data.train.labels[part], reduction="sum") / len(indices)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return {
        name: p.detach() * p.grad if p.grad is not None else torch.zeros_like(p)
        for name, p in work.module.named_parameters()
    }
