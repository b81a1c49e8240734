"""Penalties that hold weights near zero, or near where they started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def l2(weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return `strength / 2 ||w||^2` over all weights, a scalar."""
    return 0.5 * strength * torch.stack([w.square().sum() for w in weights]).sum()


def l2_sp(
    weights: Mapping[str, Tensor], start: Mapping[str, Tensor], head: Sequence[str], alpha: float, beta: float
) -> Tensor:
    """Return `alpha / 2 ||w - w0||^2` over pretrained weights plus `beta / 2 ||w||^2` over the new head, a scalar.

    Li, Grandvalet and Davoine 2018, "Explicit inductive bias for transfer learning", equation 4 (L2-SP).

    Args:
        weights: those that learn, by name.
        start: the pretrained values, by name, of the same shapes.
        head: the names of the new head's.
        alpha: the pull towards `start`.
        beta: the pull of the head towards zero.
    """
    pulled = [alpha * (w - start[name]).square().sum() for name, w in weights.items() if name not in head]
    drawn = [beta * w.square().sum() for name, w in weights.items() if name in head]
    return 0.5 * torch.stack(pulled + drawn).sum()


__all__ = ["l2", "l2_sp"]
