"""Ridge regression from sums over rows, so that the rows themselves need not be kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-2
"""How strongly weights are drawn to zero, in mean squares of the inputs."""


@dataclass
class Sums:
    """Sums of products over rows: inputs of `k` numbers and targets of `o`, in float64."""

    count: int
    inputs: Tensor
    targets: Tensor
    gram: Tensor
    cross: Tensor

    def plus(self, more: Sums) -> Sums:
        """Return the sums over both sets of rows."""
        return Sums(*(a + b for a, b in zip(vars(self).values(), vars(more).values(), strict=True)))


def sums_of(a: Tensor, b: Tensor) -> Sums:
    """Return the sums over rows of inputs `(n, k)` and targets `(n, o)`."""
    return Sums(len(a), a.sum(0).double(), b.sum(0).double(), (a.T @ a).double(), (a.T @ b).double())


@dataclass(frozen=True)
class Linear:
    """A linear map: `weight` `(k, o)` and `bias` `(o,)`."""

    weight: Tensor
    bias: Tensor

    def helps(self, seen: Sums) -> bool:
        """Whether it is nearer to the targets of these rows than zero is."""
        w, b = self.weight, self.bias
        fitted = (w * (seen.gram @ w)).sum() + 2 * (seen.inputs @ w) @ b + seen.count * (b @ b)
        return bool(fitted < 2 * ((w * seen.cross).sum() + b @ seen.targets))


def fit(seen: Sums, offset: bool) -> Linear:
    """Return the map nearest to the targets in the mean square, with a ridge; without `offset` its bias is zero."""
    share = offset / seen.count
    mean, target = seen.inputs * share, seen.targets * share
    gram = seen.gram - seen.count * torch.outer(mean, mean)
    cross = seen.cross - seen.count * torch.outer(mean, target)
    ridge = RIDGE * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), cross)
    return Linear(weight, target - mean @ weight)
