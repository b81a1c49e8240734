"""Equalise channels between products that follow one another: the same function with values of one size.

For `second(f(first(x)))` with `f(s x) = s f(x)`, what `first` makes can be divided by any `s > 0`, channel by channel,
and the weights with which `second` takes it multiplied (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction"). There it evens out weights that share one scale. Here every output channel has a
scale of its own, so the rows of `first` need it no more; what gains is the value between, which has one scale for all
of its channels: a channel much smaller than the largest is left with few of the 256 integers. So channels are measured
by calibration where that was done, and by the weights that make them where it was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from .quant_chains import Chain, Constants, by_input, by_output, chains, largest_by_input, rows_of
from .quant_prepare import wiring_of

Array = NDArray[Any]

_ROUNDS = 40
_SETTLED = 0.01
_LEAST_SHARE = 1e-4
"""Of the largest channel: smaller ones count as that large, so that noise is not blown up."""


def equalizable(proto: ModelProto) -> dict[str, int]:
    """Return the values whose channels `equalized` can even out, with the dimension of the channels.

    Args:
        proto: a prepared fp32 graph.
    """
    return {chain.value: 1 for chain in chains(wiring_of(proto))}


def equalized(proto: ModelProto, largest: Mapping[str, Array] | None = None) -> ModelProto:
    """Return a graph of the same function whose channels are of more equal size, and more equal in what reads them.

    A convolution or Gemm, then ReLU, LeakyReLU, pooling or nothing, then another, depthwise ones among them; PReLU and
    ReLU6 do not commute with a scale and are left alone, as is what has other readers. Both sides meet in the middle,
    again and again until nothing moves.

    Args:
        proto: a prepared fp32 graph.
        largest: the largest magnitude of each channel of values, from calibration; others follow from the weights.
    """
    made = ModelProto()
    made.CopyFrom(proto)
    constants, found = Constants(made), list(chains(wiring_of(made)))
    sizes = {name: np.asarray(values, np.float64) for name, values in (largest or {}).items()}
    for _ in range(_ROUNDS):
        moved = [_evened(constants, chain, sizes) for chain in found]
        if max(moved, default=0.0) < _SETTLED:
            break
    return made


def _evened(constants: Constants, chain: Chain, sizes: dict[str, Array]) -> float:
    """Even one chain out, in place; return the largest logarithm of a factor."""
    first, second, count = chain.first, chain.second, chain.channels
    if chain.value in sizes:
        made = sizes[chain.value].reshape(count, -1).max(axis=1)
    else:
        made = np.abs(rows_of(first, constants.read(first.input[1]))).max(axis=(1, 2))
    read = largest_by_input(second, constants.read(second.input[1]), count)
    factors = _between(made, read)
    for name in first.input[1:]:
        if name:
            values = constants.read(name)
            constants.write(name, values / factors if values.ndim == 1 else by_output(first, values, 1 / factors))
    constants.write(second.input[1], by_input(second, constants.read(second.input[1]), factors))
    if chain.value in sizes:
        sizes[chain.value] = sizes[chain.value] / np.repeat(factors, len(sizes[chain.value]) // count)
    return float(np.abs(np.log(factors)).max())


def _between(made: Array, read: Array) -> Array:
    """Return factors, 1 in the geometric mean, that bring two sizes together."""
    if not made.max(initial=0.0) or not read.max(initial=0.0):
        return np.ones(len(made))
    sides = [np.log(np.maximum(side, _LEAST_SHARE * side.max())) for side in (made.astype(float), read.astype(float))]
    halves = (sides[0] - sides[1]) / 2
    return np.asarray(np.exp(halves - halves.mean()))


__all__ = ["equalizable", "equalized"]
