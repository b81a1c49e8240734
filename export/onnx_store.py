"""Write an ONNX graph: one file, and one more beside it for weights that protobuf cannot hold."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from onnx import ModelProto, StringStringEntryProto, TensorProto

from ..models.files import replacing, sha256_of
from .onnx_graph import OnnxGraph, size_of

MOST_BYTES = 2**31 - 2**20
"""Protobuf holds no message of 2 GiB; a margin is left for the graph itself."""
DATA_HASH = "shipworthy.data_sha256"
"""The property that names the hash of the file of weights, so that the hash of the ONNX file covers both."""
_ALIGNED = 4096
_CHUNK = 2**24


@dataclass(frozen=True)
class Stored:
    """What was written: the hash of the ONNX file, and the bytes of all files."""

    sha256: str
    bytes: int


def store(graph: OnnxGraph, path: Path, most_bytes: int = MOST_BYTES) -> Stored:
    """Write a graph to `path`, whole or not at all.

    Above `most_bytes` the weights go to `<name>.<hash>.data` beside it, one after the other, so that no second copy of
    them is held. Its name has its hash: a file whose writing was interrupted never meets weights of another.

    Args:
        graph: what to write.
        path: of the ONNX file.
        most_bytes: that one file may have.

    Raises:
        BadInput: the folder cannot be written, or the disk is full.
    """
    total = sum(map(size_of, graph.proto.graph.initializer))
    data: Path | None = None
    with replacing(path) as beside:
        if total + graph.proto.ByteSize() <= most_bytes:
            beside.write_bytes(graph.filled().SerializeToString(deterministic=True))
        else:
            data = _write_both(graph, beside, path)
    _remove_others(path, data)
    return Stored(sha256_of(path), path.stat().st_size + (data.stat().st_size if data else 0))


def external_files(path: Path) -> list[Path]:
    """Return the files of weights that belong to an ONNX file of ours."""
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    return sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))


def _write_both(graph: OnnxGraph, beside: Path, path: Path) -> Path:
    made = ModelProto()
    made.CopyFrom(graph.proto)
    weights = beside.with_name(beside.name + ".data")
    try:
        places, digest = _stream(graph, weights)
        data = path.with_name(f"{path.name}.{digest[:16]}.data")
        for tensor in made.graph.initializer:
            if tensor.name in places:
                _point(tensor, data.name, *places[tensor.name])
        made.metadata_props.append(StringStringEntryProto(key=DATA_HASH, value=digest))
        beside.write_bytes(made.SerializeToString(deterministic=True))
        weights.chmod(0o644)
        weights.replace(data)
    finally:
        weights.unlink(missing_ok=True)
    return data


def _stream(graph: OnnxGraph, file: Path) -> tuple[dict[str, tuple[int, int]], str]:
    """Write all weights; return the offset and length of each, and the hash of the file."""
    places: dict[str, tuple[int, int]] = {}
    digest = hashlib.sha256()
    with file.open("wb") as opened:
        for name in (i.name for i in graph.proto.graph.initializer if i.name in graph.weights):
            _put(b"\0" * (-opened.tell() % _ALIGNED), opened, digest)
            start = opened.tell()
            values = np.ascontiguousarray(graph.weights[name]()).reshape(-1).view(np.uint8)
            for at in range(0, len(values), _CHUNK):
                _put(values[at : at + _CHUNK].data, opened, digest)
            places[name] = (start, len(values))
    return places, digest.hexdigest()


def _put(chunk: bytes | memoryview, opened: BinaryIO, digest: Any) -> None:
    opened.write(chunk)
    digest.update(chunk)


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.append(StringStringEntryProto(key=key, value=value))


def _remove_others(path: Path, kept: Path | None) -> None:
    """Remove weights of what lay at this path before."""
    for file in external_files(path):
        if file != kept:
            file.unlink(missing_ok=True)
