"""Read the arrays of an .npz file some examples at a time, so that memory does not grow with the file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..models.errors import BadInput

Array = NDArray[Any]
_SUFFIX = ".npy"
_CHUNK_BYTES = 2e6
"""Read at once: few, so that what runs them gets equally many each time, and its memory stays in one piece."""


@dataclass(frozen=True)
class NpzStream:
    """Arrays of one .npz file, `(examples, ...)` each; calling it gives them in parts, as often as it is called.

    Attributes:
        path: the file.
        shapes: of each array.
        kinds: the type of each array.
        read_as: types that arrays are given in; others as they are held.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, np.dtype[Any]]
    read_as: Mapping[str, np.dtype[Any]] = field(default_factory=dict)

    def __call__(self) -> Iterator[dict[str, Array]]:
        """Yield all examples, few at a time, in order.

        Raises:
            BadInput: the file is cut off, or an integer does not fit into the type that it is to be given in.
        """
        rows = {name: max(1, prod(shape[1:])) * self.kinds[name].itemsize for name, shape in self.shapes.items()}
        size = max(1, int(_CHUNK_BYTES // sum(rows.values())))
        count = min(shape[0] for shape in self.shapes.values())
        with ExitStack() as stack:
            packed = stack.enter_context(zipfile.ZipFile(self.path))
            files = {name: stack.enter_context(packed.open(name + _SUFFIX)) for name in self.shapes}
            for opened in files.values():
                _header(opened)
            for start in range(0, count, size):
                yield {name: self._rows(files[name], name, min(size, count - start)) for name in files}

    def _rows(self, opened: IO[bytes], name: str, count: int) -> Array:
        kind, shape = self.kinds[name], (count, *self.shapes[name][1:])
        wanted = prod(shape) * kind.itemsize
        try:
            found = opened.read(wanted)
        except (zipfile.BadZipFile, OSError, EOFError) as fault:
            raise BadInput(f"{self.path}: array {name!r} is damaged: {fault}") from fault
        if len(found) != wanted:
            raise BadInput(f"{self.path}: array {name!r} is cut off: got {len(found)} bytes of {wanted}")
        held = np.frombuffer(found, kind).reshape(shape)
        return in_kind(held, self.read_as.get(name, kind), f"{self.path}: array {name!r}")


def open_npz(path: str | PathLike[str]) -> NpzStream:
    """Open an .npz file of arrays with one row for each example.

    Raises:
        BadInput: no such file, no .npz, an array of objects or in Fortran's order, or unequally many examples.
    """
    path = Path(fspath(path))
    if not path.is_file():
        raise BadInput(f"{path}: no such file; wanted an .npz file, as numpy.savez writes it")
    try:
        with zipfile.ZipFile(path) as packed:
            names = [name.removesuffix(_SUFFIX) for name in packed.namelist() if name.endswith(_SUFFIX)]
            heads = {}
            for name in names:
                with packed.open(name + _SUFFIX) as opened:
                    heads[name] = _header(opened)
    except (zipfile.BadZipFile, OSError, ValueError) as fault:
        raise BadInput(f"{path}: not an .npz file ({fault}); write it with numpy.savez") from fault
    for name, (shape, in_fortran, kind) in heads.items():
        if kind.hasobject or (in_fortran and len(shape) > 1) or not shape:
            raise BadInput(
                f"{path}: array {name!r} is {kind} {shape}{' in Fortran order' if in_fortran else ''}; wanted numbers, "
                "one row for each example, in C order (numpy.ascontiguousarray)"
            )
    counts = {name: shape[0] for name, (shape, _, _) in heads.items()}
    if len(set(counts.values())) != 1:
        raise BadInput(f"{path}: wanted equally many examples in every array, got {counts or 'no array'}")
    return NpzStream(path, {n: shape for n, (shape, _, _) in heads.items()}, {n: kind for n, (_, _, kind) in heads.items()})  # fmt: skip # noqa: E501


def in_kind(array: Array, kind: np.dtype[Any], where: str) -> Array:
    """Return an array in another type of the same sort, as it is if it has that one.

    Raises:
        BadInput: an integer of it is too large for the type; `where` says of which array.
    """
    if array.dtype == kind:
        return array
    with np.errstate(over="ignore"):
        made = array.astype(kind)
    if kind.kind in "iu" and (made != array).any():
        raise BadInput(f"{where} holds integers from {array.min()} to {array.max()}, too large for {kind}")
    return made


def _header(opened: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(opened)
    return found
