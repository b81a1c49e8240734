"""Random changes to training images, drawn from a generator of their own so that a seed fixes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flip_and_shift(pixels: Tensor, generator: torch.Generator, flip: bool, shift: int) -> Tensor:
    """Mirror half of the images and move each by up to `shift` pixels, filling with zeros.

    Args:
        pixels: `(batch, channels, height, width)`, any dtype.
        generator: the source of chance.
        flip: whether to mirror.
        shift: the largest move, in pixels.

    Returns:
        Images of the same shape and dtype.
    """
    batch, _, height, width = pixels.shape
    padded = F.pad(pixels, (shift,) * 4)
    rows = torch.randint(0, 2 * shift + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 2 * shift + 1, (batch, 1), generator=generator) + torch.arange(width)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    picked = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def mixup(x: Tensor, targets: Tensor, generator: torch.Generator, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend every example with another one of the batch (Zhang et al. 2018), a share of its own for each.

    Args:
        x: inputs `(batch, ...)`, floating point.
        targets: class probabilities `(batch, classes)`.
        generator: the source of chance.
        alpha: both parameters of the Beta distribution that shares are drawn from; 1 is uniform.

    Returns:
        The blended inputs and targets.
    """
    batch = len(x)
    share = _beta(batch, alpha, generator)
    other = torch.randperm(batch, generator=generator)
    across = share.view(-1, *([1] * (x.ndim - 1)))
    return x * across + x[other] * (1 - across), targets * share[:, None] + targets[other] * (1 - share[:, None])


def cutmix(x: Tensor, targets: Tensor, generator: torch.Generator, alpha: float) -> tuple[Tensor, Tensor]:
    """Put a box of another image of the batch into every one, and blend targets by area (Yun et al. 2019).

    Unlike the paper, each image has a box of its own.

    Args:
        x: images `(batch, channels, height, width)`.
        targets: class probabilities `(batch, classes)`.
        generator: the source of chance.
        alpha: both parameters of the Beta distribution that the share outside the box is drawn from.

    Returns:
        The images and targets.
    """
    batch, _, height, width = x.shape
    side = (1 - _beta(batch, alpha, generator)).sqrt()
    inside = torch.ones(batch, height, width, dtype=torch.bool)
    for axis, size in ((1, height), (2, width)):
        half, centre = (side * size / 2).round(), (torch.rand(batch, generator=generator) * size).floor()
        places = torch.arange(size).expand(batch, -1)
        within = (places >= (centre - half)[:, None]) & (places < (centre + half)[:, None])
        inside &= within[:, :, None] if axis == 1 else within[:, None, :]
    other = torch.randperm(batch, generator=generator)
    share = inside.flatten(1).float().mean(1)[:, None]
    return torch.where(inside[:, None], x[other], x), targets * (1 - share) + targets[other] * share


def _beta(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Return shares of a Beta(a, a) distribution, from two Gamma variates: torch's own sampler takes no generator."""
    gamma = torch._standard_gamma(torch.full((2, count), alpha), generator=generator)
    return gamma[0] / gamma.sum(0).clamp_min(1e-12)
