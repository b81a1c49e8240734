"""How many bytes the weights in a model's file take, read from the file without its package and without the weights."""

from __future__ import annotations

import mmap
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from .errors import BadPlan

_Bytes = bytes | mmap.mmap

_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Which fields of ONNX's messages hold which message, as far as tensors can be inside."""

_DIMS, _TYPE, _STRINGS, _EXTERNAL = 1, 2, 6, 13
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
    **dict.fromkeys((27, 28), 6),
    15: 128,
}
"""Bits of one element, by ONNX's number of the type."""


@dataclass(frozen=True)
class Weights:
    """The tensors that a file holds: their bytes, and the names of the files beside it that keep them."""

    bytes: int
    beside: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights | None:
    """Read what the weights of a file take; constants count as weights.

    Args:
        path: of an ONNX file, or of one that `torch.export.save` wrote.

    Returns:
        None for a file that is neither, such as an engine.

    Raises:
        BadPlan: weights lie outside the file's folder, so that reading or copying them would tell of other files.
    """
    try:
        if zipfile.is_zipfile(path):
            return _of_program(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tensors = [_Tensor.read(content, start, end) for start, end in _tensors(content, "model", 0, len(content))]
    except (ValueError, IndexError, KeyError, RecursionError):
        return None
    beside = dict.fromkeys(name for tensor in tensors for name in tensor.beside)
    for name in beside:
        _check_place(path, name)
    return Weights(sum(tensor.bytes for tensor in tensors), tuple(beside)) if tensors else None


def _check_place(path: Path, name: str) -> None:
    """Links are followed; a file that is a link itself, as in caches of downloads, may have its data where it ends."""
    real = Path(os.path.realpath(path.parent / name))
    folders = (Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent)
    if ".." in Path(name).parts or Path(name).is_absolute() or not any(folder in real.parents for folder in folders):
        raise BadPlan(f"{path}: keeps weights in {name!r}, outside its folder; put them beside it")


def file_bytes(path: Path) -> int:
    """Return the bytes of a file together with those beside it that keep its weights."""
    found = read_weights(path)
    beside = (path.parent / name for name in (found.beside if found else ()))
    return path.stat().st_size + sum(other.stat().st_size for other in beside if other.is_file())


def _of_program(path: Path) -> Weights | None:
    with zipfile.ZipFile(path) as archive:
        sizes = [
            entry.file_size
            for entry in archive.infolist()
            if any(part in entry.filename for part in ("/data/weights/", "/data/constants/"))
            and not entry.filename.endswith(".json")
        ]
    return Weights(sum(sizes)) if sizes else None


@dataclass(frozen=True)
class _Tensor:
    bytes: int
    beside: tuple[str, ...]

    @classmethod
    def read(cls, content: _Bytes, start: int, end: int) -> _Tensor:
        dims: list[int] = []
        kind = strings = 0
        beside: list[str] = []
        for field, value, stop in _fields(content, start, end):
            if field == _DIMS:
                dims.extend([value] if stop is None else _packed(content, value, stop))
            elif field == _TYPE:
                kind = value
            elif field == _STRINGS and stop is not None:
                strings += stop - value
            elif field == _EXTERNAL and stop is not None:
                beside.extend(_location(content, value, stop))
        size = strings if kind == 8 else (prod(dims) * _BITS[kind] + 7) // 8
        return cls(size, tuple(beside))


def _tensors(content: _Bytes, kind: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where each tensor inside a message begins and ends."""
    for field, value, stop in _fields(content, start, end):
        inside = _INSIDE[kind].get(field)
        if inside == "tensor" and stop is not None:
            yield value, stop
        elif inside is not None and stop is not None:
            yield from _tensors(content, inside, value, stop)


def _fields(content: _Bytes, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield a message's fields: number, value, None; or number, begin, end for those with a length."""
    at = start
    while at < end:
        key, at = _varint(content, at)
        kind = key & 7
        if key < 8:
            raise ValueError("a field has no number")  # such as in a file of zeros
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield key >> 3, value, None
        elif kind == _LENGTH:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError("a field ends beyond its message")
            yield key >> 3, at, at + size
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} is unknown")


def _varint(content: _Bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _packed(content: _Bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        value, at = _varint(content, at)
        yield value


def _location(content: _Bytes, start: int, end: int) -> Iterator[str]:
    """Yield the file's name where an entry of external data tells it."""
    pair = {field: content[at:stop] for field, at, stop in _fields(content, start, end) if stop is not None}
    if pair.get(1) == b"location":
        yield pair.get(2, b"").decode()
