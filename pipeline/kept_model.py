"""A model between two stages: `model.pt2`, and the calibration examples where it has been marked for integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from ..models.model import Model, Quantization, load_pt2, save_pt2
from .store import Stage, Store

_MODEL, _CALIBRATION = "model.pt2", "calibration.safetensors"
_IN_MEMORY = 2


def keep(store: Store, model: Model, folder: Path) -> dict[str, Any] | None:
    """Write a model into a stage's folder; return what the facts must remember."""
    with store.bookkeeping():
        save_pt2(model, folder / _MODEL)
        if model.quantization is None:
            return None
        examples = {str(i): x.contiguous() for i, x in enumerate(model.quantization.calibration)}
        # Not save_file: it hides a full disk in an error of its own.
        (folder / _CALIBRATION).write_bytes(save(examples))
        asked = model.quantization
        return {"scheme": asked.scheme, "method": asked.method, "options": dict(asked.options)}


def recall(store: Store, stage: Stage) -> Model:
    """Read the model that a stage made; the two used last stay in memory, as passes leave them untouched."""
    with store.bookkeeping():
        model = store.models.pop(stage.key, None) or _read(stage)
        store.models[stage.key] = model
        while len(store.models) > _IN_MEMORY:
            del store.models[next(iter(store.models))]
    return model


def _read(stage: Stage) -> Model:
    model = load_pt2(stage.folder / _MODEL)
    marked = stage.facts.get("quantization")
    if not marked:
        return model
    examples = load_file(stage.folder / _CALIBRATION)
    calibration = tuple(examples[key] for key in sorted(examples, key=int))
    return replace(model, quantization=Quantization(**marked, calibration=calibration))
