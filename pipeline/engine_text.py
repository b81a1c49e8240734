"""What an engine's manifest says, in lines: for `engine`, which made it, and for `inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cli_output import Answer

_COMPUTED = {"FLOAT", "HALF", "BF16", "FP8", "FP4", "INT8", "INT4"}


def inspect_engine_file(path: Path) -> Answer:
    """Say what an engine's manifest has; exit code 1 when the file is not the one that it tells of.

    Raises:
        BadInput: no such file, or no manifest beside it that can be read.
    """
    from ..export.engine_manifest import read_manifest
    from ..models.files import sha256_of
    from .cli_output import Answer, check_file
    from .report_numbers import size

    told = read_manifest(check_file(path, "a TensorRT engine"))
    whole = sha256_of(path) == told["sha256"]
    weights = " (without weights: refit it before it runs)" if told["stripped"] and not told["refitted"] else ""
    lines = [
        f"engine  {path}{weights}",
        f"size    {size(path.stat().st_size)}",
        f"sha256  {told['sha256']}" + ("" if whole else ", WHICH THE FILE HAS NOT: it was replaced or cut off"),
        f"made of {told.get('onnx', 'an ONNX file')}, sha256 {told['onnx_sha256']}",
        *manifest_lines(told),
    ]
    return Answer("\n".join(lines), {"engine": path, "whole": whole, "manifest": told}, 0 if whole else 1)


def manifest_lines(told: Mapping[str, Any]) -> list[str]:
    """Return what an engine is for, what it takes, and of which layers it is."""
    kind = {"rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}[told["flavour"]]
    return [
        f"for     {kind} {told['version']}, {_targets(told)}",
        *(f"input   {name} {_bounds(bounds)}" for name, bounds in _inputs(told)),
        f"layers  {told['layers']} before fusion{_of(_counts(told['precisions']))}",
        *([f"kernels {_count(told['engine_precisions'])}"] if told["engine_precisions"] else []),
        *([f"flags   {', '.join(told['flags'][1:])}"] if told["flags"][1:] else []),
    ]


def _of(counts: str) -> str:
    return f": {counts}" if counts else ""


def _targets(told: Mapping[str, Any]) -> str:
    named = told["compute_capabilities"]
    if named == ["portable"]:
        return "GPUs of compute capability 8.0 and later"
    also = {"none": "", "ampere+": " and 8.0 and later", "same_compute_capability": ", whatever the model"}
    return f"GPUs of compute capability {', '.join(named)}{also[told['hardware_compatibility']]}"


def _inputs(told: Mapping[str, Any]) -> list[tuple[str, list[list[int]]]]:
    fixed = {one["name"]: [one["shape"]] for one in told["inputs"]}
    return [pair for profile in (told["profiles"], *told["further_profiles"]) for pair in {**fixed, **profile}.items()]


def _bounds(bounds: Sequence[Sequence[int]]) -> str:
    return " to ".join(dict.fromkeys("x".join(map(str, shape)) for shape in (bounds[0], bounds[-1]))) + (
        f", usually {'x'.join(map(str, bounds[1]))}" if len(bounds) == 3 else ""
    )


def _counts(precisions: Mapping[str, Mapping[str, int]]) -> str:
    """Count layers by number format; those that only compute sizes and indices together."""
    total: Counter[str] = Counter()
    for counts in precisions.values():
        for kind, number in counts.items():
            total[kind if _COMPUTED & set(kind.split()) else "of sizes and indices"] += number
    return _count(dict(total.most_common()))


def _count(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counts.items())
