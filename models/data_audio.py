"""Data from a folder of recordings, one folder for each class."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .class_folders import Kind, group_by, judge, layout, stamp
from .data import Dataset, Split, fingerprint
from .data_options import AUDIO_OPTIONS, Options
from .errors import BadInput
from .preprocessing import AudioPreprocessing
from .resample import reach, resampled
from .wave_files import AUDIO_ENDINGS, WaveHeader, need_library, read_header, read_wave

_UNREADABLE = (OSError, ValueError)
_log = logging.getLogger(__name__)


def open_recordings(source: str, options: Options) -> Dataset:
    """Open `train/CLASS/*` with `test/CLASS/*` (or `val`), or only `CLASS/*`, of which a fifth becomes the test set.

    Files are decoded when asked for: the mean of their channels, resampled to `options.sample_rate` (16,000 Hz) and
    cut at the end, or filled up with zeros, to `options.seconds` (1). With `options.group`, a regular expression that
    finds in each file's name what must not be on both sides (the speaker), whole groups go to one side. Headers are
    read at once: up to 1 % of unreadable files (up to ten in small folders, if they are no more than a tenth) are
    left out and named in the facts.

    Raises:
        BadInput: no recordings, fewer than two classes, a class missing on one side, a group on both, too many
            unreadable files, or a format that needs a package which is not installed.
    """
    options.allow(source, *AUDIO_OPTIONS)
    how = _preprocessing(options)
    group_of = None if options.group is None else group_by(options.group)
    root = Path(source).resolve()
    found = layout(root, Kind("audio-classification", AUDIO_ENDINGS, group_of))
    names = found.names
    need_library(source, names)
    headers, faults = _headers(root, names)
    judge(str(root), faults, len(names), "recording")
    classes = tuple(sorted(found.train))
    train, test = (_split(root, side, classes, headers, how) for side in (found.train, found.test))
    facts = {
        "training_set": f"{len(train):,} recordings from {found.said}",
        "train_recordings": len(train),
        "test_recordings": len(test),
        "skipped": [f"{name}: {fault}" for name, fault in faults.items()],
    } | _changed(source, headers, how)
    described = repr((classes, how, options.group, [stamp(root, name) for name in names]))
    return Dataset(
        source, classes, train, test, how, (how.samples,), fingerprint(described), MappingProxyType(facts),
        "audio-classification",
    )  # fmt: skip


def _preprocessing(options: Options) -> AudioPreprocessing:
    asked = {"sample_rate": options.sample_rate, "seconds": options.seconds}
    return AudioPreprocessing(**{name: value for name, value in asked.items() if value is not None})  # type: ignore[arg-type]  # mypy does not tell which is the whole number


def _headers(root: Path, names: Iterable[str]) -> tuple[dict[str, WaveHeader], dict[str, str]]:
    good, faults = {}, {}
    for name in names:
        try:
            good[name] = read_header(root / name)
        except _UNREADABLE as fault:
            faults[name] = str(fault).replace(str(root / name), name)
    return good, faults


def _changed(source: str, headers: Mapping[str, WaveHeader], how: AudioPreprocessing) -> dict[str, Any]:
    """Return how many recordings are not taken as they are, and warn where much is cut off."""
    lengths = [-(-one.frames * how.sample_rate // one.rate) for one in headers.values()]
    cut = sum(length > how.samples for length in lengths)
    if cut > len(lengths) // 10:
        longest = max(one.frames / one.rate for one in headers.values())
        _log.warning("%s: %d of %d recordings are longer than %g s (up to %.3g s) and cut at the end; set data.seconds", source, cut, len(lengths), how.seconds, longest)  # fmt: skip # noqa: E501
    return {
        "cut_recordings": cut,
        "filled_recordings": sum(length < how.samples for length in lengths),
        "resampled_recordings": sum(one.rate != how.sample_rate for one in headers.values()),
    }


def _split(
    root: Path, side: Mapping[str, Sequence[str]], classes: Sequence[str], headers: Mapping[str, WaveHeader],
    how: AudioPreprocessing,
) -> Split:  # fmt: skip
    pairs = [(name, i) for i, one in enumerate(classes) for name in side.get(one, ()) if name in headers]
    names = [name for name, _ in pairs]

    def fetch(indices: Tensor) -> Tensor:
        waves = np.zeros((len(indices), how.samples), np.float32)
        for row, index in zip(waves, indices.tolist(), strict=True):
            found = _decode(root / names[index], headers[names[index]].rate, how)
            row[: len(found)] = found
        return torch.from_numpy(waves)

    return Split(torch.tensor([label for _, label in pairs], dtype=torch.int64), fetch)


def _decode(path: Path, rate: int, how: AudioPreprocessing) -> NDArray[np.float32]:
    """Return at most as many samples as are wanted; what lies behind them is not read."""
    needed = -(-how.samples * rate // how.sample_rate) + reach(rate, how.sample_rate)
    try:
        samples, rate = read_wave(path, needed)
    except _UNREADABLE as fault:
        raise BadInput(f"{path}: the recording cannot be decoded ({fault}); repair or remove it") from fault
    return resampled(samples, rate, how.sample_rate)[: how.samples]


__all__ = ["open_recordings"]
