"""Make the data that ships with the package: `python -m shipworthy.models.data_pack --root FOLDER`.

All 10,000 test images and 800 training images of each class. Each file is an xz stream of two arrays in NumPy's
format, the labels and the pixels column by column: neighbours below repeat more often than neighbours beside, and
no predictor that was tried (left, above, mean, LOCO-I's) does better than LZMA on the bytes themselves.
"""

from __future__ import annotations

import argparse
import io
import lzma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .data_fashion import ASSETS, FILES, SYSTEM_ROOT
from .files import replacing
from .idx import read_idx

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def pick(labels: NDArray[np.uint8], per_class: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of `per_class` images of each class, picked at random, in rising order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == one][:per_class] for one in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def write_packed(path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Write images `(n, h, w)` and labels `(n,)` so that `data_fashion.read_packed` reads them."""
    stream = io.BytesIO()
    np.save(stream, labels, allow_pickle=False)
    np.save(stream, np.ascontiguousarray(images.transpose(0, 2, 1)), allow_pickle=False)
    with replacing(path) as beside:
        beside.write_bytes(lzma.compress(stream.getvalue(), lzma.FORMAT_XZ, filters=FILTERS))


def pack(root: Path, out: Path, per_class: int = 800, seed: int = 0) -> None:
    """Write `fashion_mnist_train.npy.xz` and `fashion_mnist_test.npy.xz` to `out`; equal inputs give equal bytes."""
    images, labels, test_images, test_labels = (read_idx(root / f"{name}.gz") for name in FILES)
    chosen = pick(labels, per_class, seed)
    write_packed(out / "fashion_mnist_train.npy.xz", images[chosen], labels[chosen])
    write_packed(out / "fashion_mnist_test.npy.xz", test_images, test_labels)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=SYSTEM_ROOT, help="folder of the four .gz files")
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    pack(args.root, args.out)


if __name__ == "__main__":
    main()
