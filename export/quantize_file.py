"""Quantize an ONNX file of any origin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from onnx import ModelProto, StringStringEntryProto

from ..models.errors import BadInput, ToolFailed
from ..models.schemes import Scheme, precision_of
from .artifact import Target
from .calibration_examples import Calibration, count_of, fitting
from .int8 import Int8Settings, in_parts
from .onnx_clean import check
from .onnx_graph import OnnxGraph
from .onnx_metadata import PREFIX
from .onnx_read import openable, read_onnx
from .onnx_store import store
from .quant_schemes import quantized
from .session import OnnxSession


@dataclass(frozen=True)
class QuantizedFile:
    """What `quantize_onnx` made. It can be used wherever a path can.

    Attributes:
        path: the file.
        sha256: of its bytes.
        bytes: its size.
        source_bytes: of the file that it was made of.
        target: the family of runtimes that it is laid out for.
        scheme: what of it is integers.
        examples: that calibrated it; 0 where the scheme needs none.
        products: how many operators with MACs have integers at their inputs.
        kept: names of those that stay in floating point.
    """

    path: Path
    sha256: str
    bytes: int
    source_bytes: int
    target: Target
    scheme: Scheme
    examples: int
    products: int
    kept: tuple[str, ...]

    def __fspath__(self) -> str:
        """Return the path."""
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the path as text."""
        return {**asdict(self), "path": str(self.path)}


def quantize_onnx(
    source: str | PathLike[str],
    path: str | PathLike[str],
    calibration: Calibration | None,
    target: Target = "cpu",
    settings: Int8Settings = Int8Settings(),  # noqa: B008 (frozen)
    told: Callable[[int, int], object] = lambda done, total: None,
) -> QuantizedFile:
    """Write a quantized file from an fp32 file, ours or another's: by default with 8-bit weights and activations.

    Args:
        source: an fp32 ONNX file.
        path: the file to write, whole or not at all.
        calibration: examples that show the range of every value; at least 16, better 128 to 512. None for a scheme that
            needs none.
        target: `cpu` for ONNX Runtime on CPUs, `tensorrt` for TensorRT; each is slow or refused on the other.
        settings: how.
        told: called with the examples done and all of them.

    Raises:
        BadInput: a file that cannot be read or is quantized already, calibration that does not fit the inputs, holds
            NaN or is too little, a graph without anything to quantize, or a pattern that fits nothing.
    """
    source, path = Path(fspath(source)), Path(fspath(path))
    given = openable(source)
    session = OnnxSession(source)
    held = None if calibration is None else fitting(calibration, session)
    feeds = in_parts(held) if isinstance(held, Mapping) else held
    count = 0 if held is None else count_of(held)
    if path.resolve() == source.resolve():
        raise BadInput(f"{path}: is the file to quantize; give the new one another name")
    before = source.stat().st_size + sum(one.stat().st_size for one in _beside(given, source))
    made = quantized(read_onnx(source, weights=True), feeds, target, settings, lambda done: told(done, count))
    _note(made.proto, target, settings.scheme)
    try:
        check(made.proto)
    except Exception as fault:
        raise ToolFailed(f"the ONNX checker refuses the quantized graph: {str(fault).splitlines()[0]}") from fault
    stored = store(OnnxGraph(made.proto), path)
    return QuantizedFile(
        path, stored.sha256, stored.bytes, before, target, settings.scheme, count, len(made.products), made.kept
    )


def _beside(proto: ModelProto, source: Path) -> list[Path]:
    places = {
        entry.value for held in proto.graph.initializer for entry in held.external_data if entry.key == "location"
    }
    return [source.parent / place for place in sorted(places)]


def _note(proto: ModelProto, target: Target, scheme: Scheme) -> None:
    """Write into a file's properties that it holds integers, and for whom; what others wrote there stays."""
    held = {entry.key: entry.value for entry in proto.metadata_props}
    held |= {f"{PREFIX}precision": precision_of(scheme), f"{PREFIX}scheme": scheme, f"{PREFIX}target": target}
    del proto.metadata_props[:]
    proto.metadata_props.extend(StringStringEntryProto(key=key, value=held[key]) for key in sorted(held))
