"""What an engine is tied to, by the manifest beside it, checked before TensorRT touches the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from platform import machine, system
from typing import Any

from .errors import BadPlan

SCHEMAS = (1, 2)
_FIRST_PORTABLE = (8, 0)
_NEWER_MAJORS = {("10", "11")}
"""Major versions of which the second runs engines that the first built to be version-compatible."""


@dataclass(frozen=True)
class Here:
    """What is here to run an engine.

    Attributes:
        flavour: `tensorrt` or `rtx`.
        version: of TensorRT.
        capability: asked for only when a manifest names one; the GPU's compute capability, such as `8.6`.
        platform: system and processor family, such as `Linux x86_64`.
    """

    flavour: str
    version: str
    capability: Callable[[], str]
    platform: str = f"{system()} {machine()}"


@dataclass(frozen=True)
class Ties:
    """What a manifest said: facts for a measurement's details, and whether the engine brings code of its own."""

    details: Mapping[str, Any]
    host_code: bool = False


def check_ties(path: Path, content: bytes, here: Here) -> Ties:
    """Compare an engine's manifest with the file and with what is here.

    Args:
        path: of the engine; the manifest is `<path>.json`.
        content: the engine's bytes.
        here: what is to run it.

    Returns:
        Facts for details; without a manifest, that there is none.

    Raises:
        BadPlan: the manifest cannot be read, is of another file, or the engine cannot run here; says what was wanted
            and what is there.
    """
    manifest = _read(path.with_name(f"{path.name}.json"))
    if manifest is None:
        return Ties({"manifest": "none beside the engine: nothing that it is tied to could be checked"})
    _check_bytes(path, content, manifest)
    for check in (_check_flavour, _check_version, _check_platform, _check_weights, _check_capability):
        fault = check(manifest, here)
        if fault:
            raise BadPlan(f"{path}: {fault}")
    compatible = bool(manifest.get("version_compatible"))
    return Ties({"manifest": "checked", "built_on": manifest.get("gpu"), "built_with": manifest["version"]}, compatible)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as fault:
        raise BadPlan(f"{path}: not an engine's manifest ({fault}); build the engine again, or remove it") from fault
    if not isinstance(found, dict) or not {"sha256", "flavour", "version"} <= set(found):
        raise BadPlan(f"{path}: not an engine's manifest; build the engine again, or remove it")
    if found.get("schema") not in SCHEMAS:
        known = " and ".join(map(str, SCHEMAS))
        raise BadPlan(f"{path}: got schema {found.get('schema')!r}, this program reads {known}; build the engine again")
    return found


def _check_bytes(path: Path, content: bytes, manifest: Mapping[str, Any]) -> None:
    got, wanted = hashlib.sha256(content).hexdigest(), str(manifest["sha256"])
    if got != wanted:
        raise BadPlan(
            f"{path}: is not the engine of its manifest: got sha256 {got[:12]}..., wanted {wanted[:12]}...; it was "
            "replaced or cut off; build it again"
        )


def _check_flavour(manifest: Mapping[str, Any], here: Here) -> str:
    if manifest["flavour"] == here.flavour:
        return ""
    return (
        f"got an engine of flavour {manifest['flavour']}, wanted {here.flavour}; choose runtime {manifest['flavour']}"
    )


def _check_version(manifest: Mapping[str, Any], here: Here) -> str:
    built = str(manifest["version"])
    if built == here.version or (manifest.get("version_compatible") and _runs_later(built, here.version)):
        return ""
    remedy = f"install that version, or build the engine again with {here.version}"
    return f"got an engine of {here.flavour} {built}, and {here.version} is installed; {remedy}"


def _runs_later(built: str, installed: str) -> bool:
    old, new = built.split("."), installed.split(".")
    if old[0] != new[0]:
        return (old[0], new[0]) in _NEWER_MAJORS
    return [int(part) for part in old if part.isdigit()] <= [int(part) for part in new if part.isdigit()]


def _check_platform(manifest: Mapping[str, Any], here: Here) -> str:
    # Engines of TensorRT for RTX run on each system it supports.
    built = manifest.get("platform")
    if here.flavour == "rtx" or built in (None, here.platform):
        return ""
    return f"got an engine for {built}, and this is {here.platform}; build it on such a machine"


def _check_weights(manifest: Mapping[str, Any], here: Here) -> str:
    if not manifest.get("stripped") or manifest.get("refitted"):
        return ""
    source = manifest.get("onnx", "its ONNX file")
    return f"holds no weights; put those of {source} in with `shipworthy engine {source} --refit {manifest['engine']}`"


def _check_capability(manifest: Mapping[str, Any], here: Here) -> str:
    targets = [_dotted(str(one)) for one in manifest.get("compute_capabilities", [])]
    level = manifest.get("hardware_compatibility", "none")
    if level == "ampere+":
        targets = ["portable"]
    if not targets or not all(one == "portable" or one.replace(".", "").isdigit() for one in targets):
        return ""  # schema 1 did not say which GPU an engine of classic TensorRT was built on
    got = here.capability()
    if got in targets or ("portable" in targets and _numbers(got) >= _FIRST_PORTABLE):
        return ""
    wanted = "8.0 or later" if "portable" in targets else ", ".join(targets)
    return f"got a GPU of compute capability {got}, and the engine is for {wanted}; build it for this GPU"


def _dotted(name: str) -> str:
    """Turn schema 1's `SM86` into `8.6`."""
    digits = name.removeprefix("SM") if name.startswith("SM") else ""
    return f"{digits[:-1]}.{digits[-1]}" if digits.isdigit() else name


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
