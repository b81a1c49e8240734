"""Folders of recordings: what is read of a WAV file, at which rate and length, and what is refused."""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import shipworthy as sw
from shipworthy.models.errors import BadInput
from shipworthy.models.resample import resampled
from shipworthy.models.wave_files import read_header, read_samples

RATE = 8000


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> NDArray[np.float64]:
    """Return a sine of half the full amplitude."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def save(path: Path, channels: NDArray[np.float64], rate: int = RATE, width: int = 2) -> Path:
    """Write samples `(n,)` or `(n, channels)` in -1 to 1 as a WAV file of so many bytes a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.atleast_2d(channels.T).T
    whole = np.round(values * (2 ** (8 * width - 1) - 1)).astype("<i8")
    raw = (whole + 128).astype("u1").tobytes() if width == 1 else whole.view("u1").reshape(-1, 8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as held:
        held.setnchannels(values.shape[1])
        held.setsampwidth(width)
        held.setframerate(rate)
        held.writeframes(raw)
    return path


def folder(place: Path, count: int = 6) -> Path:
    """Write `train` and `test` with low and high tones."""
    for side, start in (("train", 0), ("test", 100)):
        for name, hertz in (("low", 200), ("high", 900)):
            for i in range(count):
                save(place / side / name / f"v{start + i}_{i}.wav", tone(hertz + 10 * i))
    return place


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_each_width_are_read(width: int, tmp_path: Path) -> None:
    """Within one step of their grid; two channels become their mean."""
    x = np.stack([tone(300), -0.5 * tone(300)], 1)
    path = save(tmp_path / "a.wav", x, width=width)
    assert read_samples(path) == pytest.approx(x.mean(1), abs=2.1 / 2 ** (8 * width - 1) + 1e-6)
    assert (read_header(path).rate, read_header(path).frames) == (RATE, 4000)
    assert read_samples(path, 10).shape == (10,)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (16000, 16000), (22050, 8000)])
def test_another_rate_keeps_the_tone(rate: int, wanted: int) -> None:
    """A sine stays the sine, apart from the ends; what the lower rate cannot hold is gone."""
    found = resampled(tone(1000, 0.5, rate).astype(np.float32), rate, wanted)
    true = tone(1000, 0.5, wanted)
    assert len(found) == len(true)
    assert found[200:-200] == pytest.approx(true[200:-200], abs=2e-3)
    if wanted < rate:
        above = resampled(tone(0.6 * wanted, 0.5, rate).astype(np.float32), rate, wanted)
        assert np.abs(above[200:-200]).max() < 0.01


def test_recordings_are_cut_filled_and_resampled(tmp_path: Path) -> None:
    """Each input has the same length, whatever the file's."""
    source = folder(tmp_path)
    save(source / "train" / "low" / "w_0.wav", tone(200, 2.0, 16000), 16000)
    data = sw.open_data(str(source), sample_rate=16000, seconds=1)
    assert (data.task, data.classes, data.input_shape) == ("audio-classification", ("high", "low"), (16000,))
    x, y = data.batch(data.train, torch.arange(len(data.train)))
    assert x.shape == (13, 16000)
    assert x.dtype == torch.float32
    assert y.tolist() == [0] * 6 + [1] * 7
    assert x[0, 8000:].abs().max() < 0.01
    assert x[-1, 8000:].abs().max() > 0.4
    assert data.facts["cut_recordings"] == 1
    assert data.facts["sample_rates"] == [8000, 16000]
    assert data.preprocessing.to_dict()["samples"] == 16000


def test_faulty_recordings_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cut file and one that is no recording."""
    source = folder(tmp_path, 12)
    cut = source / "train" / "low" / "v0_0.wav"
    cut.write_bytes(cut.read_bytes()[:1000])
    (source / "test" / "high" / "x.wav").write_bytes(b"no")
    with caplog.at_level(logging.WARNING):
        data = sw.open_data(str(source))
    assert [text.split(":")[0] for text in data.facts["skipped"]] == ["train/low/v0_0.wav", "test/high/x.wav"]
    assert "truncated: its header says 8000 bytes" in data.facts["skipped"][0]
    assert "2 of 49 recordings cannot be read" in caplog.text
    assert len(data.train) == 23


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    """Voices on both sides, names without a voice, two kinds of files, and options of other data."""
    source = folder(tmp_path / "a")
    save(source / "test" / "low" / "v3_9.wav", tone(200))
    with pytest.raises(BadInput, match="1 groups are in the training and in the test set: v3"):
        sw.open_data(str(source), group="^(v[0-9]+)_")
    with pytest.raises(BadInput, match=r"does not match 'v0_0\.wav'"):
        sw.open_data(str(source), group="^(w[0-9]+)_")
    with pytest.raises(BadInput, match="no regular expression"):
        sw.open_data(str(source), group="(")
    with pytest.raises(BadInput, match="takes no `mean`"):
        sw.open_data(str(source), mean=(0.5,))
    (source / "train" / "low" / "a.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"has images \(\.png\) and recordings \(\.wav\)"):
        sw.open_data(str(source))
    flac = tmp_path / "b" / "train" / "low" / "a.flac"
    flac.parent.mkdir(parents=True)
    flac.write_bytes(b"no")
    (tmp_path / "b" / "test").mkdir()
    with pytest.raises(BadInput, match=r"soundfile|1 of 1 recordings cannot be read"):
        sw.open_data(str(tmp_path / "b"))


def test_without_a_test_folder_groups_decide(tmp_path: Path) -> None:
    """All recordings of a voice are on one side."""
    for name in ("low", "high"):
        for i in range(60):
            save(tmp_path / name / f"v{i // 2}_{i}.wav", tone(200, 0.01))
    data = sw.open_data(str(tmp_path), group="^v[0-9]+")
    assert "hash of the group" in data.facts["training_set"]
    assert len(data.train) % 2 == len(data.test) % 2 == 0
    assert 4 <= len(data.test) <= 48
