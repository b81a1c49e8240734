"""Folders of recordings: what is read of them, how it becomes one length and rate, and what is said of faulty ones."""

from __future__ import annotations

import importlib
import logging
import math
import struct
import sys
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from shipworthy.models.data import Dataset, open_data
from shipworthy.models.errors import BadInput, MissingRuntime
from shipworthy.models.resample import resampled
from shipworthy.models.wave_files import read_header, read_wave

RATE = 16_000


def _sine(hertz: float, rate: int = RATE, seconds: float = 1.0, loud: float = 0.5) -> NDArray[np.float64]:
    return loud * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def _write(path: Path, samples: NDArray[np.float64], rate: int = RATE, width: int = 2) -> Path:
    """Write samples `(n,)` or `(n, channels)` in -1 to 1 as whole numbers of so many bytes, by the standard library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    most = 2 ** (8 * width - 1)
    whole = np.clip(np.round(samples * most), -most, most - 1).astype("<i4")
    shifted = whole + 128 if width == 1 else whole
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(samples.shape[1] if samples.ndim > 1 else 1)
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(shifted.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :width].tobytes())
    return path


def _chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(held)) + held + b"\0" * (len(held) % 2) for name, held in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def _form(kind: int, channels: int, rate: int, bits: int, more: bytes = b"") -> tuple[bytes, bytes]:
    block = channels * bits // 8
    return b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, rate * block % 2**32, block, bits) + more


def _folder(root: Path, count: int = 3, hertz: Sequence[float] = (300, 900)) -> Path:
    """Write both sides of two classes, each of sines of one frequency."""
    for part in ("train", "test"):
        for name, pitch in zip(("high", "low"), sorted(hertz, reverse=True), strict=True):
            for i in range(count):
                _write(root / part / name / f"{i}.wav", _sine(pitch, loud=0.2 + 0.1 * i))
    return root


def _waves(data: Dataset, *indices: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = data.train.fetch(torch.tensor(indices)).numpy()
    return found


def _hertz(samples: NDArray[np.float32], rate: int = RATE) -> float:
    """Return the frequency that is loudest."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(power.argmax() * rate / len(samples))


# --- files


@pytest.mark.parametrize(("width", "step"), [(1, 2**-7), (2, 2**-15), (3, 2**-23), (4, 2**-24)])
def test_whole_numbers_of_every_width_are_read(tmp_path: Path, width: int, step: float) -> None:
    """Samples of 8, 16, 24 and 32 bits come back within half a step, in -1 to 1."""
    wanted = np.concatenate([_sine(440), [-1.0, 0.0]])
    path = _write(tmp_path / "a.wav", wanted, width=width)
    samples, rate = read_wave(path)
    assert (rate, samples.dtype.name, len(samples)) == (RATE, "float32", RATE + 2)
    assert np.abs(samples - wanted).max() <= 0.51 * step + 6e-8
    assert samples[-2:].tolist() == [-1.0, 0.0]
    header = read_header(path)
    assert (header.rate, header.frames) == (RATE, RATE + 2)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("extensible", [False, True])
def test_floats_are_read(tmp_path: Path, bits: int, extensible: bool) -> None:
    """Floats, other chunks before them and the extensible header are read; what is beyond 1 is cut off."""
    held = np.array([0.25, -0.5, 1.5], f"<f{bits // 8}")
    more = struct.pack("<HHIH", 22, bits, 0, 3) + b"\0" * 14 if extensible else b""
    form = _form(0xFFFE if extensible else 3, 1, 8000, bits, more)
    path = tmp_path / "a.wav"
    path.write_bytes(_chunks(form, (b"LIST", b"odd"), (b"data", held.tobytes())))
    samples, rate = read_wave(path)
    assert (samples.tolist(), rate) == ([0.25, -0.5, 1.0], 8000)
    assert read_header(path).frames == 3


def test_channels_are_averaged(tmp_path: Path) -> None:
    """Of stereo the mean is taken, also of the first frames alone."""
    left, right = _sine(300), _sine(500)
    path = _write(tmp_path / "a.wav", np.stack([left, right], 1))
    samples, _ = read_wave(path)
    assert np.abs(samples - (left + right) / 2).max() < 2**-15
    assert np.array_equal(read_wave(path, 100)[0], samples[:100])


def test_a_file_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    """Programs that write to a pipe leave the length open."""
    path = _write(tmp_path / "a.wav", _sine(300))
    held = bytearray(path.read_bytes())
    held[40:44] = b"\xff" * 4
    path.write_bytes(held)
    assert read_header(path).frames == RATE
    assert len(read_wave(path)[0]) == RATE


def _faulty() -> dict[str, tuple[bytes, str]]:
    one = np.zeros(8, "<i2").tobytes()
    data = (b"data", one)
    return {
        "empty": (b"", "it is empty"),
        "foreign": (b"ID3\x04" + b"\0" * 60, "no WAV file: begins with b'ID3"),
        "cut in the header": (_chunks(_form(1, 1, RATE, 16)), "cut off before its samples"),
        "cut in the samples": (_chunks(_form(1, 1, RATE, 16), data)[:-6], "cut off: 10 of 16 bytes"),
        "no samples": (_chunks(_form(1, 1, RATE, 16), (b"data", b"")), "it has no samples"),
        "no form": (_chunks(data), "no fmt chunk"),
        "packed": (_chunks(_form(2, 1, RATE, 16), data), "WAV format 2 with 16 bits"),
        "no channel": (_chunks(_form(1, 0, RATE, 16), data), "0 channels"),
        "wide": (_chunks(_form(1, 1, RATE, 64), data), "with 64 bits"),
        "no rate": (_chunks(_form(1, 1, 0, 16), data), "sample rate is 0 Hz"),
        "fast": (_chunks(_form(1, 1, 2**31, 16), data), "wanted 1 to 1,000,000"),
    }


@pytest.mark.parametrize("name", _faulty())
def test_faulty_headers_are_explained(tmp_path: Path, name: str) -> None:
    """What is wrong with a file is seen from its header and its length."""
    held, reason = _faulty()[name]
    path = tmp_path / "a.wav"
    path.write_bytes(held)
    for read in (read_header, read_wave):
        with pytest.raises(ValueError, match=reason):
            read(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 32767.0])
def test_floats_that_are_no_samples_are_refused(tmp_path: Path, value: float) -> None:
    """Numbers that are not finite, or whole numbers written as floats, are not made into noise."""
    path = tmp_path / "a.wav"
    path.write_bytes(_chunks(_form(3, 1, RATE, 32), (b"data", np.array([0, value], "<f4").tobytes())))
    with pytest.raises(ValueError, match=r"go up to (nan|inf|32767), wanted -1 to 1"):
        read_wave(path)


# --- other rates


@pytest.mark.parametrize("rate", [8_000, 11_127, 22_050, 44_100, 48_000])
def test_a_resampled_sine_keeps_its_frequency(rate: int) -> None:
    """A sine at any rate becomes the same sine at 16 kHz, but for its ends."""
    made = resampled(_sine(1000, rate).astype(np.float32), rate, RATE)
    assert made.shape == (RATE,)
    assert np.abs(made - _sine(1000))[200:-200].max() < 0.01
    assert _hertz(made) == pytest.approx(1000, abs=1)


def test_what_the_new_rate_cannot_hold_is_filtered_out() -> None:
    """A sine above half the new rate is silenced, not mirrored into what is heard."""
    made = resampled(_sine(7000, 48_000).astype(np.float32), 48_000, 8_000)
    assert np.abs(made[100:-100]).max() < 0.01


def test_resampling_is_the_sum_that_defines_it() -> None:
    """Each sample is the sum over all samples of a sinc under a Hann window of six crossings, cut off at 0.99."""
    x = np.random.default_rng(0).uniform(-0.5, 0.5, 500).astype(np.float32)
    for rate, wanted in ((44_100, RATE), (8_000, 11_127)):
        low = 0.99 * min(rate, wanted)
        made = resampled(x, rate, wanted)
        assert len(made) == math.ceil(500 * wanted / rate)
        away = low * (np.arange(len(made))[:, None] / wanted - np.arange(500) / rate)
        weights = np.where(np.abs(away) < 6, np.sinc(away) * np.cos(np.pi * away / 12) ** 2, 0) * low / rate
        assert np.abs(made - weights @ x).max() < 1e-6


# --- folders


def test_folder_of_recordings(tmp_path: Path) -> None:
    """Classes are folder names in order, an example is one second at 16 kHz, and the preprocessing says so."""
    data = open_data(str(_folder(tmp_path)))
    assert data.task == "audio-classification"
    assert data.classes == ("high", "low")
    assert data.input_shape == (RATE,)
    assert data.input_names == ("waveform",)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    waves, labels = data.batch(data.train, torch.tensor([5, 1]))
    assert (waves.dtype, labels.tolist()) == (torch.float32, [1, 0])
    assert [_hertz(row) for row in waves.numpy()] == [300, 900]
    assert waves.abs().amax(1).tolist() == pytest.approx([0.4, 0.3], abs=1e-3)
    assert data.preprocessing.to_dict()["sample_rate"] == RATE
    names = ("train_recordings", "test_recordings", "cut_recordings", "filled_recordings", "resampled_recordings")
    assert [data.facts[name] for name in names] == [6, 6, 0, 0, 0]
    assert data.facts["training_set"] == f"6 recordings from {tmp_path.resolve() / 'train'}"


def test_recordings_are_cut_and_filled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Longer ones lose their end, with a warning; shorter ones end in zeros; the facts count both."""
    root = _folder(tmp_path)
    long, short = _sine(700, seconds=2.5), _sine(700, seconds=0.25)
    _write(root / "train" / "high" / "0.wav", long)
    _write(root / "train" / "high" / "1.wav", short)
    with caplog.at_level(logging.WARNING):
        data = open_data(str(root), seconds=0.5)
    cut, filled = _waves(data, 0, 1)
    assert np.abs(cut - long[:8000]).max() < 1e-4
    assert np.abs(filled[:4000] - short).max() < 1e-4
    assert not filled[4000:].any()
    assert (data.facts["cut_recordings"], data.facts["filled_recordings"]) == (11, 1)
    assert "11 of 12 recordings are longer than 0.5 s (up to 2.5 s) and cut at the end; set data.seconds" in caplog.text


def test_rates_are_made_one(tmp_path: Path) -> None:
    """Files of other rates are resampled whole or cut, with the same result, and to a rate that is asked for."""
    root = _folder(tmp_path)
    whole = _sine(900, 44_100, seconds=3)
    _write(root / "train" / "high" / "0.wav", whole, 44_100)
    _write(root / "train" / "high" / "1.wav", _sine(900, 8_000), 8_000)
    data = open_data(str(root))
    rows = _waves(data, 0, 1)
    assert [_hertz(row) for row in rows] == [900, 900]
    exact = (np.round(whole * 2**15) / 2**15).astype(np.float32)
    assert np.array_equal(rows[0], resampled(exact, 44_100, RATE)[:RATE])
    assert data.facts["resampled_recordings"] == 2
    slow = open_data(str(root), sample_rate=8_000, seconds=2)
    assert slow.input_shape == (16_000,)
    assert _hertz(_waves(slow, 0)[0], 8_000) == 900
    assert slow.fingerprint != data.fingerprint


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    """Of one level, all recordings of a speaker go to one side; given sides that share one are refused."""
    for name in ("high", "low"):
        for speaker in range(20):
            for i in range(2):
                _write(tmp_path / "flat" / name / f"s{speaker}_{i}.wav", _sine(500, seconds=0.01))
    data = open_data(str(tmp_path / "flat"), group=r"^(s\d+)_")
    assert len(data.train) + len(data.test) == 80
    assert len(data.train) % 4 == len(data.test) % 4 == 0
    assert "by hash of the group" in data.facts["training_set"]
    sides = _folder(tmp_path / "sides")
    with pytest.raises(BadInput, match="3 groups are in the training and in the test set: 0, 1, 2"):
        open_data(str(sides), group=r"(\d)")
    with pytest.raises(BadInput, match=r"does not match '0\.wav'"):
        open_data(str(sides), group="speaker")
    with pytest.raises(BadInput, match="no regular expression"):
        open_data(str(sides), group="(")


def test_few_faulty_recordings_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file in twelve that is cut off is skipped, logged and listed; three are too many."""
    root = _folder(tmp_path)
    for i, path in enumerate(sorted((root / "train" / "low").iterdir())):
        path.write_bytes(path.read_bytes()[:-10])
        if i == 0:
            with caplog.at_level(logging.WARNING):
                data = open_data(str(root))
    assert data.facts["skipped"] == ["train/low/0.wav: it is cut off: 31,990 of 32,000 bytes of samples are there"]
    assert len(data.train) == 5
    assert "1 of 12 recordings cannot be read: train/low/0.wav" in caplog.text
    with pytest.raises(BadInput, match="3 of 12 recordings cannot be read"):
        open_data(str(root))


def test_a_fault_behind_the_header_is_named(tmp_path: Path) -> None:
    """What shows only when samples are read, or has changed since, fails then, by name."""
    root = _folder(tmp_path)
    data = open_data(str(root))
    (root / "train" / "high" / "1.wav").unlink()
    with pytest.raises(BadInput, match=r"high/1\.wav: the recording cannot be decoded .*; repair or remove it"):
        _waves(data, 1)


def test_bad_folders_are_explained(tmp_path: Path) -> None:
    """Folders of two kinds, single classes, classes on one side and options of other data each have their message."""

    def fault(name: str, **options: float) -> str:
        with pytest.raises(BadInput) as caught:
            open_data(str(tmp_path / name), **options)  # type: ignore[arg-type]  # options are of several types
        return str(caught.value)

    _write(tmp_path / "single" / "a" / "0.wav", _sine(300))
    _write(tmp_path / "single" / "a" / "1.wav", _sine(300))
    assert "1 class (a)" in fault("single")
    root = _folder(tmp_path / "both")
    Image.new("L", (4, 4)).save(root / "train" / "low" / "0.png")
    assert "has images (.png) and recordings (.wav); give a folder of one kind" in fault("both")
    _folder(tmp_path / "less")
    _write(tmp_path / "less" / "train" / "odd" / "0.wav", _sine(300))
    assert "the test set has no recording of class odd" in fault("less")
    _write(tmp_path / "flat" / "0.wav", _sine(300))
    assert "no class folders; wanted one folder for each class, with recordings (.flac .mp3 .ogg .wav)" in fault("flat")
    assert "takes no `channels`" in fault("less", channels=1)
    assert "data.sample_rate 16000 and data.seconds 0: must be positive" in fault("less", seconds=0)
    (tmp_path / "less" / "train" / "odd" / "0.wav").unlink()
    (tmp_path / "empty").mkdir()
    assert "no class folders" in fault("empty")


# --- formats of soundfile


def test_other_formats_need_soundfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message says what to install, and WAV files are read all the same."""
    monkeypatch.setitem(sys.modules, "soundfile", None)
    root = _folder(tmp_path)
    assert len(open_data(str(root)).train) == 6
    (root / "train" / "low" / "3.flac").write_bytes(b"fLaC")
    with pytest.raises(MissingRuntime, match=r"\.flac files need the package soundfile.*pip install soundfile"):
        open_data(str(root))


@pytest.mark.parametrize(("ending", "off"), [(".flac", 1e-4), (".ogg", 0.05), (".mp3", 0.05)])
def test_other_formats_are_read(tmp_path: Path, ending: str, off: float) -> None:
    """With soundfile they become the samples that were written, and damaged ones are named."""
    pytest.importorskip("soundfile")
    library = importlib.import_module("soundfile")
    path = tmp_path / f"a{ending}"
    wanted = _sine(440)
    library.write(path, wanted, RATE)
    samples, rate = read_wave(path)
    assert (read_header(path).rate, rate) == (RATE, RATE)
    assert np.abs(samples[2000:14000] - wanted[2000:14000]).max() < off
    path.write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"."):
        read_header(path)
