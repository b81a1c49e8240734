"""Recordings: uncompressed WAV read by the standard library, FLAC, Ogg and MP3 by the package soundfile."""

from __future__ import annotations

import importlib
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadInput

WAV = ".wav"
Samples = NDArray[np.float32]
PACKED_ENDINGS = frozenset({".flac", ".ogg", ".mp3"})
AUDIO_ENDINGS = frozenset({WAV, *PACKED_ENDINGS})


@dataclass(frozen=True)
class AudioHeader:
    """What a file says of itself: samples of each channel in a second, and how many there are."""

    rate: int
    frames: int


def read_header(path: Path) -> AudioHeader:
    """Read a recording's header alone.

    Raises:
        OSError, ValueError: it is no recording, or has no samples, or less than its header says.
        BadInput: its reader is not installed.
    """
    if path.suffix.lower() != WAV:
        found = _soundfile(path).info(str(path))
        header = AudioHeader(int(found.samplerate), int(found.frames))
    else:
        with _opened(path) as held:
            header = AudioHeader(held.getframerate(), held.getnframes())
            whole = header.frames * held.getnchannels() * held.getsampwidth()
        if path.stat().st_size < whole:
            raise ValueError(f"truncated: its header says {whole} bytes of samples, the file has {path.stat().st_size}")
    if header.frames < 1 or header.rate < 1:
        raise ValueError(f"has {header.frames} samples at {header.rate} Hz")
    return header


def read_samples(path: Path, frames: int | None = None) -> Samples:
    """Read the mean of a recording's channels `(samples,)`, in -1 to 1.

    Args:
        path: the file.
        frames: the most samples that are read; None: all.

    Raises:
        OSError, ValueError: the file cannot be decoded.
        BadInput: its reader is not installed.
    """
    if path.suffix.lower() != WAV:
        found, _ = _soundfile(path).read(str(path), frames=-1 if frames is None else frames, dtype="float32", always_2d=True)  # fmt: skip # noqa: E501
        mean: Samples = found.mean(1)
        return mean
    with _opened(path) as held:
        channels, width = held.getnchannels(), held.getsampwidth()
        raw = held.readframes(held.getnframes() if frames is None else min(frames, held.getnframes()))
    mixed: Samples = _decoded(raw, width).reshape(-1, channels).mean(1)
    return mixed


def _opened(path: Path) -> wave.Wave_read:
    try:
        held = wave.open(str(path), "rb")  # noqa: SIM115 (the caller closes it)
    except (wave.Error, EOFError) as fault:
        raise ValueError(f"{fault or 'ends too soon'}; wanted a WAV file of whole numbers (PCM)") from fault
    if held.getsampwidth() not in (1, 2, 3, 4):
        held.close()
        raise ValueError(f"has samples of {8 * held.getsampwidth()} bits, wanted 8, 16, 24 or 32")
    return held


def _decoded(raw: bytes, width: int) -> Samples:
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if width == 3:
        # The three bytes become the upper ones of four.
        padded = np.zeros((len(raw) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        raw, width = padded.tobytes(), 4
    return np.frombuffer(raw, f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))


def _soundfile(path: Path) -> Any:
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as fault:
        raise BadInput(f"{path}: {path.suffix} needs the package soundfile, which is not installed: pip install soundfile, or convert the files to WAV") from fault  # fmt: skip # noqa: E501


__all__ = ["AUDIO_ENDINGS", "AudioHeader", "read_header", "read_samples"]
