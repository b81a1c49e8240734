"""Batch norm over the batch of all processes, so that several learn what one would (as torch's SyncBatchNorm)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from ..models.graph import TRAINING_FLAG, aten
from .surroundings import Crew


class _Sum(torch.autograd.Function):
    """The sum over all processes; what is asked of it comes from all of them, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = x.clone()
        torch.distributed.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *asked: Tensor) -> Tensor:
        total = asked[0].clone()
        torch.distributed.all_reduce(total)
        return total


def synced_batch_norm(  # noqa: PLR0913 (as the operator has them)
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, training: bool,
    momentum: float, eps: float, cudnn: bool = False,
) -> Tensor:  # fmt: skip
    """Do what `aten.batch_norm` does, over the examples of all processes."""
    if not training:
        return F.batch_norm(x, mean, variance, weight, bias, False, momentum, eps)
    dims = [0, *range(2, x.ndim)]
    count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
    sums = _Sum.apply(torch.cat([x.sum(dims), (x * x).sum(dims), count]))
    total, channels = sums[-1], x.shape[1]
    average = sums[:channels] / total
    spread = sums[channels:-1] / total - average * average
    with torch.no_grad():
        mean.lerp_(average, momentum)
        variance.lerp_(spread * total / (total - 1), momentum)
    shape = (1, channels, *(1,) * (x.ndim - 2))
    scale = torch.rsqrt(spread + eps) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - average * scale
    found: Tensor = x * scale.view(shape) + shift.view(shape)
    return found


TRAINING_FLAG[synced_batch_norm] = TRAINING_FLAG[aten.batch_norm.default]


@contextmanager
def norms_together(module: GraphModule, crew: Crew) -> Iterator[None]:
    """Let the batch norms of a graph see the whole crew's batch while the context lasts."""
    norms = [
        node for node in module.graph.nodes
        if not crew.alone and node.target is aten.batch_norm.default and node.args[3] is not None
    ]  # fmt: skip
    for node in norms:
        node.target = synced_batch_norm
    if norms:
        module.recompile()
    try:
        yield
    finally:
        for node in norms:
            node.target = aten.batch_norm.default
        if norms:
            module.recompile()


__all__ = ["norms_together", "synced_batch_norm"]
