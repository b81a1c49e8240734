"""Log-mel pictures inside a model: the numbers, and that every stage takes them and leaves them as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shipworthy.compress.channels import FIXED, find_channels
from shipworthy.compress.prune import Prune
from shipworthy.compress.sparsify import Sparsify
from shipworthy.export.onnx_file import to_onnx
from shipworthy.export.parity import parity
from shipworthy.models.errors import BadInput
from shipworthy.models.log_mel import LogMel, mel_filters
from shipworthy.models.model import Model, capture, load_pt2, save_pt2
from shipworthy.models.sources import load

NETS = Path(__file__).parents[1] / "examples" / "nets.py"
KERNELS = ("cosines", "sines", "filters")


def waves(count: int = 3, samples: int = 16_000) -> Tensor:
    """Return noise and a sine, from loud to faint."""
    x = torch.rand(count, samples, generator=torch.Generator().manual_seed(0)) - 0.5
    x = x + 0.5 * torch.sin(torch.arange(samples) * 0.3)
    return x * torch.logspace(0, -3, count)[:, None]


def by_fft(x: NDArray[np.float32], window: int = 400, hop: int = 160, fft: int = 512, mels: int = 40) -> NDArray[np.float64]:  # fmt: skip # noqa: E501
    """Return the same by numpy's Fourier transform and filters written as the formula reads, in float64."""
    hann = np.hanning(window + 1)[:-1]
    starts = range(0, x.shape[1] - window + 1, hop)
    frames = np.stack([x[:, s : s + window] * hann for s in starts], 1) * (2 * 64 / hann.sum())
    power = np.abs(np.fft.rfft(frames, fft)) ** 2
    ends = [2595 * np.log10(1 + hertz / 700) for hertz in (20, 8000)]
    corners = [700 * (10 ** (mel / 2595) - 1) for mel in np.linspace(ends[0], ends[1], mels + 2)]
    hertz = np.fft.rfftfreq(fft, 1 / 16_000)
    rows = [np.interp(hertz, corners[i : i + 3], [0, 1, 0]) for i in range(mels)]
    heard = np.einsum("nfk,mk->nmf", power, np.array(rows))
    made: NDArray[np.float64] = np.log(np.maximum(heard, 1e-4))[:, None]
    return made


@pytest.mark.parametrize("sizes", [{}, {"window": 512, "hop": 128, "mels": 32}, {"window": 640, "hop": 320, "fft": 1024, "mels": 64}])  # fmt: skip # noqa: E501
def test_it_is_the_transform_that_numpy_computes(sizes: dict[str, int]) -> None:
    """Pictures equal those by a Fourier transform in float64, whatever the sizes."""
    x = waves()
    made = LogMel(**sizes)(x)
    wanted = by_fft(x.numpy(), **sizes)
    assert made.shape == wanted.shape
    assert float(np.abs(made.numpy() - wanted).max()) < 2e-3
    assert float(np.abs(made.numpy() - wanted).mean()) < 2e-5


def test_a_full_sine_has_the_power_that_is_promised() -> None:
    """A sine from -1 to 1 at a frequency of the transform has 4096 there, and silence is the floor."""
    places = torch.arange(16_000)
    net = LogMel(fft=400, mels=20)
    loud = net(torch.sin(2 * torch.pi * 1000 * places / 16_000)[None])
    peak = mel_filters(16_000, 400, 20, 20, 8000)[:, 24:27] @ np.array([0.25, 1, 0.25]) * 4096
    assert float(loud.exp().amax()) == pytest.approx(peak.max(), rel=1e-3)
    silent = net(torch.zeros(1, 16_000))
    assert torch.allclose(silent, torch.full_like(silent, float(np.log(1e-4))))


def test_every_stage_keeps_it(tmp_path: Path) -> None:
    """Captured, saved, loaded and exported it gives the same pictures, at any batch and length."""
    module = LogMel()
    model = capture(module, (waves(2),), dynamic={"waves": {1: "length"}})
    save_pt2(model, tmp_path / "m.pt2")
    for x in (waves(5), waves(3, 12_345)):
        for held in (model, load_pt2(tmp_path / "m.pt2")):
            assert torch.equal(held.module(x), module(x))
    made = to_onnx(model, tmp_path / "m.onnx")
    for x in (waves(1), waves(3, 12_345)):
        assert parity(model, made, {"waves": x.numpy()}).passed
    assert list(module.parameters()) == []
    assert tuple(module.state_dict()) == KERNELS


@pytest.mark.parametrize("precision", ["fp16", "mixed"])
def test_half_precision_holds_it(tmp_path: Path, precision: str) -> None:
    """From full loudness to silence nothing overflows or vanishes in fp16, so the transform and its filters stay."""
    x = torch.cat([waves(4), torch.zeros(1, 16_000), torch.sign(waves(1))])
    model = capture(LogMel(), (x,))
    made = to_onnx(model, tmp_path / "m.onnx", precision=precision, calibration=x)  # type: ignore[arg-type]  # parametrize gives str
    assert parity(model, made, {model.inputs[0].name: x.numpy()}).passed
    assert not {name for name in made.fp32_nodes if name.startswith(("Conv", "MatMul"))}


def test_what_cannot_be_is_explained() -> None:
    """Sizes, frequencies, filters between two frequencies and waveforms of another form each have their message."""
    with pytest.raises(BadInput, match="window of 2 to fft samples"):
        LogMel(window=600)
    with pytest.raises(BadInput, match="0 <= low_hz < high_hz <= 4000, half the sample rate"):
        LogMel(sample_rate=8_000, high_hz=8_000)
    with pytest.raises(BadInput, match=r"of 128 mel filters lie between .* take fewer mels, or a larger fft"):
        LogMel(mels=128)
    for shape in ((2, 1, 16_000), (2, 399)):
        with pytest.raises(BadInput, match=r"wanted \(batch, samples\) with at least 400 samples"):
            LogMel()(torch.zeros(shape))


# --- in a model


@pytest.fixture(scope="module")
def net() -> Model:
    """The example's network."""
    return load(f"{NETS}:keyword_net")


def _kernels(model: Model) -> dict[str, Tensor]:
    return {name: model.module.get_buffer(f"mel.{name}") for name in KERNELS}


def test_pruning_narrows_the_layers_and_keeps_the_transform(net: Model) -> None:
    """Half of the network's channels go, and none of the frequencies or filters, and the reason is said."""
    pruned = Prune(ratio=0.5)(net)
    assert all(torch.equal(value, _kernels(pruned.model)[name]) for name, value in _kernels(net).items())
    assert pruned.facts["params_before"] < 100_000
    assert pruned.facts["params_after"] < 0.3 * pruned.facts["params_before"]
    reasons = {m.tensor: g.frozen for g in find_channels(net).groups for m in g.members if m.dim == 0}
    assert reasons["mel.cosines"] == FIXED


def test_sparsity_leaves_the_transform(net: Model) -> None:
    """Zeros go into learnt weights only."""
    made = Sparsify(ratio=0.5)(net)
    assert all(torch.equal(value, _kernels(made.model)[name]) for name, value in _kernels(net).items())
    assert made.model.sparsity is not None
    assert not any(name.startswith("mel") for name in made.model.sparsity.patterns)


def test_filters_as_channels_stay_too() -> None:
    """Where mels are channels of a convolution over time, none is taken away, and learnt ones behind it can be."""

    class OverTime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mel, self.conv, self.fc = LogMel(), nn.Conv1d(40, 32, 3), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.fc(self.conv(self.mel(x).squeeze(1)).relu().mean(2))
            return scores

    pruned = Prune(ratio=0.5)(capture(OverTime(), (waves(2),))).model.module
    assert pruned.get_buffer("mel.filters").shape == (40, 256)
    assert pruned.get_parameter("conv.weight").shape == (16, 40, 3)
