"""What an ONNX file says of its sparse weights: their patterns, in its metadata."""

from __future__ import annotations

from os import PathLike, fspath

import onnx
from onnx import ModelProto

from ..models.errors import BadInput
from ..models.model import Sparsity

KEY = "shipworthy.sparsity"
"""The property; its value is the patterns with commas between them, such as `2:4`."""


def write_sparsity(proto: ModelProto, sparsity: Sparsity | None) -> None:
    """Note the patterns in a graph's properties, in place; nothing for a dense model."""
    others = [entry for entry in proto.metadata_props if entry.key != KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(others)
    if sparsity:
        proto.metadata_props.add(key=KEY, value=",".join(sorted(set(sparsity.patterns.values()))))


def read_sparsity(path: str | PathLike[str]) -> list[str]:
    """Return the patterns that a file notes, in alphabetical order; none for a dense model.

    Raises:
        BadInput: the file is no ONNX.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as fault:  # protobuf's own, which is no dependency of ours
        raise BadInput(f"{fspath(path)}: not an ONNX file, or cut off ({fault})") from fault
    noted = [entry.value for entry in proto.metadata_props if entry.key == KEY]
    return noted[0].split(",") if noted else []
