"""The log-mel spectrogram as layers of a network, so that a file takes samples and nothing is left to the caller."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .errors import BadInput

FLOOR = 1e-5
"""Added to the power before the logarithm; half precision still holds it."""


class LogMel(nn.Module):
    """Map samples `(batch, samples)` to a log-mel spectrogram `(batch, 1, mels, frames)`.

    The short-time Fourier transform is a strided convolution with windowed cosines and sines, which every runtime
    has; the power of its frequencies is averaged over triangles on the mel scale `2595 log10(1 + f / 700)`
    (O'Shaughnessy 1987), and its logarithm taken. The power is of a window that sums to one: samples in -1 to 1 give
    values that half precision holds.

    Args:
        sample_rate: of the samples, in Hz.
        window: length of a window in samples (a Hann window).
        hop: samples between windows.
        mels: triangles.
        low: where the first one begins, in Hz.
        high: where the last one ends, in Hz; None: half the sample rate.

    Raises:
        BadInput: numbers that give no window, or a triangle between two frequencies of the transform.
    """

    def __init__(
        self, sample_rate: int = 16_000, window: int = 512, hop: int = 160, mels: int = 40, low: float = 20.0,
        high: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        top = sample_rate / 2 if high is None else high
        if window < 2 or hop < 1 or mels < 1 or not 0 <= low < top <= sample_rate / 2:
            raise BadInput(f"LogMel: window {window}, hop {hop}, mels {mels}, low {low}, high {top}; wanted a window of 2 or more, hop and mels of 1 or more, and 0 <= low < high <= {sample_rate / 2:g}")  # fmt: skip # noqa: E501
        self.hop, self.bins = hop, window // 2 + 1
        self.waves: Tensor
        self.triangles: Tensor
        self.register_buffer("waves", _waves(window))
        self.register_buffer("triangles", _triangles(sample_rate, window, mels, (low, top)))

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples `(batch, samples)`, at least a window long, to `(batch, 1, mels, frames)`."""
        parts = torch.conv1d(samples.unsqueeze(1), self.waves, stride=self.hop)
        squares = parts * parts
        power = squares[:, : self.bins] + squares[:, self.bins :]
        mel = torch.conv1d(power, self.triangles)
        return torch.log(mel + FLOOR).unsqueeze(1)


def _waves(window: int) -> Tensor:
    """Return windowed cosines, then sines `(2 * bins, 1, window)`."""
    time = torch.arange(window, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * time / window)
    angles = 2 * math.pi * torch.arange(window // 2 + 1, dtype=torch.float64)[:, None] * time / window
    return (torch.cat([angles.cos(), -angles.sin()]) * hann / hann.sum()).float()[:, None]


def _triangles(sample_rate: int, window: int, mels: int, span: tuple[float, float]) -> Tensor:
    """Return the share of each frequency in each triangle `(mels, bins, 1)`; a triangle's shares sum to one."""
    low, high = (2595 * math.log10(1 + edge / 700) for edge in span)
    corners = 700 * (10 ** (torch.linspace(low, high, mels + 2, dtype=torch.float64) / 2595) - 1)
    at = torch.arange(window // 2 + 1, dtype=torch.float64) * sample_rate / window
    left, centre, right = (corners[i : i + mels, None] for i in range(3))
    shares = torch.minimum((at - left) / (centre - left), (right - at) / (right - centre)).clamp_min(0)
    total = shares.sum(1, keepdim=True)
    if not bool((total > 0).all()):
        raise BadInput(f"LogMel: {mels} mels are too many for a window of {window}: a triangle lies between two of its frequencies; take fewer mels, or a longer window")  # fmt: skip # noqa: E501
    return (shares / total).float()[..., None]


__all__ = ["LogMel"]
