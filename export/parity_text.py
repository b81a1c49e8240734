"""What a breach is, in a sentence."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

from .parity import Parity
from .parity_cost import TaskCost
from .parity_layers import BadLayer


def layer_text(layer: BadLayer, cost: TaskCost | None = None) -> str:
    """Return which layer broke and what it costs, as one sentence."""
    which = "first bad layer" if layer.kind == "first" else "no layer alone is bad; the largest error is made by"
    own = f"it makes an error of {_size(layer.own)} of right inputs, wanted at most {layer.tolerance:.1e}"
    if not isfinite(layer.own):
        own = "it makes infinity or not a number of right inputs"
    text = (
        f"{which}: {layer.name} ({layer.operator}, tensor {layer.tensor}): {own}; error before it "
        f"{_size(layer.before)}, after it {_size(layer.after)}"
    )
    return f"{text}; {cost_text(cost)}" if cost else text


def breach_facts(found: Parity) -> dict[str, Any]:
    """Return the layer of a breach as plain values with its sentence, and notes; nothing where there is neither."""
    facts: dict[str, Any] = {"parity_notes": list(found.notes)} if found.notes else {}
    if found.layer:
        plain = {key: value if _is_plain(value) else None for key, value in asdict(found.layer).items()}
        cost = asdict(found.cost) if found.cost else None
        facts["bad_layer"] = {"text": layer_text(found.layer, found.cost), **plain, "cost": cost}
    return facts


def _is_plain(value: object) -> bool:
    return not isinstance(value, float) or isfinite(value)


def cost_text(cost: TaskCost) -> str:
    """Return what a layer costs the task, in percent of the samples."""
    whole = "agreement with the reference" if cost.by == "agreement" else f"accuracy {_share(cost.reference)} before"
    return (
        f"{whole}, {_share(cost.candidate)} now, {_share(cost.repaired)} with this layer alone computed as it was "
        f"({cost.samples} samples)"
    ).replace("reference, ", "reference ")


def _share(value: float) -> str:
    return f"{value:.1%}"


def _size(value: float) -> str:
    return f"{value:.1e}" if isfinite(value) else "infinity"
