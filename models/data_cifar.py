"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read by torchvision; nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Dataset, fingerprint, in_memory
from .data_options import IMAGE_OPTIONS, Options
from .errors import BadInput

Arrays = tuple[NDArray[np.uint8], NDArray[Any]]
CIFAR = ("cifar10", "cifar100")


def open_cifar(source: str, options: Options) -> Dataset:
    """Open the 50,000 training and 10,000 test images from `options.root`, or the folder named by SHIPWORTHY_DATA.

    Raises:
        BadInput: no folder is given, or the set is not there or damaged.
    """
    options.allow(source, "root", "size", *IMAGE_OPTIONS)
    root = options.root or os.environ.get("SHIPWORTHY_DATA")
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}[source]
    get = f"python -c \"import torchvision; torchvision.datasets.{kind}('FOLDER', download=True)\""
    if not root:
        raise BadInput(f"data source {source}: set data.root to the folder that holds it; to get it: {get}")
    train, test = (_read(kind, Path(root), side, get) for side in (True, False))
    classes, (images, labels), (seen, truth) = train[0], train[1], test[1]
    preprocessing = options.preprocessing()
    facts = {
        "training_set": f"{len(labels):,} images from {root}",
        "train_images": len(labels),
        "test_images": len(truth),
    }
    size = options.size
    described = repr((classes, preprocessing, size))
    return Dataset(
        source, classes, in_memory(images, labels, size), in_memory(seen, truth, size), preprocessing,
        (3, *(size or (32, 32))), fingerprint(described, images, labels, seen, truth), MappingProxyType(facts),
    )  # fmt: skip


def _read(kind: str, root: Path, train: bool, get: str) -> tuple[tuple[str, ...], Arrays]:  # fmt: skip
    from torchvision import datasets

    try:
        held = getattr(datasets, kind)(str(root), train=train, download=False)
    except (RuntimeError, OSError) as fault:
        first = next(iter(str(fault).splitlines()), type(fault).__name__)
        raise BadInput(f"data.root {root}: no {kind} there ({first}); to get it: {get}") from fault
    return tuple(held.classes), (held.data.transpose(0, 3, 1, 2), np.asarray(held.targets))
