"""The manifest of an engine: everything that it is tied to, in a JSON file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from platform import machine, system
from typing import Any

from ..models.errors import BadInput

SCHEMA = 2
"""2 added platform, targets as numbers, further profiles, precisions, settings and the timing cache."""

_ADDED: Mapping[str, Any] = {
    "platform": None,
    "hardware_compatibility": "none",
    "version_compatible": False,
    "stripped": False,
    "refitted": False,
    "further_profiles": [],
    "precisions": {},
    "engine_precisions": {},
    "settings": {},
    "timing_cache": None,
    "gpu_compute_capability": None,
}


def manifest_path(engine: Path) -> Path:
    """Return the place of an engine's manifest."""
    return engine.with_name(engine.name + ".json")


def platform() -> str:
    """Return the system and processor family that a TensorRT engine is tied to, such as `Linux x86_64`."""
    return f"{system()} {machine()}"


def dumps(manifest: Mapping[str, Any]) -> str:
    """Return the text of a manifest."""
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def read_manifest(engine: Path) -> dict[str, Any]:
    """Read an engine's manifest, of this schema or an older one, with every key of this one.

    Raises:
        BadInput: there is none, it is no manifest, or of a newer schema.
    """
    path = manifest_path(engine)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise BadInput(f"{path}: no such file; an engine is read with the manifest beside it") from fault
    except (OSError, ValueError) as fault:
        raise BadInput(f"{path}: not an engine's manifest ({fault})") from fault
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema not in range(1, SCHEMA + 1):
        raise BadInput(f"{path}: got schema {schema!r}, this program reads 1 to {SCHEMA}; build the engine again")
    return found if schema == SCHEMA else _upgraded(found)


def _upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """Fill in what schema 1 did not say; it wrote `SM86` for 8.6."""
    named = [one.removeprefix("SM") for one in found.get("compute_capabilities", [])]
    targets = [f"{one[:-1]}.{one[-1]}" if one.isdigit() else one for one in named]
    return {**_ADDED, **found, "compute_capabilities": targets, "schema": SCHEMA}
