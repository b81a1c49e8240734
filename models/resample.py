"""Recordings at another sample rate, by a windowed sinc."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CROSSINGS = 6
"""Zero crossings of the sinc on each side; the window ends there."""
ROLLOFF = 0.99
"""Of the lower Nyquist frequency, where the filter cuts off."""
_AT_ONCE = 1 << 15


def resampled(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Return samples `(n,)` of one rate, in Hz, at another: `(ceil(n * wanted / rate),)`, clipped to -1 to 1.

    A sinc under a Hann window, cut off at 0.99 of the lower Nyquist frequency: what
    `torchaudio.functional.resample` computes by default, from J. O. Smith, Digital Audio Resampling
    (ccrma.stanford.edu/~jos/resample). Unlike it, only the taps under the window are kept for each phase, so that
    rates without a common divisor need no more memory than others. Before the start and behind the end is silence.
    """
    if rate == wanted:
        return samples
    shared = math.gcd(rate, wanted)
    old, new = rate // shared, wanted // shared
    taps = _taps(old, new)
    half = taps.shape[1] // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, half), 2 * half)
    made = np.empty(-(-len(samples) * new // old), np.float32)
    for start in range(0, len(made), _AT_ONCE):
        places = np.arange(start, min(start + _AT_ONCE, len(made)), dtype=np.int64) * old
        # A window that starts at `k` in the padded samples starts at `k - half` in the samples.
        made[start : start + len(places)] = np.einsum("ij,ij->i", windows[places // new + 1], taps[places % new])
    return made.clip(-1, 1)


def reach(rate: int, wanted: int) -> int:
    """Return how many samples on each side decide one that is made."""
    return math.ceil(CROSSINGS * max(rate / wanted, 1) / ROLLOFF) + 1


@lru_cache(maxsize=16)
def _taps(old: int, new: int) -> NDArray[np.float32]:
    """Return the filter of each phase `(new, taps)`: how much the samples around a place weigh that lies between."""
    half = math.ceil(CROSSINGS * max(old / new, 1) / ROLLOFF) + 1
    cutoff = ROLLOFF * min(1, new / old)
    away = np.arange(-half + 1, half + 1) - np.arange(new)[:, None] / new
    inside = (cutoff * away).clip(-CROSSINGS, CROSSINGS)
    made: NDArray[np.float64] = cutoff * np.sinc(inside) * np.cos(np.pi * inside / (2 * CROSSINGS)) ** 2
    return made.astype(np.float32)


__all__ = ["reach", "resampled"]
