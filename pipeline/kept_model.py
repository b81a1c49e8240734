"""A model between two stages: `model.pt2`, and the calibration examples where it has been marked for integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from ..models.model import Model, Quantization, load_pt2, save_pt2
from .store import Stage, Store

_MODEL, _CALIBRATION = "model.pt2", "calibration.safetensors"


def keep(store: Store, model: Model, folder: Path) -> dict[str, str] | None:
    """Write a model into a stage's folder; return what the facts must remember."""
    with store.bookkeeping():
        save_pt2(model, folder / _MODEL)
        if model.quantization is None:
            return None
        examples = {str(i): x.contiguous() for i, x in enumerate(model.quantization.calibration)}
        save_file(examples, folder / _CALIBRATION)
        return {"scheme": model.quantization.scheme, "method": model.quantization.method}


def recall(store: Store, stage: Stage) -> Model:
    """Read the model that a stage made."""
    with store.bookkeeping():
        model = load_pt2(stage.folder / _MODEL)
        marked = stage.facts.get("quantization")
        if not marked:
            return model
        examples = load_file(stage.folder / _CALIBRATION)
        return replace(model, quantization=Quantization(**marked, calibration=tuple(examples[k] for k in sorted(examples, key=int))))  # fmt: skip # noqa: E501
