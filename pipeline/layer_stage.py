"""The stage that finds which layers of a quantized model must stay in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..export.int8 import in_parts, settings_of
from ..export.qat_scales import graph_with_grids
from ..export.quant_layers import QuantLayers
from ..models.data import Dataset
from ..models.errors import BadInput
from ..profile.environment import comparison_key, environment
from ..profile.plan import Plan
from .kept_model import keep, recall
from .layer_choice import MixedPrecision
from .layer_judge import Judging
from .mixed_precision import search
from .recipe import Recipe
from .recipe_parts import Step
from .stages import LAYERS
from .store import Facts, Stage, Store

JUDGED = 2000
"""Training examples that the search judges by: others than those that calibrate, as far as there are so many."""

_BUDGET_S = 20.0


def wants_search(step: Step) -> bool:
    """Whether a pass asks for layers that may stay in fp32."""
    return getattr(step.settings, "max_drop", None) is not None


def layers_stage(store: Store, recipe: Recipe, step: Step, marked: Stage, data: Dataset | None) -> Stage:
    """Find the layers that stay in fp32, and mark them in the model.

    Sensitivity, gain and accuracy are taken on the CPU's file; the file for TensorRT keeps the same layers.
    """
    if data is None:
        raise BadInput(f"{step.name}: max_drop is judged on training examples; add the `data` section, or leave it out")
    most = float(step.settings.max_drop)  # type: ignore[attr-defined]  # it has one, see `wants_search`
    plan = Plan(batch=recipe.profile.batch, threads=recipe.profile.threads, budget_s=_BUDGET_S)

    def make(folder: Path) -> Facts:
        model = recall(store, marked)
        asked = model.quantization
        assert asked is not None
        graph, known = graph_with_grids(model, recipe.export.onnx.opset)
        names = [value.name for value in graph.proto.graph.input]
        examples = in_parts(dict(zip(names, map(np.asarray, asked.calibration), strict=True)))
        layers = QuantLayers(graph.filled(), examples, "cpu", settings_of(asked), known)
        places = _others(data, step)
        shown = dict(zip(names, (x.numpy() for x in data.inputs(data.train, places)), strict=True))
        judging = Judging(in_parts(shown), data.train.labels[places].numpy(), most)
        found = search(layers, judging, plan, lambda _, share: store.progress.advance(round(100 * share), 100))
        options = {**asked.options, "keep_float": (*asked.options.get("keep_float", ()), *found.keep)}
        kept = keep(store, replace(model, quantization=replace(asked, options=options)), folder)
        return {**marked.facts, "quantization": kept, "mixed_precision": found.to_dict()}

    where = comparison_key(environment())
    inputs = {"model": marked.key, "max_drop": most, "data": data.fingerprint, "opset": recipe.export.onnx.opset}
    stage = store.run(marked.name + LAYERS, inputs | {"batch": plan.batch, "threads": plan.threads, "at": where}, make)
    store.progress.note(f"{step.name}: {MixedPrecision.from_dict(stage.facts['mixed_precision']).line}")
    return stage


def _others(data: Dataset, step: Step) -> Tensor:
    """Return which training examples judge: those behind the ones that calibrate, in the same order."""
    seed, first = getattr(step.settings, "seed", 0), getattr(step.settings, "calibration", 0)
    picked = data.sample(first + JUDGED, seed)
    return picked[min(first, max(0, len(picked) - JUDGED)) :]
