"""Read the IDX files in which MNIST and its relatives are distributed (http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped or plain IDX file of bytes.

    Returns:
        The array, in the shape its header states.

    Raises:
        ValueError: the file is truncated, corrupt, or does not hold unsigned bytes.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, OSError) as fault:
        raise ValueError(f"{path}: not a readable gzip file ({fault})") from fault
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: no IDX header for unsigned bytes")
    ranks = raw[3]
    start = 4 + 4 * ranks
    if len(raw) < start:
        raise ValueError(f"{path}: the IDX header is cut off")
    shape = struct.unpack(f">{ranks}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise ValueError(f"{path}: the header promises {math.prod(shape)} bytes, the file holds {len(raw) - start}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
