"""What an engine's layers are after TensorRT has fused them, by its inspector. Needs a GPU; not run on one yet.

Runs in the child process of a build; the module of TensorRT comes as a parameter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_FORMATS = ("FP32", "BF16", "FP16", "FP8", "FP4", "UINT8", "INT8", "INT4", "INT32", "INT64", "BOOL")


def inspect_engine(trt: Any, logger: Any, path: Path) -> list[dict[str, Any]]:
    """Return name, type, inputs' and outputs' number formats of every layer of an engine; none where it cannot be read.

    Not run on a GPU yet.
    """
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        return []
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layers_in(text)


def layers_in(text: str) -> list[dict[str, Any]]:
    """Read the inspector's JSON; engines built to tell only names give no layers."""
    told = json.loads(text).get("Layers", []) if text else []
    return [_layer(one) for one in told if isinstance(one, dict) and "Name" in one]


def _layer(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": str(told["Name"]),
        "type": str(told.get("LayerType", "layer")),
        "inputs": [_format(one) for one in told.get("Inputs", ())],
        "outputs": [_format(one) for one in told.get("Outputs", ())],
    }


def _format(told: Mapping[str, Any]) -> str:
    """Read a number format, which TensorRT writes as the end of a text such as `Row major linear FP32`."""
    text = str(told.get("Format/Datatype") or told.get("Datatype") or told.get("Format") or "").upper()
    text = text.replace("HALF", "FP16").replace("FLOAT", "FP32")
    return next((kind for kind in _FORMATS if kind in text), "unknown")


def formats(layers: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count an engine's layers by the number format of what comes out first."""
    return dict(sorted(Counter(str((layer["outputs"] or ["none"])[0]) for layer in layers).items()))
