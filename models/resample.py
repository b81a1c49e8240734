"""Another sample rate, by a windowed sinc (Smith, "Digital Audio Resampling", CCRMA)."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ZEROS = 16
"""Zero crossings of the sinc on either side."""

ROLLOFF = 0.95
"""Of the lower rate's half, above which nothing is let through."""


def resampled(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Return samples `(n,)` of one rate at another, `(ceil(n * wanted / rate),)`; both in Hz."""
    if rate == wanted or len(samples) == 0:
        return samples
    common = gcd(rate, wanted)
    old, new = rate // common, wanted // common
    kernels, half = _kernels(old, new)
    x = F.pad(torch.from_numpy(np.ascontiguousarray(samples))[None, None], (half, half + old))
    found = F.conv1d(x, kernels, stride=old)[0].T.reshape(-1)
    made: NDArray[np.float32] = found[: ceil(len(samples) * new / old)].numpy()
    return made


@lru_cache(maxsize=16)
def _kernels(old: int, new: int) -> tuple[Tensor, int]:
    """Return a filter for each of the new samples in a period `(new, 1, taps)`, and the samples before it."""
    cut = ROLLOFF * min(old, new)
    half = ceil(ZEROS * old / cut)
    places = torch.arange(-half, half + old, dtype=torch.float64) / old
    shifts = torch.arange(new, dtype=torch.float64)[:, None] / new
    at = ((places - shifts) * cut).clamp(-ZEROS, ZEROS)
    window = torch.cos(at * torch.pi / ZEROS / 2) ** 2
    return (torch.sinc(at) * window * cut / old).float()[:, None], half
