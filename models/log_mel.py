"""Recordings as pictures, inside the model: the logarithm of a mel spectrogram, of operators that every runtime has."""

from __future__ import annotations

from typing import cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import BadInput

_LOUDEST = 64.0
"""The amplitude that a sine from -1 to 1 gets, so that its power and a floor 76 dB below both fit into fp16."""


@final
class LogMel(nn.Module):
    """Map waveforms `(batch, samples)` in -1 to 1 to log-mel pictures `(batch, 1, mels, frames)`.

    Frames lie `hop` samples apart and are not padded: there are `1 + (samples - window) // hop`. Each is weighed by a
    Hann window (periodic) and becomes power at the frequencies of an `fft`-point Fourier transform, by two strided
    convolutions with fixed kernels. Mel filters are triangles over hertz with peaks of 1, their corners evenly spaced
    by the formula of HTK (Young et al., The HTK Book, section 5.4): `2595 * log10(1 + hertz / 700)`; this is what
    `torchaudio.transforms.MelSpectrogram` does by default. Logarithms are natural. Unlike others, power is scaled so
    that a sine from -1 to 1 has 4096, for half precision.

    Kernels and filters are buffers: they are stored with the model, and nothing trains them.

    Args:
        sample_rate: of the waveforms, in Hz.
        window: samples of a frame.
        hop: samples from one frame to the next.
        fft: points of the transform, at least `window`: more are finer steps in frequency.
        mels: filters.
        low_hz: where the first one begins.
        high_hz: where the last one ends; None: half the sample rate.
        floor: power below it is raised to it; 1e-4 is 76 dB below a sine from -1 to 1, and a normal number in fp16.

    Raises:
        BadInput: sizes that make no transform, or so many filters that one lies between two frequencies.
    """

    cosines: Tensor
    sines: Tensor
    filters: Tensor

    def __init__(  # noqa: PLR0913 (each is given by its name)
        self,
        sample_rate: int = 16_000,
        window: int = 400,
        hop: int = 160,
        fft: int = 512,
        mels: int = 40,
        low_hz: float = 20.0,
        high_hz: float | None = None,
        floor: float = 1e-4,
    ) -> None:
        super().__init__()
        high = sample_rate / 2 if high_hz is None else high_hz
        if not (sample_rate > 0 and 1 < window <= fft and hop > 0 and mels > 0 and floor > 0):
            raise BadInput(f"LogMel: sample_rate {sample_rate}, window {window}, hop {hop}, fft {fft}, mels {mels}, floor {floor}; wanted positive numbers, and a window of 2 to fft samples")  # fmt: skip # noqa: E501
        if not 0 <= low_hz < high <= sample_rate / 2:
            raise BadInput(f"LogMel: low_hz {low_hz:g} and high_hz {high:g}; wanted 0 <= low_hz < high_hz <= {sample_rate / 2:g}, half the sample rate")  # fmt: skip # noqa: E501
        self.window, self.hop, self.floor = window, hop, floor
        filters = mel_filters(sample_rate, fft, mels, low_hz, high)
        empty = int((filters.sum(1) == 0).sum())
        if empty:
            raise BadInput(f"LogMel: {empty} of {mels} mel filters lie between two frequencies of an fft of {fft} points ({sample_rate / fft:g} Hz apart); take fewer mels, or a larger fft")  # fmt: skip # noqa: E501
        heard = np.flatnonzero(filters.sum(0))  # the others would be computed and multiplied by zero
        cosines, sines = _kernels(window, fft, heard)
        for name, values in (("cosines", cosines[:, None]), ("sines", sines[:, None]), ("filters", filters[:, heard])):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, waves: Tensor) -> Tensor:
        """Map `(batch, samples)` to `(batch, 1, mels, frames)`.

        Raises:
            BadInput: the waveforms have another form, or are shorter than a window.
        """
        if waves.ndim != 2 or waves.shape[1] < self.window:
            raise BadInput(f"LogMel: got waveforms of shape {tuple(waves.shape)}, wanted (batch, samples) with at least {self.window} samples")  # fmt: skip # noqa: E501
        x = waves.unsqueeze(1)
        real, imaginary = F.conv1d(x, self.cosines, stride=self.hop), F.conv1d(x, self.sines, stride=self.hop)
        heard = torch.matmul(self.filters, real * real + imaginary * imaginary)
        return heard.clamp(min=self.floor).log().unsqueeze(1)


def mel_filters(sample_rate: int, fft: int, mels: int, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Return triangles over the frequencies of a transform, `(mels, fft // 2 + 1)`, with peaks of 1."""
    ends = 2595 * np.log10(1 + np.array([low_hz, high_hz]) / 700)
    corners = 700 * (10 ** (np.linspace(ends[0], ends[1], mels + 2) / 2595) - 1)
    hertz = np.arange(fft // 2 + 1) * sample_rate / fft
    rise = (hertz - corners[:-2, None]) / np.diff(corners)[:-1, None]
    fall = (corners[2:, None] - hertz) / np.diff(corners)[1:, None]
    return cast(NDArray[np.float64], np.minimum(rise, fall).clip(min=0))


def _kernels(window: int, fft: int, bins: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the real and the imaginary part of a windowed transform at some frequencies, `(bins, window)` each."""
    places = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * places / window)
    angles = 2 * np.pi * (bins[:, None] * places % fft) / fft
    scaled = hann * (2 * _LOUDEST / hann.sum())
    return scaled * np.cos(angles), -scaled * np.sin(angles)


__all__ = ["LogMel", "mel_filters"]
