"""Data from a folder of images, one folder for each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .class_folders import Kind, judge, layout, stamp
from .data import Dataset, Split, fingerprint
from .data_options import IMAGE_OPTIONS, Options
from .errors import BadInput

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_IMAGES = Kind("image-classification", ENDINGS)


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
    options.allow(source, "size", "channels", *IMAGE_OPTIONS)
    root = Path(source).resolve()
    found = layout(root, _IMAGES)
    names = found.names
    headers, faults = _headers(root, names)
    judge(str(root), faults, len(names), "image")
    first = headers[next(name for name in names if name in headers)]
    size, channels = options.size or first.size, options.channels or first.channels
    if channels not in (1, 3) or min(size) < 1:
        raise BadInput(f"{source}: size {size} and channels {channels}; wanted (height, width) and 1 or 3")
    classes = tuple(sorted(found.train))
    train, test = (_split(root, side, classes, headers, (channels, *size)) for side in (found.train, found.test))
    preprocessing = options.preprocessing()
    facts = {
        "training_set": f"{len(train):,} images from {found.said}",
        "train_images": len(train),
        "test_images": len(test),
        "skipped": [f"{name}: {fault}" for name, fault in faults.items()],
    }
    described = repr((classes, preprocessing, channels, size, [stamp(root, name) for name in names]))
    return Dataset(source, classes, train, test, preprocessing, (channels, *size), fingerprint(described), MappingProxyType(facts))  # fmt: skip # noqa: E501


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
