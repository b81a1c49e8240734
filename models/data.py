"""Data as the stages see it: two splits of bytes with labels, read on demand, and one way to make inputs of them."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import BadInput

Task = Literal["image-classification", "text-classification", "audio-classification"]


@final
@dataclass(frozen=True)
class Preprocessing:
    """How bytes become a model's input: `(pixels * scale - mean) / std`, per channel.

    Attributes:
        scale: factor on the bytes; 1/255 maps them to 0 to 1.
        mean: subtracted after scaling, one number or one for each channel.
        std: divided by, as many numbers as `mean`.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse what cannot be applied."""
        if len(self.mean) != len(self.std) or not self.mean:
            raise BadInput(f"mean and std must have one number for each channel, got {self.mean} and {self.std}")
        if not all(value > 0 for value in self.std):
            raise BadInput(f"std must be positive, got {self.std}")

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map bytes `(n, c, h, w)` to float32 `(n, c, h, w)`."""
        if pixels.dtype != torch.uint8:
            raise BadInput(f"preprocessing takes bytes (torch.uint8), got {pixels.dtype}")
        x = pixels.to(torch.float32).mul_(self.scale)
        if any(self.mean):
            x.sub_(torch.tensor(self.mean).view(-1, 1, 1))
        if any(value != 1 for value in self.std):
            x.div_(torch.tensor(self.std).view(-1, 1, 1))
        return x

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report or a manifest."""
        return {"scale": self.scale, "mean": list(self.mean), "std": list(self.std)}


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images. Pixels are fetched when asked for, so a split may be larger than memory.

    Attributes:
        labels: class numbers `(n,)`, int64.
        fetch: maps indices `(k,)` to bytes `(k, c, h, w)`; see `in_memory`.
    """

    labels: Tensor
    fetch: Callable[[Tensor], Tensor] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` `(k,)` as bytes `(k, c, h, w)`."""
        return self.fetch(indices)


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Data for training and, apart from it, for scoring.

    Attributes:
        name: the source it was opened from.
        classes: class names; labels index them.
        train: for training, pruning scores and calibration.
        test: for the final scores only; nothing is chosen by it.
        preprocessing: maps bytes to a model's inputs.
        input_shape: `(c, h, w)` of one image.
        fingerprint: a hash that changes when the data or its preprocessing does; a key for caches.
        facts: plain values for the report, among them `training_set`, which says in words what was used.
        task: what is told of each example.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    fingerprint: str
    facts: Mapping[str, Any]
    task: Task = "image-classification"

    def __post_init__(self) -> None:
        """Refuse data that cannot be trained on or scored."""
        if len(self.preprocessing.mean) not in (1, self.input_shape[0]):
            raise BadInput(
                f"{self.name}: mean and std have {len(self.preprocessing.mean)} numbers, "
                f"the images {self.input_shape[0]} channels"
            )
        _check_classes(self.name, self.classes, self.train.labels, self.test.labels)

    def inputs(self, split: Split, indices: Tensor) -> tuple[Tensor, ...]:
        """Return the model's inputs of the examples at `indices` `(k,)` of a split, in its order, batch first."""
        return (self.preprocessing(split.pixels(indices)),)

    def batch(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs `(k, c, h, w)`, float32, and labels `(k,)` of the images at `indices` `(k,)` of a split."""
        return self.preprocessing(split.pixels(indices)), split.labels[indices]

    def sample(self, count: int, seed: int) -> Tensor:
        """Pick training images, of every class as equally many as there are.

        Args:
            count: how many to pick; all of them if there are fewer.
            seed: the same seed picks the same images, and a smaller count the first of them.

        Returns:
            Indices into `train`, `(min(count, len(train)),)`, int64, classes mixed.
        """
        if count < 1:
            raise BadInput(f"{self.name}: cannot sample {count} images; ask for at least 1")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train), generator=generator)
        by_class = order[torch.argsort(self.train.labels[order], stable=True)]
        counts = torch.bincount(self.train.labels, minlength=len(self.classes))
        rank = torch.cat([torch.arange(int(n)) for n in counts])
        return by_class[torch.argsort(rank, stable=True)][:count]


@dataclass(frozen=True)
class Options:
    """What the user may say about a source; None leaves it to the source."""

    root: str | Path | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def preprocessing(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Preprocessing:
        """Return the preprocessing: the user's numbers before the source's, and those before none."""
        means = tuple(self.mean if self.mean is not None else mean or ())
        stds = tuple(self.std if self.std is not None else std or ())
        return Preprocessing(mean=means or (0.0,) * (len(stds) or 1), std=stds or (1.0,) * (len(means) or 1))

    def refuse(self, name: str, *fields: str) -> None:
        """Raise BadInput if one of `fields` was given to a source that has no use for it."""
        for one in fields:
            if getattr(self, one) is not None:
                raise BadInput(f"data source {name}: takes no `{one}` (got {getattr(self, one)!r}); leave it out")


def open_data(
    source: str,
    root: str | Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Dataset:
    """Open a data source.

    Args:
        source: `fashion-mnist`, a folder of images (one folder a class), or `path/to/file.py:function`.
        root: for `fashion-mnist`, the folder of the full set, or `bundled` for the 8,000 images in the package.
        size: for folders, `(height, width)` in pixels; otherwise that of the first image.
        channels: for folders, 1 (grey) or 3 (colour); otherwise those of the first image.
        mean: subtracted from pixels in 0 to 1, one number or one for each channel.
        std: then divided by.

    Raises:
        BadInput: there is no such source, or it cannot be used; the message says what to change.
    """
    from .data_fashion import open_fashion
    from .data_folder import open_folder
    from .data_function import open_function

    options = Options(root, size, channels, mean, std)
    if source == "fashion-mnist":
        return open_fashion(options)
    if re.search(r"\.py:\w*$", source):
        return open_function(source, options)
    if Path(source).is_dir():
        return open_folder(source, options)
    near = " (did you mean fashion-mnist?)" if difflib.get_close_matches(source, ["fashion-mnist"]) else ""
    raise BadInput(
        f"data source {source!r}: neither a known name nor a folder{near}; "
        "give fashion-mnist, a folder with one folder of images for each class, or path/to/file.py:function"
    )


def in_memory(pixels: NDArray[np.uint8], labels: NDArray[Any]) -> Split:
    """Make a split of arrays.

    Args:
        pixels: `(n, c, h, w)`; kept as given and never copied whole.
        labels: `(n,)` integers.
    """
    return Split(torch.tensor(labels.astype(np.int64)), lambda indices: torch.from_numpy(pixels[indices.numpy()]))


def fingerprint(description: str, *arrays: NDArray[Any]) -> str:
    """Return the SHA-256 of a description and of arrays with their shapes."""
    digest = hashlib.sha256(description.encode())
    for array in arrays:
        digest.update(f"|{array.dtype.str}{array.shape}|".encode())
        for part in array:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _check_classes(name: str, classes: tuple[str, ...], train: Tensor, test: Tensor) -> None:
    if len(classes) < 2:
        raise BadInput(
            f"{name}: {len(classes)} class ({', '.join(classes) or 'none'}); classification needs at least 2"
        )
    for what, labels in (("training", train), ("test", test)):
        if len(labels) == 0:
            raise BadInput(f"{name}: the {what} set is empty")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(classes):
            raise BadInput(f"{name}: {what} labels run from {low} to {high}, but there are {len(classes)} classes")
        counts = torch.bincount(labels, minlength=len(classes)).tolist()
        missing = [one for one, count in zip(classes, counts, strict=True) if count == 0]
        if missing:
            raise BadInput(f"{name}: the {what} set has no image of class {', '.join(missing[:10])}; add some, or remove the class")  # fmt: skip # noqa: E501
