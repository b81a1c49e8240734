"""The log-mel spectrogram against its definition, and through capture and export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import shipworthy as sw
from shipworthy.export.artifact import Precision
from shipworthy.models.errors import BadInput
from shipworthy.models.log_mel import FLOOR


def test_it_is_the_fourier_transform_over_triangles() -> None:
    """NumPy's transform of each window, and triangles drawn by hand, give the same."""
    layer = sw.LogMel(sample_rate=8000, window=256, hop=100, mels=20, low=50, high=3500)
    x = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0)) * 0.1
    starts = range(0, 2000 - 256 + 1, 100)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    windows = np.stack([x.numpy()[:, s : s + 256] * hann / hann.sum() for s in starts], 1)
    power = np.abs(np.fft.rfft(windows)) ** 2
    mel = np.linspace(2595 * math.log10(1 + 50 / 700), 2595 * math.log10(1 + 3500 / 700), 22)
    corners = 700 * (10 ** (mel / 2595) - 1)
    shares = np.stack([np.interp(np.arange(129) * 8000 / 256, corners[i : i + 3], [0, 1, 0]) for i in range(20)])
    shares /= shares.sum(1, keepdims=True)
    wanted = np.log(power @ shares.T + FLOOR).transpose(0, 2, 1)[:, None]
    found = layer(x)
    assert found.shape == (2, 1, 20, len(starts))
    assert found.numpy() == pytest.approx(wanted, abs=1e-3)


def test_it_has_no_weights_and_exports_in_every_precision(tmp_path: Path) -> None:
    """Nothing of it learns; the file is the module, in halves too."""
    torch.manual_seed(0)
    net = nn.Sequential(sw.LogMel(window=400, mels=16), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, 4000) * 0.2
    net(x)
    assert not list(net[0].parameters())
    model = sw.capture(net.eval(), (x,))
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        path = tmp_path / f"{precision}.onnx"
        sw.to_onnx(model, path, precision)
        assert sw.parity(model, path, {model.inputs[0].name: x.numpy()}, precision).outputs


@pytest.mark.parametrize("given", [{"window": 1}, {"low": 9000.0}, {"hop": 0}, {"mels": 400}])
def test_numbers_that_give_no_window_are_refused(given: dict[str, Any]) -> None:
    """With what to take instead."""
    with pytest.raises(BadInput, match="LogMel: "):
        sw.LogMel(**given)
