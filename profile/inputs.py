"""Inputs for a file with declared inputs: random ones by specification, or a check of given ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BadPlan

Array = npt.NDArray[Any]

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class InputSpec:
    """One declared input. A dynamic dimension is its name, or None where it has none."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"'{self.name}' {self.dtype} ({sizes})"


def random_inputs(specs: Sequence[InputSpec], batch: int, seed: int, where: str) -> dict[str, Array]:
    """Make inputs that fit: standard normal floats, 0 or 1 for integers (valid as index, segment and mask), any byte.

    Args:
        specs: what the file declares.
        batch: size of the dynamic batch dimension: the first input's first one, wherever its name recurs.
        seed: same seed, same inputs.
        where: the file, for messages.

    Raises:
        BadPlan: another dimension is dynamic, a fixed batch differs from `batch`, or a type has no numpy equivalent.
    """
    generator = np.random.default_rng(seed)
    symbol = _batch_symbol(specs)
    made = {}
    for spec in specs:
        shape = tuple(_size(spec, axis, batch, symbol, where) for axis in range(len(spec.shape)))
        made[spec.name] = _random(generator, _dtype(spec, where), shape)
    return made


def check_inputs(specs: Sequence[InputSpec], given: Mapping[str, Any], batch: int, where: str) -> dict[str, Array]:
    """Return given inputs as contiguous arrays after a check of names, types, shapes and the batch.

    Raises:
        BadPlan: one does not fit; the message names it, and what was got and wanted.
    """
    names = {spec.name for spec in specs}
    missing, unknown = sorted(names - set(given)), sorted(set(given) - names)
    if missing or unknown:
        declared = "; ".join(str(spec) for spec in specs)
        raise BadPlan(f"{where}: inputs missing: {missing}, not declared: {unknown}; the file declares {declared}")
    symbol = _batch_symbol(specs)
    for spec in specs:
        _check(spec, given[spec.name], batch, symbol, where)
    return {spec.name: np.ascontiguousarray(given[spec.name]).reshape(given[spec.name].shape) for spec in specs}


def _check(spec: InputSpec, got: Any, batch: int, symbol: str | None, where: str) -> None:
    if not isinstance(got, np.ndarray):
        raise BadPlan(f"{where}: input {spec}: got a {type(got).__name__}, wanted a numpy array")
    if spec.dtype != "tensor(string)" and got.dtype != _dtype(spec, where):
        raise BadPlan(f"{where}: input {spec}: got {got.dtype}, wanted {np.dtype(_dtype(spec, where))}; use .astype()")
    fits = len(got.shape) == len(spec.shape) and all(
        not isinstance(wanted, int) or wanted == size for wanted, size in zip(spec.shape, got.shape, strict=True)
    )
    if not fits:
        raise BadPlan(f"{where}: input {spec}: got shape {got.shape}")
    for axis, size in enumerate(got.shape):
        if _is_batch(spec, axis, symbol) and size != batch:
            raise BadPlan(f"{where}: input {spec}: got a batch of {size}, but plan.batch is {batch}; make them equal")


def _batch_symbol(specs: Sequence[InputSpec]) -> str | None:
    first = next((spec.shape[0] for spec in specs if spec.shape), None)
    return first if isinstance(first, str) else None


def _is_batch(spec: InputSpec, axis: int, symbol: str | None) -> bool:
    size = spec.shape[axis]
    if size is None:
        return axis == 0
    return isinstance(size, str) and size == symbol


def _size(spec: InputSpec, axis: int, batch: int, symbol: str | None, where: str) -> int:
    size = spec.shape[axis]
    if _is_batch(spec, axis, symbol):
        return batch
    if not isinstance(size, int):
        raise BadPlan(f"{where}: input {spec}: dimension {axis} is dynamic and not the batch; give inputs")
    if axis == 0 and len(spec.shape) > 1 and size != batch:
        remedy = f"set batch={size}, export a dynamic batch, or give inputs"
        raise BadPlan(f"{where}: input {spec}: its batch is fixed, but plan.batch is {batch}; {remedy}")
    return size


def _dtype(spec: InputSpec, where: str) -> Any:
    if spec.dtype not in _DTYPES:
        raise BadPlan(
            f"{where}: input {spec}: this type has no numpy equivalent; give the file a float or integer input"
        )
    return _DTYPES[spec.dtype]


def _random(generator: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> Array:
    if np.issubdtype(dtype, np.floating):
        return np.asarray(generator.standard_normal(shape), dtype=dtype)
    if dtype in (np.int8, np.uint8):
        bounds = np.iinfo(dtype)
        return np.asarray(generator.integers(bounds.min, bounds.max, shape, dtype=dtype, endpoint=True))
    return np.asarray(generator.integers(0, 2, shape)).astype(dtype)
