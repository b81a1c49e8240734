"""Attention transfer: where a network's features are large, compared between two networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.errors import BadInput


def attention_map(path: str, feature: Tensor) -> Tensor:
    """Return how large a feature is at each place: its squares over the channels, of length one for each example.

    Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", with p = 2.

    Args:
        path: of the module, for messages.
        feature: `(batch, channels, height, width)`, or tokens `(batch, tokens, width)`.

    Returns:
        `(batch, height, width)` or `(batch, tokens)`, of the feature's type.

    Raises:
        BadInput: it has no places.
    """
    if feature.ndim < 3:
        raise BadInput(f"the feature at {path!r} has the shape {tuple(feature.shape)}, without places to attend to; name another module")  # fmt: skip # noqa: E501
    energy = feature.square().mean(1 if feature.ndim > 3 else -1)
    return F.normalize(energy.flatten(1)).view_as(energy)


def attention_loss(given: Sequence[Tensor], wanted: Sequence[Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of squared distances between maps, the mean over the batch.

    Args:
        given: the student's features.
        wanted: the teacher's maps, see `attention_map`; of images, maps of another size are brought to the smaller.
        weights: by path.

    Raises:
        BadInput: the shapes differ in more than that.
    """
    parts = []
    for (path, weight), feature, there in zip(weights.items(), given, wanted, strict=True):
        here, target = _alike(path, attention_map(path, feature), there.to(feature.dtype))
        parts.append(weight * (here - target).square().flatten(1).sum(1).mean())
    return torch.stack(parts).sum()


def _alike(path: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape == b.shape:
        return a, b
    if a.ndim != 3 or b.ndim != 3:
        raise BadInput(f"the maps at {path!r} do not fit: {tuple(a.shape)} here, {tuple(b.shape)} in the teacher")
    size = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    small = [F.adaptive_avg_pool2d(one, size) for one in (a, b)]
    return F.normalize(small[0].flatten(1)), F.normalize(small[1].flatten(1))
