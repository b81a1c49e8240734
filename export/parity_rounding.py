"""Values as a number format holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BITS = {"tf32": 11, "bf16": 8}
_LARGEST_HALF = 65504.0


def rounded(array: Array, precision: str) -> Array:
    """Return fp32 values as a format holds them: rounded to nearest; for fp32 moved by one unit in the last place."""
    if array.dtype.kind != "f":
        return array
    if precision in ("fp16", "mixed"):
        return np.asarray(np.clip(array, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16), dtype=array.dtype)
    if precision in _BITS:
        fraction, exponent = np.frexp(array)
        near = np.ldexp(np.round(np.ldexp(fraction, _BITS[precision])), exponent - _BITS[precision])
        return np.asarray(near, dtype=array.dtype)
    signs = np.random.default_rng(0).integers(0, 2, array.shape) * 2 - 1
    return np.asarray(array * (1 + signs * np.float32(2.0**-23)), dtype=array.dtype)
