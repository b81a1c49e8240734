"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): the full set where it is found, otherwise the part in the package."""

from __future__ import annotations

import io
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import Dataset, fingerprint, in_memory
from .data_options import IMAGE_OPTIONS, Options
from .errors import BadInput
from .idx import read_idx

ASSETS = Path(__file__).with_name("assets")
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SYSTEM_ROOT = Path("/usr/share/datasets/fashion-mnist")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def open_fashion(options: Options) -> Dataset:
    """Open Fashion-MNIST.

    The 60,000 training images are used if they are in `options.root` (where they must be, once given), in the
    torchvision root named by the environment variable SHIPWORTHY_DATA, or in /usr/share/datasets/fashion-mnist;
    otherwise the 8,000 in the package are, as they are for the root `bundled`. The test set is always the 10,000.

    Raises:
        BadInput: `options.root` does not hold the set, or files of it are damaged.
    """
    options.allow("fashion-mnist", "root", "size", *IMAGE_OPTIONS)
    folder = None if options.root == "bundled" else _find(options.root)
    if folder is None:
        train, test = (
            read_packed(ASSETS / "fashion_mnist_train.npy.xz"),
            read_packed(ASSETS / "fashion_mnist_test.npy.xz"),
        )
        said = f"bundled subset of {len(train[1]):,} images"
    else:
        train, test = _read_full(folder)
        said = f"full training set, {len(train[1]):,} images from {folder}"
    preprocessing = options.preprocessing()
    facts = {"training_set": said, "train_images": len(train[1]), "test_images": len(test[1])}
    size = options.size
    described = repr((CLASSES, preprocessing) if size is None else (CLASSES, preprocessing, size))
    return Dataset(
        "fashion-mnist", CLASSES, in_memory(*train, size), in_memory(*test, size), preprocessing,
        (1, *(size or (28, 28))), fingerprint(described, *train, *test), MappingProxyType(facts),
    )  # fmt: skip


def read_packed(path: Path) -> Arrays:
    """Read a file that `data_pack` wrote: pixels `(n, 1, h, w)` and labels `(n,)`."""
    stream = io.BytesIO(lzma.decompress(path.read_bytes()))
    labels: NDArray[np.uint8] = np.load(stream, allow_pickle=False)
    columns: NDArray[np.uint8] = np.load(stream, allow_pickle=False)
    return columns.transpose(0, 2, 1)[:, None], labels


def _find(root: str | Path | None) -> Path | None:
    if root is not None:
        found = next((one for one in _places(Path(root)) if _missing(one) == []), None)
        if found is None:
            lacking = _missing(Path(root))
            raise BadInput(
                f"data.root {root}: {'lacks ' + ', '.join(lacking) if Path(root).is_dir() else 'no such folder'} "
                "(plain or .gz; also looked in FashionMNIST/raw); leave root out to use the bundled images"
            )
        return found
    named = os.environ.get("SHIPWORTHY_DATA")
    places = [*(_places(Path(named)) if named else ()), SYSTEM_ROOT]
    return next((one for one in places if _missing(one) == []), None)


def _places(root: Path) -> Iterator[Path]:
    yield root
    yield root / "FashionMNIST" / "raw"


def _missing(folder: Path) -> list[str]:
    return [name for name in FILES if _file(folder, name) is None]


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_full(folder: Path) -> tuple[Arrays, Arrays]:
    wanted: tuple[tuple[int, ...], ...] = ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,))
    found = [_read(folder, name, shape) for name, shape in zip(FILES, wanted, strict=True)]
    return (found[0][:, None], found[1]), (found[2][:, None], found[3])


def _read(folder: Path, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    path = _file(folder, name) or folder / name
    try:
        array = read_idx(path)
    except ValueError as fault:
        raise BadInput(f"{fault}; copy the file anew, or use data.root `bundled`") from fault
    if array.shape != shape:
        raise BadInput(f"{path}: shape {array.shape}, wanted {shape} as in Fashion-MNIST; copy it anew, or use data.root `bundled`")  # fmt: skip # noqa: E501
    return array
