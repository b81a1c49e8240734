"""Data from a folder of images, one folder for each class."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .data import Dataset, Options, Split, fingerprint
from .errors import BadInput

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
TEST_NAMES = ("test", "val", "valid", "validation")
TEST_SHARE = 0.2
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layout:
    """File names relative to the folder, by class and in order."""

    train: Mapping[str, Sequence[str]]
    test: Mapping[str, Sequence[str]]
    said: str


@dataclass(frozen=True)
class _Header:
    size: tuple[int, int]
    channels: int


def open_folder(source: str, options: Options) -> Dataset:
    """Open `train/CLASS/*` with `test/CLASS/*` (or `val`), or only `CLASS/*`, of which a fifth becomes the test set.

    Files are decoded when asked for and resized (bilinear, aspect not kept) to `options.size`, by default the first
    image's. Without a test folder a file's relative name decides its side, so that adding files moves no other.
    Headers are read at once: up to 1 % of unreadable files (up to ten in small folders, if they are no more than a
    tenth) are left out and named in the facts.

    Raises:
        BadInput: no images, fewer than two classes, a class missing on one side, or too many unreadable files.
    """
    options.refuse(source, "root")
    root = Path(source).resolve()
    layout = _layout(root)
    names = [name for side in (layout.train, layout.test) for group in side.values() for name in group]
    headers, faults = _headers(root, names)
    _judge(root, faults, len(names))
    first = headers[next(name for name in names if name in headers)]
    size, channels = options.size or first.size, options.channels or first.channels
    if channels not in (1, 3) or min(size) < 1:
        raise BadInput(f"{source}: size {size} and channels {channels}; wanted (height, width) and 1 or 3")
    classes = tuple(sorted(layout.train))
    train, test = (_split(root, side, classes, headers, (channels, *size)) for side in (layout.train, layout.test))
    preprocessing = options.preprocessing()
    facts = {
        "training_set": f"{len(train):,} images from {layout.said}",
        "train_images": len(train),
        "test_images": len(test),
        "skipped": [f"{name}: {fault}" for name, fault in faults.items()],
    }
    described = repr((classes, preprocessing, channels, size, [_stamp(root, name) for name in names]))
    return Dataset(source, classes, train, test, preprocessing, (channels, *size), fingerprint(described), MappingProxyType(facts))  # fmt: skip # noqa: E501


def _layout(root: Path) -> _Layout:
    if not (root / "train").is_dir():
        return _one_level(root)
    part = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if part is None:
        raise BadInput(
            f"{root}: has train/ but no test/ or val/; add one, or put the classes side by side without train/"
        )
    train, test = _by_class(root, root / "train"), _by_class(root, part)
    _need_images(root / "train", train)
    extra = sorted(set(test) - set(train))
    if extra:
        raise BadInput(f"{part}: classes that train/ does not have: {', '.join(extra[:10])}")
    return _Layout(train, test, str(root / "train"))


def _one_level(root: Path) -> _Layout:
    stray = next((name for name in TEST_NAMES if (root / name).is_dir() and _by_class(root, root / name)), None)
    if stray:
        raise BadInput(f"{root}: has {stray}/ but no train/; add train/CLASS/*, or put the classes side by side")
    groups = _by_class(root, root)
    _need_images(root, groups)
    sides = {name: _divide(files) for name, files in groups.items()}
    train, test = ({name: side[i] for name, side in sides.items()} for i in (0, 1))
    return _Layout(train, test, f"{root} (a fifth kept for testing, by hash of the file's name)")


def _need_images(folder: Path, groups: Mapping[str, Sequence[str]]) -> None:
    if not any(groups.values()):
        what = "class folders without images" if groups else "no class folders"
        raise BadInput(f"{folder}: {what}; wanted one folder for each class, with images ({' '.join(sorted(ENDINGS))})")


def _by_class(root: Path, folder: Path) -> dict[str, list[str]]:
    names = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    return {name: sorted(_images(root, folder / name)) for name in names}


def _images(root: Path, folder: Path) -> Iterable[str]:
    for place, _, files in os.walk(folder):
        for name in files:
            if Path(name).suffix.lower() in ENDINGS and not name.startswith("."):
                yield (Path(place) / name).relative_to(root).as_posix()


def _divide(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a class by the hashes of its names, at least one image on each side where there are two."""
    mark = {name: int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names}
    ranked = sorted(names, key=lambda name: mark[name])
    count = sum(value < TEST_SHARE for value in mark.values())
    if len(names) >= 2:
        count = min(max(count, 1), len(names) - 1)
    test = set(ranked[:count])
    return [name for name in names if name not in test], [name for name in names if name in test]


def _headers(root: Path, names: Iterable[str]) -> tuple[dict[str, _Header], dict[str, str]]:
    good, faults = {}, {}
    for name in names:
        try:
            with Image.open(root / name) as image:
                _refuse_deep(image)
                good[name] = _Header((image.height, image.width), 1 if image.mode in _GREY else 3)
        except _UNREADABLE as fault:
            faults[name] = str(fault).replace(str(root / name), name)
    return good, faults


def _judge(root: Path, faults: Mapping[str, str], total: int) -> None:
    if not faults:
        return
    some = "; ".join(f"{name} ({fault})" for name, fault in list(faults.items())[:10])
    said = f"{root}: {len(faults)} of {total} images cannot be read: {some}"
    if len(faults) > max(total // 100, min(10, total // 10)):
        raise BadInput(f"{said}; repair or remove them")
    _log.warning("%s; they are left out", said)


def _split(
    root: Path, side: Mapping[str, Sequence[str]], classes: Sequence[str], headers: Mapping[str, _Header],
    shape: tuple[int, int, int],
) -> Split:  # fmt: skip
    pairs = [(name, i) for i, one in enumerate(classes) for name in side.get(one, ()) if name in headers]
    names = [name for name, _ in pairs]

    def fetch(indices: Tensor) -> Tensor:
        pixels = np.empty((len(indices), *shape), np.uint8)
        for row, index in zip(pixels, indices.tolist(), strict=True):
            row[...] = _decode(root / names[index], shape)
        return torch.from_numpy(pixels)

    return Split(torch.tensor([label for _, label in pairs], dtype=torch.int64), fetch)


def _decode(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            _refuse_deep(image)
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            plain = opaque.convert("L" if channels == 1 else "RGB")
            if plain.size != (width, height):
                plain = plain.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(plain).reshape(height, width, channels).transpose(2, 0, 1)
    except _UNREADABLE as fault:
        raise BadInput(f"{path}: the image cannot be decoded ({fault}); repair or remove it") from fault


def _refuse_deep(image: Image.Image) -> None:
    if image.mode.startswith(_DEEP):
        raise ValueError(f"its pixels are {image.mode}, wanted 8 bits a channel")


def _stamp(root: Path, name: str) -> tuple[str, int, int]:
    stat = (root / name).stat()
    return name, stat.st_size, stat.st_mtime_ns
