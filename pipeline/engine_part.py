"""What a recipe says of its engine, as the builder takes it; torch-free."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..export.engine_settings import EngineSettings
from .recipe_parts import ExportPart, OnnxPart, TensorrtPart

_FIRST = {OnnxPart: ("opset", "dynamic_batch"), TensorrtPart: ("flavour", "precision")}
"""The keys that there were from the start; others are in a recipe's hash only when they are set."""
_LIMITS = ("timeout_seconds", "memory_gb")
"""Keys that do not change the engine."""


def engine_settings(part: TensorrtPart, timing_cache: Path | None = None) -> EngineSettings:
    """Return the builder's settings.

    Args:
        part: of the recipe.
        timing_cache: where classic TensorRT keeps its timings.
    """
    return EngineSettings(
        compute_capabilities=part.compute_capabilities,
        version_compatible=part.version_compatible,
        hardware=part.hardware,
        optimization_level=part.optimization_level,
        workspace_bytes=None if part.workspace_mb is None else round(part.workspace_mb * 1e6),
        memory_bytes=None if part.memory_gb is None else round(part.memory_gb * 1e9),
        timing_cache=timing_cache if part.flavour == "tensorrt" else None,
        builds=part.builds,
        keep_builds=part.builds > 1,
    )


def plain_export(part: ExportPart) -> dict[str, Any]:
    """Return a recipe's `export` as plain values, so that recipes from before a key keep their hash."""
    plain = {"onnx": _plain(part.onnx), "tensorrt": _plain(part.tensorrt) if part.tensorrt else None}
    return {**asdict(part), **plain}


def engine_inputs(part: TensorrtPart) -> dict[str, Any]:
    """Return what else decides an engine beside its file, flavour and batches: settings that are no defaults."""
    return {name: value for name, value in _given(part).items() if name not in _LIMITS}


def _plain(part: OnnxPart | TensorrtPart) -> dict[str, Any]:
    return {**{name: getattr(part, name) for name in _FIRST[type(part)]}, **_given(part)}


def _given(part: OnnxPart | TensorrtPart) -> dict[str, Any]:
    others = [one for one in fields(part) if one.name not in _FIRST[type(part)]]
    return {one.name: getattr(part, one.name) for one in others if getattr(part, one.name) != one.default}
