"""What each layer's integers spare: measured on whole files, with that layer in integers and without."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from ..export.parity_taps import save
from ..export.quant_layers import QuantLayers
from ..profile.measure import measure_all
from ..profile.plan import Plan
from ..profile.runners import Inputs
from ..profile.stats import Estimate, median_interval

_LEAST_S = 0.05
_LEAST_ROUNDS, _MOST_ROUNDS = 40, 100
_PRECISION = 0.005
"""Of ratios to the whole file: of 20 layers one spares some hundredths."""
_TOGETHER, _OPEN_BYTES = 24, 1e9
"""Files, and bytes of them, that are open at once."""


def measured_gains(
    layers: QuantLayers, plan: Plan, inputs: Inputs, told: Callable[[float], object] = lambda share: None
) -> dict[str, Estimate]:
    """Return the microseconds that each layer's integers spare, by its name.

    The file with all layers in integers and those with all but one are run in turn, so that what disturbs the machine
    disturbs them alike; the gain is the median of the differences by round.

    Args:
        layers: of the graph.
        plan: batch and threads; its budget is for all layers together.
        inputs: to run the files on.
        told: called with the share that is done.
    """
    found: dict[str, Estimate] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = _written(layers.with_float(()), Path(folder, "whole.onnx"))
        together = max(1, min(_TOGETHER, int(_OPEN_BYTES // whole.stat().st_size)))
        for start in range(0, len(layers.layers), together):
            names = layers.layers[start : start + together]
            files = [_written(layers.with_float([one]), Path(folder, f"{i}.onnx")) for i, one in enumerate(names)]
            part = _short(plan, len(names) / len(layers.layers))
            found |= dict(zip(names, _differences([whole, *files], part, inputs), strict=True))
            told((start + len(names)) / len(layers.layers))
    return found


def slower(gains: Mapping[str, Estimate], name: str) -> bool:
    """Whether a layer is known to be slower in integers."""
    high = gains[name].high if name in gains else None
    return high is not None and high < 0


def _short(plan: Plan, share: float) -> Plan:
    return replace(
        plan, warmup_s=_LEAST_S, least_s=_LEAST_S, budget_s=plan.budget_s * share, min_rounds=_LEAST_ROUNDS,
        max_rounds=_MOST_ROUNDS, precision=_PRECISION,
    )  # fmt: skip


def _differences(files: Sequence[Path], plan: Plan, inputs: Inputs) -> list[Estimate]:
    first, *others = measure_all(files, "ort-cpu", plan, inputs)
    base = np.asarray(first.samples_ns, np.float64)
    return [median_interval((np.asarray(one.samples_ns, np.float64) - base) / 1e3) for one in others]


def _written(proto: ModelProto, path: Path) -> Path:
    save(proto, path)
    return path
