"""What export gives: a file, its hash, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..models.model import TensorSpec

Precision = Literal["fp32", "fp16", "bf16", "mixed", "int8", "int8-weights", "int4-weights"]
Target = Literal["cpu", "tensorrt"]


@dataclass(frozen=True)
class OnnxArtifact:
    """An ONNX file. It can be used wherever a path can.

    Attributes:
        path: the file.
        sha256: of its bytes.
        bytes: its size on disk, with external data if there is any.
        opset: of the default domain.
        precision: what the weights and activations are computed in; `mixed` is fp16 with delicate operators in fp32,
            `int8-weights` and `int4-weights` are fp32 with integers for large weights.
        target: the family of runtimes a quantized file is laid out for.
        inputs: names, types and shapes.
        outputs: the same of what comes out.
        tools: versions of what made the file.
        fp32_nodes: names of nodes that stay in fp32 in a file of fp16, bf16 or mixed precision.
    """

    path: Path
    sha256: str
    bytes: int
    opset: int
    precision: Precision
    target: Target
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tools: Mapping[str, str]
    fp32_nodes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        """Return the path."""
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the path as text."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class EngineArtifact:
    """A TensorRT engine with its manifest: everything that it is tied to."""

    path: Path
    sha256: str
    bytes: int
    manifest: Mapping[str, Any]

    def __fspath__(self) -> str:
        """Return the path."""
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the path as text."""
        return {"path": str(self.path), "sha256": self.sha256, "bytes": self.bytes, "manifest": dict(self.manifest)}
