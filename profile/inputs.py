"""Inputs for a file with declared inputs: random ones by specification, or a check of given ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .dims import Sizes, batch_symbol, is_batch, sizes
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

_MOST_BYTES = 8 << 30


@dataclass(frozen=True)
class InputSpec:
    """One declared input. A dynamic dimension is its name, or None where it has none."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"'{self.name}' {self.dtype} ({sizes})"


def random_inputs(
    specs: Sequence[InputSpec],
    batch: int,
    seed: int,
    where: str,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> dict[str, Array]:
    """Make inputs that fit: standard normal floats, 0 or 1 for integers (valid as index, segment and mask), any byte.

    Args:
        specs: what the file declares.
        batch: size of the dynamic batch dimension: the one named so, else the first input's first one, wherever its
            name recurs.
        seed: same seed, same inputs.
        where: the file, for messages.
        shapes: whole shapes of inputs with other dynamic dimensions, None for the batch; a name's size holds for all
            inputs.

    Raises:
        BadPlan: another dimension is dynamic and no shape tells it, a shape does not fit, a fixed batch differs from
            `batch`, or a type has no numpy equivalent.
    """
    generator = np.random.default_rng(seed)
    known = sizes({spec.name: spec.shape for spec in specs}, batch, shapes or {}, where)
    _check_fixed_batch(specs, known, where)
    made = {}
    for spec in specs:
        shape = tuple(_size(spec, axis, known, where) for axis in range(len(spec.shape)))
        dtype = _dtype(spec, where)
        _check_bytes(spec, shape, dtype, where)
        made[spec.name] = _random(generator, dtype, shape)
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
    symbol = batch_symbol([spec.shape for spec in specs])
    for spec in specs:
        _check(spec, given[spec.name], batch, symbol, where)
    return {spec.name: np.ascontiguousarray(given[spec.name]).reshape(given[spec.name].shape) for spec in specs}


def _check(spec: InputSpec, got: Any, batch: int, symbol: str | None, where: str) -> None:
    if not isinstance(got, np.ndarray):
        raise BadPlan(f"{where}: input {spec}: got a {type(got).__name__}, wanted a numpy array")
    if spec.dtype != "tensor(string)" and got.dtype != _dtype(spec, where):
        raise BadPlan(f"{where}: input {spec}: got {got.dtype}, wanted {np.dtype(_dtype(spec, where))}; use .astype()")
    fits = len(got.shape) == len(spec.shape) and all(
        not isinstance(wanted, int) or wanted < 0 or wanted == size
        for wanted, size in zip(spec.shape, got.shape, strict=True)
    )
    if not fits:
        raise BadPlan(f"{where}: input {spec}: got shape {got.shape}")
    for axis, size in enumerate(got.shape):
        if is_batch(spec.shape, axis, symbol) and size != batch:
            raise BadPlan(f"{where}: input {spec}: got a batch of {size}, but plan.batch is {batch}; make them equal")


def _check_fixed_batch(specs: Sequence[InputSpec], known: Sizes, where: str) -> None:
    """Check that a file without any open batch has the plan's: by its first input of several dimensions."""
    if any(is_batch(spec.shape, axis, known.symbol) for spec in specs for axis in range(len(spec.shape))):
        return
    first = next((spec for spec in specs if len(spec.shape) > 1), None)
    if first is None or first.name in known.given or first.shape[0] in (known.batch, 0):
        return
    size = first.shape[0]
    if isinstance(size, int):
        remedy = f"set batch={size}, export a dynamic batch, or give inputs"
        message = f"{where}: input {first}: its batch is fixed, but plan.batch is {known.batch}; {remedy}"
        raise BadPlan(message)


def _size(spec: InputSpec, axis: int, known: Sizes, where: str) -> int:
    size = known.of(spec.name, spec.shape, axis)
    if size is None:
        wish = ",".join(_wish(spec, i, known) for i in range(len(spec.shape)))
        remedy = f"give inputs (--samples) or its shape (--shape {spec.name}={wish}, or Plan(shapes=...))"
        raise BadPlan(f"{where}: input {spec}: dimension {axis} is dynamic and not the batch; {remedy}")
    if size == 0 and axis == 0:
        remedy = "write a name in its place, so that it is dynamic, or give inputs"
        raise BadPlan(f"{where}: input {spec}: its batch is declared as 0, and ONNX Runtime takes it so; {remedy}")
    return size


def _wish(spec: InputSpec, axis: int, known: Sizes) -> str:
    if is_batch(spec.shape, axis, known.symbol):
        return "batch"
    return str(known.of(spec.name, spec.shape, axis) or "SIZE")


def _check_bytes(spec: InputSpec, shape: tuple[int, ...], dtype: Any, where: str) -> None:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > _MOST_BYTES:
        remedy = "give a smaller shape"
        raise BadPlan(f"{where}: input {spec}: shape {shape} takes {size / 1e9:.3g} GB of random numbers; {remedy}")


def _dtype(spec: InputSpec, where: str) -> Any:
    if spec.dtype == "tensor(string)":
        raise BadPlan(f"{where}: input {spec}: text cannot be invented; give inputs (--samples)")
    if not spec.dtype.startswith("tensor("):
        raise BadPlan(f"{where}: input {spec}: only tensors can be given; a file that takes others cannot be measured")
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
