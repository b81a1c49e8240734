"""Fake quantization that can be trained: what stands in a graph while a pass trains it."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from .qat_ranges import LEVELS, Bounds, Grid, grid_of

LEAST_SHARE = 0.01
"""A learnt step never falls below this share of what it started from: at zero and below it is no step."""

_LEAST_STEP = 1e-12


class _Steps(nn.Module):
    """Learnt steps, which stay above a least."""

    def __init__(self, start: Tensor, most: float = math.inf) -> None:
        super().__init__()
        self.step = nn.Parameter(start.clone())
        self._least, self._most = start * LEAST_SHARE, torch.full_like(start, most)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring steps back that training brought too low or too high."""
        self.step.clamp_(self._least, self._most)


@final
class LearntGrid(_Steps):
    """An activation's grid whose step is learnt (Esser et al. 2020, "Learned step size quantization").

    The step's gradient is scaled by `1 / sqrt(n * q)`: `n` values an example, `q` integers on the larger side of zero.
    Steps then learn as fast as weights, relative to their size. The zero point stays as it is, so that zero is exact.
    The grid never grows beyond the bounds that a clamp puts on the values: in the file it does the clamp's work.
    """

    def __init__(self, span: Bounds, within: Bounds) -> None:
        grid = grid_of(*span)
        super().__init__(torch.tensor([grid.step]), (within[1] - within[0]) / LEVELS)
        self._zero = grid.zero

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values."""
        count = x.numel() / x.shape[0] if x.ndim and len(x) else 1
        factor = 1 / math.sqrt(count * max(LEVELS - self._zero, self._zero))
        zero = torch.tensor([float(self._zero)])
        return torch._fake_quantize_learnable_per_tensor_affine(x, self.step, zero, 0, LEVELS, factor)

    def grid(self) -> Grid:
        """Return the present grid."""
        return Grid(self.step.item(), self._zero)


@final
class FollowedGrid(nn.Module):
    """An activation's grid by a moving average of its range; gradients pass straight through what is not cut off."""

    def __init__(self, span: Bounds, pace: float) -> None:
        super().__init__()
        self._low, self._high, self._pace = *span, pace
        self._together: tuple[FollowedGrid, ...] = (self,)
        self.frozen = False

    def join(self, others: tuple[FollowedGrid, ...]) -> None:
        """Have one grid together with others, which spans all their ranges."""
        object.__setattr__(self, "_together", others)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values."""
        if not self.frozen:
            low, high = (end.item() for end in x.detach().aminmax())
            self._low += self._pace * (low - self._low)
            self._high += self._pace * (high - self._high)
        grid = self.grid()
        return torch.fake_quantize_per_tensor_affine(x, grid.step, grid.zero, 0, LEVELS)

    def settle(self) -> None:
        """Leave all as it is."""

    def grid(self) -> Grid:
        """Return the present grid."""
        return grid_of(min(one._low for one in self._together), max(one._high for one in self._together))


@final
class GateGrid(nn.Module):
    """The grid of what lies between 0 and 1 by definition."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values."""
        grid = self.grid()
        return torch.fake_quantize_per_tensor_affine(x, grid.step, grid.zero, 0, LEVELS)

    def settle(self) -> None:
        """Leave all as it is."""

    def grid(self) -> Grid:
        """Return the grid."""
        return grid_of(0.0, 1.0)


@final
class LearntSteps(_Steps):
    """A weight's steps, one for each output channel, learnt; the gradients are scaled as those of activations."""

    def __init__(self, weight: Tensor, axis: int, most: int) -> None:
        super().__init__(largest_steps(weight, axis, most))
        self._axis, self._top = axis, most

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight."""
        factor = 1 / math.sqrt(weight.numel() / len(self.step) * self._top)
        zeros = torch.zeros_like(self.step)
        return torch._fake_quantize_learnable_per_channel_affine(
            weight, self.step, zeros, self._axis, -self._top - 1, self._top, factor
        )

    def steps(self, weight: Tensor) -> Tensor:
        """Return the present steps of a weight `(channels,)`."""
        return self.step.detach().clone()


@final
class LargestSteps(nn.Module):
    """A weight's steps, one for each output channel, at which its largest value is the largest integer."""

    def __init__(self, axis: int, most: int) -> None:
        super().__init__()
        self._axis, self._most = axis, most

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight."""
        steps = self.steps(weight)
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, steps, zeros, self._axis, -self._most - 1, self._most)

    def settle(self) -> None:
        """Leave all as it is."""

    def steps(self, weight: Tensor) -> Tensor:
        """Return the present steps of a weight `(channels,)`."""
        return largest_steps(weight, self._axis, self._most)


def largest_steps(weight: Tensor, axis: int, most: int) -> Tensor:
    """Return for each channel the step at which its largest weight is the largest integer, `(channels,)`."""
    rows = weight.detach().movedim(axis, 0).reshape(weight.shape[axis], -1)
    return (rows.abs().amax(1) / most).clamp_min(_LEAST_STEP)


ActivationGrid = LearntGrid | FollowedGrid | GateGrid
WeightSteps = LearntSteps | LargestSteps

__all__ = ["ActivationGrid", "FollowedGrid", "GateGrid", "LargestSteps", "LearntGrid", "LearntSteps", "WeightSteps"]
