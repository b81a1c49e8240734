"""Recordings in files: WAV read here, other formats through the optional package soundfile."""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import MissingRuntime

AUDIO_ENDINGS = frozenset({".wav", ".flac", ".ogg", ".mp3"})
"""What recordings are called; all but `.wav` need soundfile."""

FASTEST = 1_000_000
"""Hz; headers that say more are damaged."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN = 0xFFFFFFFF
"""The length of a file that was written to a pipe: all that follows."""
_LOUDEST = 8.0
"""Floats beyond 1 are cut off as players do; beyond this they are no samples in -1 to 1 at all."""


@dataclass(frozen=True)
class WaveHeader:
    """What a recording's file says of it.

    Attributes:
        rate: samples a second.
        frames: samples of each channel.
    """

    rate: int
    frames: int

    def __post_init__(self) -> None:
        """Refuse what cannot be used."""
        if not 1 <= self.rate <= FASTEST:
            raise ValueError(f"its sample rate is {self.rate} Hz, wanted 1 to {FASTEST:,}")
        if self.frames < 1:
            raise ValueError("it has no samples")


@dataclass(frozen=True)
class _Wav:
    header: WaveHeader
    channels: int
    width: int
    floats: bool
    start: int


def need_library(source: str, names: Iterable[str]) -> None:
    """Raise an error if any of these files needs soundfile and it is not installed.

    Raises:
        MissingRuntime: it is not.
    """
    others = sorted({Path(name).suffix.lower() for name in names} - {".wav"})
    if not others:
        return
    try:
        importlib.import_module("soundfile")
    except (ImportError, OSError) as fault:  # OSError: it is there, and the library that it wraps is not
        raise MissingRuntime(f"data source {source}: {' '.join(others)} files need the package soundfile, which cannot be imported ({fault}): pip install soundfile, or write .wav files") from fault  # fmt: skip # noqa: E501


def read_header(path: Path) -> WaveHeader:
    """Read a file's rate and length, without its samples.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, cut off or of a kind that is not read; the message says which.
    """
    if path.suffix.lower() != ".wav":
        return _other_header(path)
    with path.open("rb") as opened:
        return _wav(opened).header


def read_wave(path: Path, frames: int | None = None) -> tuple[NDArray[np.float32], int]:
    """Read a recording: WAV of 8, 16, 24 or 32 bits or of floats, or what soundfile reads.

    Args:
        path: of the file.
        frames: read at most so many; None: all.

    Returns:
        The mean of all channels `(frames,)` in -1 to 1, and the sample rate in Hz.

    Raises:
        OSError: it cannot be opened.
        ValueError: as `read_header`, or its floats are no samples.
    """
    samples, rate = _read_wav(path, frames) if path.suffix.lower() == ".wav" else _read_other(path, frames)
    loudest = float(np.abs(samples).max())
    if not loudest <= _LOUDEST:
        raise ValueError(f"its samples go up to {loudest:g}, wanted -1 to 1")
    mono: NDArray[np.float32] = samples.mean(axis=1, dtype=np.float32).clip(-1, 1)
    return mono, rate


def _read_wav(path: Path, frames: int | None) -> tuple[NDArray[np.float32], int]:
    with path.open("rb") as opened:
        found = _wav(opened)
        count = found.header.frames if frames is None else min(frames, found.header.frames)
        opened.seek(found.start)
        held = opened.read(count * found.channels * found.width)
    return _samples(held, found).reshape(-1, found.channels), found.header.rate


def _samples(held: bytes, found: _Wav) -> NDArray[np.float32]:
    if found.floats:
        return np.frombuffer(held, f"<f{found.width}").astype(np.float32)
    if found.width == 1:  # the only width without a sign
        return (np.frombuffer(held, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if found.width == 3:
        wide = np.zeros((len(held) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(held, np.uint8).reshape(-1, 3)
        held = wide.tobytes()
    whole = np.frombuffer(held, "<i2" if found.width == 2 else "<i4")
    return whole.astype(np.float32) / np.float32(2 ** (8 * whole.itemsize - 1))


def _wav(opened: BinaryIO) -> _Wav:
    """Read the chunks up to the samples (Multimedia Programming Interface and Data Specifications 1.0, 1991)."""
    there = os.fstat(opened.fileno()).st_size
    start = opened.read(12)
    if len(start) < 12 or start[:4] != b"RIFF" or start[8:] != b"WAVE":
        raise ValueError(f"no WAV file: begins with {start!r}" if start else "it is empty")
    form = b""
    while len(head := opened.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        place = opened.tell()
        if name == b"data":
            rest = there - place
            if size != _UNKNOWN and size > rest:
                raise ValueError(f"it is cut off: {rest:,} of {size:,} bytes of samples are there")
            return _described(form, min(size, rest), place)
        if name == b"fmt ":
            form = opened.read(min(size, 64))
        opened.seek(place + size + size % 2)
    raise ValueError("it is cut off before its samples")


def _described(form: bytes, size: int, place: int) -> _Wav:
    if len(form) < 16:
        raise ValueError("it does not say what its samples are (no fmt chunk before them)")
    kind, channels, rate, _, block, bits = struct.unpack("<HHIIHH", form[:16])
    if kind == _EXTENSIBLE and len(form) >= 26:
        kind = int.from_bytes(form[24:26], "little")
    width, over = divmod(block, channels) if channels else (0, 1)
    known = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8)}.get(kind, ())
    if over or width not in known or not 0 <= 8 * width - bits < 8:
        raise ValueError(f"its samples are of WAV format {kind} with {bits} bits and {channels} channels in {block} bytes, wanted 8 to 32 bits of PCM (1) or 32 or 64 of floats (3)")  # fmt: skip # noqa: E501
    return _Wav(WaveHeader(rate, size // block), channels, width, kind == _FLOAT, place)


def _other_header(path: Path) -> WaveHeader:
    found = _asked(path, "info")
    return WaveHeader(int(found.samplerate), int(found.frames))


def _read_other(path: Path, frames: int | None) -> tuple[NDArray[np.float32], int]:
    samples, rate = _asked(path, "read", frames=-1 if frames is None else frames, dtype="float32", always_2d=True)
    if not len(samples):
        raise ValueError("it has no samples")
    return samples, int(rate)


def _asked(path: Path, verb: str, **settings: Any) -> Any:
    """Call soundfile with an open file, so that a missing one is an OSError; its own errors are RuntimeErrors."""
    library: Any = importlib.import_module("soundfile")
    with path.open("rb") as opened:
        try:
            return getattr(library, verb)(opened, **settings)
        except RuntimeError as fault:
            raise ValueError(str(fault)) from fault


__all__ = ["AUDIO_ENDINGS", "WaveHeader", "need_library", "read_header", "read_wave"]
