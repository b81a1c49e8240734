"""Grids of integers: the range of a tensor, and the scale and zero point that 8 bits give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .artifact import Target

Array = NDArray[Any]

WEIGHT_BITS: dict[Target, int] = {"cpu": 7, "tensorrt": 8}
"""Without VNNI the 8-bit products of two neighbours overflow 16 bits on a CPU: the same file would be right on one
machine and wrong on another. 7 bits never do."""

_LEAST_SCALE = float(np.finfo(np.float32).tiny)
_CANDIDATES = np.linspace(1.0, 0.5, 26)


@dataclass(frozen=True)
class Range:
    """The least and the largest value of a tensor that integers must hold."""

    low: float
    high: float


@dataclass(frozen=True)
class Grid:
    """A tensor's integers: `value = (integer - zero_point) * scale`."""

    scale: float
    zero_point: int
    signed: bool

    @property
    def kind(self) -> np.dtype[Any]:
        """The type of the integers."""
        return np.dtype(np.int8 if self.signed else np.uint8)

    def whole(self, values: Array) -> Array:
        """Return values as integers; what is outside becomes the nearest."""
        ends = np.iinfo(self.kind)
        made: Array = np.clip(np.round(values / self.scale) + self.zero_point, ends.min, ends.max).astype(self.kind)
        return made

    def rounded(self, values: Array) -> Array:
        """Return what is left of values that go through the grid."""
        made: Array = (self.whole(values).astype(np.float32) - self.zero_point) * np.float32(self.scale)
        return made


def grid_of(span: Range, target: Target) -> Grid:
    """Return the grid of an activation: unsigned and exact in zero for CPUs, symmetric and signed for TensorRT."""
    low, high = min(span.low, 0.0), max(span.high, 0.0)
    if target == "tensorrt":
        return Grid(_scale(max(-low, high) / 127), 0, True)
    scale = _scale((high - low) / 255)
    return Grid(scale, int(np.clip(round(-low / scale), 0, 255)), False)


def weight_scales(weight: Array, axis: int | None, bits: int, by_error: bool = False) -> Array:
    """Return one symmetric scale for each channel, float32 `(channels,)`.

    Args:
        weight: of any shape.
        axis: of the channels; None for one scale in all, `(1,)`.
        bits: of an integer, sign included.
        by_error: choose the scale with the least squared error, where it is not the one that holds every weight.
    """
    rows = (weight.reshape(1, -1) if axis is None else _rows(weight, axis)).astype(np.float32)
    most = 2 ** (bits - 1) - 1
    full = np.maximum(np.abs(rows).max(axis=1, initial=0.0) / most, _LEAST_SCALE).astype(np.float32)
    if not by_error:
        return np.asarray(full)
    best, least = full, np.full(len(rows), np.inf)
    for share in _CANDIDATES:
        scale = full * np.float32(share)
        whole = np.clip(np.round(rows / scale[:, None]), -most - 1, most)
        error = np.square(whole * scale[:, None] - rows).sum(axis=1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return np.asarray(best, np.float32)


def _rows(weight: Array, axis: int) -> Array:
    rows: Array = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    return rows


def whole_weights(weight: Array, scales: Array, axis: int | None, bits: int) -> NDArray[np.int8]:
    """Return weights as integers of their channels' scales, see `weight_scales`."""
    shape = [-1 if axis is not None and at == axis % weight.ndim else 1 for at in range(weight.ndim)]
    most = 2 ** (bits - 1) - 1
    return np.clip(np.round(weight / scales.reshape(shape)), -most - 1, most).astype(np.int8)


def _scale(value: float) -> float:
    return float(max(np.float32(value), np.float32(_LEAST_SCALE))) if value > 0 else 1.0
