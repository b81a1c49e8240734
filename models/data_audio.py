"""Data from a folder of recordings, one folder for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .class_folders import Kind, group_by, judge, layout, stamp
from .data import Dataset, Split, fingerprint
from .data_options import AUDIO_OPTIONS, Options
from .errors import BadInput
from .preprocessing import AudioPreprocessing
from .resample import resampled
from .wave_files import AUDIO_ENDINGS, AudioHeader, read_header, read_samples


def open_recordings(source: str, options: Options) -> Dataset:
    """Open `train/CLASS/*` with `test/CLASS/*` (or `val`), or only `CLASS/*`, of which a fifth becomes the test set.

    With `options.group`, a regular expression on file names, a group (a speaker) is on one side alone. Files are
    decoded when asked for: the mean of the channels, resampled, cut at the end or filled up with zeros. Headers are
    read at once: faulty files are left out and named in the facts, up to 1 %.

    Raises:
        BadInput: no recordings, fewer than two classes, a class missing on one side, a group on both, or too many
            faulty files.
    """
    options.allow(source, *AUDIO_OPTIONS)
    given = {name: value for name in ("sample_rate", "seconds") if (value := getattr(options, name)) is not None}
    how = AudioPreprocessing(**given)
    root = Path(source).resolve()
    kind = Kind("audio-classification", AUDIO_ENDINGS, group_by(options.group) if options.group else None)
    found = layout(root, kind)
    headers, faults = _headers(root, found.names)
    judge(str(root), faults, len(found.names), kind.noun)
    classes = tuple(sorted(found.train))
    train, test = (_split(root, side, classes, headers, how) for side in (found.train, found.test))
    facts = {
        "training_set": f"{len(train):,} recordings from {found.said}",
        "skipped": [f"{name}: {fault}" for name, fault in faults.items()],
        "cut_recordings": sum(one.frames > one.rate * how.seconds for one in headers.values()),
        "sample_rates": sorted({one.rate for one in headers.values()}),
    }
    described = repr((classes, how, options.group, [stamp(root, name) for name in found.names]))
    return Dataset(
        source, classes, train, test, how, (how.samples,), fingerprint(described), MappingProxyType(facts), kind.task
    )


def _headers(root: Path, names: Sequence[str]) -> tuple[dict[str, AudioHeader], dict[str, str]]:
    good, faults = {}, {}
    for name in names:
        try:
            good[name] = read_header(root / name)
        except BadInput:
            raise
        except (OSError, ValueError, RuntimeError) as fault:  # soundfile's own are RuntimeErrors
            faults[name] = str(fault)
    return good, faults


def _split(
    root: Path, side: Mapping[str, Sequence[str]], classes: Sequence[str], headers: Mapping[str, AudioHeader],
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
    try:
        # A little more than is kept, so that the end of what is resampled does not fade into nothing.
        samples = read_samples(path, ceil(rate * (how.seconds + 0.1)))
    except BadInput:
        raise
    except (OSError, ValueError, RuntimeError) as fault:
        raise BadInput(f"{path}: the recording cannot be decoded ({fault}); repair or remove it") from fault
    return resampled(samples, rate, how.sample_rate)[: how.samples]


__all__ = ["open_recordings"]
