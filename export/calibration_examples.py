"""Calibration examples from a file or from memory, checked against what an ONNX file takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..models.errors import BadInput
from .int8 import check_count
from .npz_stream import NpzStream, in_kind, open_npz
from .session import OnnxSession

Array = NDArray[Any]
Calibration = str | PathLike[str] | Mapping[str, Array] | NpzStream
"""Examples by input, batch first: an .npz file, which is read in parts, or arrays."""


@overload
def fitting(given: Mapping[str, Array], session: OnnxSession) -> dict[str, Array]: ...
@overload
def fitting(given: str | PathLike[str] | NpzStream, session: OnnxSession) -> NpzStream: ...
def fitting(given: Calibration, session: OnnxSession) -> NpzStream | dict[str, Array]:
    """Return examples in the types that a file takes: floating-point numbers and integers of another width become its.

    Args:
        given: an .npz file or arrays, `(examples, ...)` for each input.
        session: of the file.

    Raises:
        BadInput: they are too few, or do not fit the file's inputs by name, shape or type.
    """
    arrays: NpzStream | dict[str, Array]
    if isinstance(given, Mapping):
        arrays = {name: np.asarray(x) for name, x in given.items()}
        shapes, kinds = {name: x.shape for name, x in arrays.items()}, {name: x.dtype for name, x in arrays.items()}
    else:
        arrays = given if isinstance(given, NpzStream) else open_npz(given)
        shapes, kinds = dict(arrays.shapes), dict(arrays.kinds)
    if set(shapes) != set(session.inputs):
        raise BadInput(
            f"calibration: got arrays {sorted(shapes)}, the file takes {sorted(session.inputs)}; name them alike"
        )
    for name, (_, wanted) in session.inputs.items():
        if not _fits(shapes[name], wanted):
            raise BadInput(
                f"calibration: {name!r} has the shape {tuple(shapes[name])}, the file takes {tuple(wanted)}; give one "
                "row for each example"
            )
    check_count(count_of(arrays))
    wanted_kinds = {name: _kind(name, kinds[name], text) for name, (text, _) in session.inputs.items()}
    if isinstance(arrays, NpzStream):
        return replace(arrays, read_as=wanted_kinds)
    return {name: in_kind(x, wanted_kinds[name], f"calibration: {name!r}") for name, x in arrays.items()}


def count_of(examples: NpzStream | Mapping[str, Array]) -> int:
    """Return how many examples there are: as many as the shortest array has."""
    shapes = examples.shapes if isinstance(examples, NpzStream) else {name: x.shape for name, x in examples.items()}
    return min((shape[0] if shape else 0 for shape in shapes.values()), default=0)


def _kind(name: str, kind: np.dtype[Any], text: str) -> np.dtype[Any]:
    """Return the type that an input of a file takes, `tensor(float)` say."""
    wanted = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(text[len("tensor(") : -1].upper()))
    if kind.kind != wanted.kind and not (kind.kind in "iu" and wanted.kind in "iu"):
        raise BadInput(
            f"calibration: {name!r} holds {kind}, the file takes {wanted}; convert it as the code does that feeds the "
            "model, preprocessing included"
        )
    return wanted


def _fits(shape: tuple[int, ...], wanted: tuple[Any, ...]) -> bool:
    sizes = zip(shape[1:], wanted[1:], strict=False)
    return len(shape) == len(wanted) and all(not isinstance(want, int) or size == want for size, want in sizes)
