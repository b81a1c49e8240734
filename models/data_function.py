"""Data from a function of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .data import Dataset, fingerprint, in_memory
from .data_options import IMAGE_OPTIONS, Options
from .errors import BadInput
from .user_code import call_user

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
EXTRAS = ("classes", "mean", "std")
CHANNELS = (1, 2, 3, 4)


def open_function(source: str, options: Options) -> Dataset:
    """Call `path/to/file.py:function` and take what it returns.

    The function returns a mapping, or a tuple in this order: `train_images`, `train_labels`, `test_images`,
    `test_labels`, and, if it likes, `classes` (names), `mean` and `std`. Images are bytes (uint8), NumPy or torch,
    `(n, h, w)`, `(n, h, w, c)` or `(n, c, h, w)`; labels are integers `(n,)`.

    Raises:
        BadInput: the function fails (its line is named) or returns something else.
    """
    options.allow(source, "size", *IMAGE_OPTIONS)
    given = _named(source, call_user(source))
    train, test = (_pixels(source, name, given[name]) for name in ("train_images", "test_images"))
    train_labels, test_labels = (_labels(source, name, given[name]) for name in ("train_labels", "test_labels"))
    for what, images, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if len(images) != len(labels):
            raise BadInput(f"{source}: {len(images)} {what}_images, but {len(labels)} {what}_labels")
    if train.shape[1:] != test.shape[1:]:
        raise BadInput(f"{source}: train_images are {train.shape[1:]} (channels, height, width), test_images {test.shape[1:]}")  # fmt: skip # noqa: E501
    named = given.get("classes")
    classes = tuple(map(str, named if named is not None else range(int(train_labels.max(initial=-1)) + 1)))
    preprocessing = options.preprocessing(_numbers(given.get("mean")), _numbers(given.get("std")))
    facts = {
        "training_set": f"{len(train):,} images from {source}",
        "train_images": len(train),
        "test_images": len(test),
    }
    channels, height, width = train.shape[1:]
    size = options.size or (height, width)
    described = repr((classes, preprocessing) if size == (height, width) else (classes, preprocessing, size))
    return Dataset(
        source, classes, in_memory(train, train_labels, size), in_memory(test, test_labels, size), preprocessing,
        (channels, *size), fingerprint(described, train, train_labels, test, test_labels),
        MappingProxyType(facts),
    )  # fmt: skip


def _named(source: str, value: Any) -> Mapping[str, Any]:
    names = (*ARRAYS, *EXTRAS)
    if isinstance(value, tuple | list) and len(ARRAYS) <= len(value) <= len(names):
        value = dict(zip(names, value, strict=False))
    if not isinstance(value, Mapping):
        size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise BadInput(f"{source}: returned a {type(value).__name__}{size}, wanted a mapping or a tuple of {', '.join(ARRAYS)}")  # fmt: skip # noqa: E501
    for key in value:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.3)
            raise BadInput(
                f"{source}: returned an unknown key {key!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
    missing = [name for name in ARRAYS if value.get(name) is None]
    if missing:
        raise BadInput(f"{source}: returned no {', '.join(missing)}; wanted {', '.join(ARRAYS)}")
    return value


def _array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _numbers(value: Any) -> tuple[float, ...] | None:
    return None if value is None else tuple(float(one) for one in _array(value).reshape(-1))


def _pixels(source: str, name: str, value: Any) -> NDArray[np.uint8]:
    """Return `(n, c, h, w)`, a view where that is possible."""
    array = _array(value)
    if array.dtype != np.uint8:
        raise BadInput(
            f"{source}: {name} are {array.dtype}, wanted bytes (uint8, 0 to 255): "
            "from 0 to 1 use (x * 255).round() as uint8; scaling is the preprocessing's work (mean, std)"
        )
    if array.ndim == 3:
        return array[:, None]
    first, last = (array.shape[1] in CHANNELS, array.shape[3] in CHANNELS) if array.ndim == 4 else (False, False)
    if first == last:
        raise BadInput(
            f"{source}: {name} have shape {array.shape}, wanted (n, h, w), (n, h, w, c) or (n, c, h, w) "
            "with 1 to 4 channels and larger images"
        )
    return array if first else array.transpose(0, 3, 1, 2)


def _labels(source: str, name: str, value: Any) -> NDArray[Any]:
    array = _array(value)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise BadInput(f"{source}: {name} are {array.dtype} of shape {array.shape}, wanted integers of shape (n,)")
    return array
