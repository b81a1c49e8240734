"""Data as the stages see it: two splits with labels, read on demand, and one way to make a model's inputs of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data_options import Options
from .errors import BadInput
from .preprocessing import Prepares, Preprocessing

LENGTH = "length"
"""Stands for a size that varies from batch to batch."""

Task = Literal["image-classification", "text-classification", "audio-classification"]
NOUNS: dict[Task, str] = {
    "image-classification": "image",
    "text-classification": "sentence",
    "audio-classification": "recording",
}
"""What one example is called."""


@final
@dataclass(frozen=True, eq=False)
class Split:
    """Labelled examples. They are fetched when asked for, so a split may be larger than memory.

    Attributes:
        labels: class numbers `(n,)`, int64.
        fetch: maps indices `(k,)` to what the preprocessing takes: bytes of images `(k, c, h, w)` (see `in_memory`),
            tokens `(k, length)`, or samples of recordings `(k, samples)`.
        lengths: of examples that are not all as long, `(n,)`.
    """

    labels: Tensor
    fetch: Callable[[Tensor], Tensor] = field(repr=False)
    lengths: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def pixels(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` `(k,)` as bytes `(k, c, h, w)`."""
        return self.fetch(indices)

    def usual(self, count: int) -> Tensor:
        """Return the indices `(count,)` of examples as they are usually: the first, or those of about median length.

        Where there are fewer, they come again.
        """
        places = torch.arange(len(self))
        if self.lengths is not None:
            away = (self.lengths - self.lengths.median()).abs()
            places = torch.argsort(away, stable=True)
        return places[torch.arange(count) % len(self)]


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Data for training and, apart from it, for scoring.

    Attributes:
        name: the source it was opened from.
        classes: class names; labels index them.
        train: for training, pruning scores and calibration.
        test: for the final scores only; nothing is chosen by it.
        preprocessing: maps what a split fetches to a model's inputs.
        input_shape: of each input of one example, `(c, h, w)` of an image; empty where the length varies.
        fingerprint: a hash that changes when the data or its preprocessing does; a key for caches.
        facts: plain values for the report, among them `training_set`, which says in words what was used.
        task: what is told of each example.
        files: that the deployed model needs too, by the name that they have beside it.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Prepares
    input_shape: tuple[int, ...]
    fingerprint: str
    facts: Mapping[str, Any]
    task: Task = "image-classification"
    files: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse data that cannot be trained on or scored."""
        how = self.preprocessing
        if isinstance(how, Preprocessing) and len(how.mean) not in (1, self.input_shape[0]):
            raise BadInput(
                f"{self.name}: mean and std have {len(how.mean)} numbers, the images {self.input_shape[0]} channels"
            )
        _check_classes(self)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs in order; those of one input are matched with a model's by place, others by name."""
        return self.preprocessing.input_names

    @property
    def input_shapes(self) -> tuple[tuple[int | str, ...], ...]:
        """The shape of each input, without the batch; a name where the size varies."""
        return (self.input_shape or (LENGTH,),) * len(self.input_names)

    def inputs(self, split: Split, indices: Tensor) -> tuple[Tensor, ...]:
        """Return the model's inputs of the examples at `indices` `(k,)` of a split, in its order, batch first."""
        return self.preprocessing.inputs(split.fetch(indices))

    def batch(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the one input `(k, ...)` and labels `(k,)` of the examples at `indices` `(k,)` of a split.

        Raises:
            BadInput: the data has several inputs; `inputs` gives them.
        """
        if len(self.input_names) != 1:
            raise BadInput(f"{self.name}: has the inputs {', '.join(self.input_names)}; `batch` gives one, use `inputs`")  # fmt: skip # noqa: E501
        return self.inputs(split, indices)[0], split.labels[indices]

    def sample(self, count: int, seed: int) -> Tensor:
        """Pick training examples, of every class as equally many as there are.

        Args:
            count: how many to pick; all of them if there are fewer.
            seed: the same seed picks the same ones, and a smaller count the first of them.

        Returns:
            Indices into `train`, `(min(count, len(train)),)`, int64, classes mixed.
        """
        if count < 1:
            raise BadInput(f"{self.name}: cannot sample {count} examples; ask for at least 1")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train), generator=generator)
        by_class = order[torch.argsort(self.train.labels[order], stable=True)]
        counts = torch.bincount(self.train.labels, minlength=len(self.classes))
        rank = torch.cat([torch.arange(int(n)) for n in counts])
        return by_class[torch.argsort(rank, stable=True)][:count]


def open_data(  # noqa: PLR0913 (each is given by its name)
    source: str,
    root: str | Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    text: str | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    tokenizer: str | Path | None = None,
    max_length: int | None = None,
    inputs: tuple[str, ...] | None = None,
    fixed_length: bool | None = None,
    sample_rate: int | None = None,
    seconds: float | None = None,
) -> Dataset:
    """Open a data source.

    Args:
        source: `fashion-mnist`, `cifar10`, `cifar100`, a folder of images or of recordings (one folder a class), a
            table of sentences (.csv, .tsv, .parquet), `path/to/file.py:function`, or `hf:NAME_OR_FOLDER`.
        root: where `cifar10` and `cifar100` lie; for `fashion-mnist`, the folder of the full set, or `bundled` for the
            8,000 images in the package.
        size: `(height, width)` in pixels that images are resized to; by default, that of the first.
        channels: for folders, 1 (grey) or 3 (colour); otherwise those of the first image.
        mean: subtracted from pixels in 0 to 1, one number or one for each channel.
        std: then divided by.
        text: a table's column of sentences; `text` by default.
        label: its column of classes; `label` by default.
        split: its column that says `train` or `test`; `split` by default, where it is there.
        group: its column of what must not be on both sides, `group` by default, where it is there; of recordings, a
            regular expression on the file's name, whose first group it is.
        tokenizer: a `tokenizer.json`, or a folder with one.
        max_length: tokens beyond it are cut off; 128 by default.
        inputs: what a model of text takes, in its order; `("input_ids", "attention_mask")` by default.
        fixed_length: fill every sentence up to `max_length`; otherwise to the longest of its batch.
        sample_rate: that recordings are resampled to, in Hz; 16,000 by default.
        seconds: that they are cut or filled up to; 1 by default.

    Raises:
        BadInput: there is no such source, or it cannot be used; the message says what to change.
    """
    from .data_sources import open_source

    options = Options(
        root, size, channels, mean, std, text, label, split, group, tokenizer, max_length, inputs, fixed_length,
        sample_rate, seconds,
    )  # fmt: skip
    return open_source(source, options)


def in_memory(pixels: NDArray[np.uint8], labels: NDArray[Any], size: tuple[int, int] | None = None) -> Split:
    """Make a split of arrays.

    Args:
        pixels: `(n, c, h, w)`; kept as given and never copied whole.
        labels: `(n,)` integers.
        size: `(height, width)` that images are resized to when they are fetched (bilinear, with antialias).
    """

    def fetch(indices: Tensor) -> Tensor:
        images = torch.from_numpy(pixels[indices.numpy()])
        if size is None or tuple(images.shape[-2:]) == size:
            return images
        return torch.nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)

    return Split(torch.tensor(labels.astype(np.int64)), fetch)


def fingerprint(description: str, *arrays: NDArray[Any]) -> str:
    """Return the SHA-256 of a description and of arrays with their shapes."""
    digest = hashlib.sha256(description.encode())
    for array in arrays:
        digest.update(f"|{array.dtype.str}{array.shape}|".encode())
        for part in array:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _check_classes(data: Dataset) -> None:
    name, classes = data.name, data.classes
    if len(classes) < 2:
        raise BadInput(
            f"{name}: {len(classes)} class ({', '.join(classes) or 'none'}); classification needs at least 2"
        )
    for what, labels in (("training", data.train.labels), ("test", data.test.labels)):
        if len(labels) == 0:
            raise BadInput(f"{name}: the {what} set is empty")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(classes):
            raise BadInput(f"{name}: {what} labels run from {low} to {high}, but there are {len(classes)} classes")
        counts = torch.bincount(labels, minlength=len(classes)).tolist()
        missing = [one for one, count in zip(classes, counts, strict=True) if count == 0]
        if missing:
            raise BadInput(f"{name}: the {what} set has no {NOUNS[data.task]} of class {', '.join(missing[:10])}; add some, or remove the class")  # fmt: skip # noqa: E501


__all__ = ["NOUNS", "Dataset", "Options", "Preprocessing", "Split", "Task", "fingerprint", "in_memory", "open_data"]
