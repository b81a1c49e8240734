"""Which layers of an int8 file go back to fp32: the fewest that accuracy needs, those first that cost least time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..export.quant_layers import COMPARED, QuantLayers, sensitivities
from ..profile.plan import Plan
from ..profile.stats import Estimate
from .layer_choice import LayerChoice, MixedPrecision
from .layer_gains import measured_gains, slower
from .layer_judge import Judge, Judging

Told = Callable[[str, float], object]
Holds = Callable[[tuple[str, ...]], bool]

_SPANS = {"sensitivity": (0.1, 0.5), "gain": (0.5, 0.75), "choice": (0.75, 1.0)}
"""Which share of the whole search each part of it is, roughly."""


def search(
    layers: QuantLayers, judging: Judging, plan: Plan | None, told: Told = lambda what, share: None
) -> MixedPrecision:
    """Find the layers that must stay in fp32.

    Layers are put in order by what they cost alone for each microsecond that they spare; the shortest beginning of that
    order is searched by halving whose file loses no more than `max_drop`. Then every layer in it that can go back to
    integers does, those first that spare most. On the way files are judged by as few examples as tell, see `Judge`;
    what comes out is judged on all of them, as the exporter writes it, and where it does not hold, the search is done
    again on all.

    Args:
        layers: of the graph.
        judging: on examples that are no test examples.
        plan: batch and threads of the device that gains are measured on; None where there is none for the target:
            layers are then put in order by what they cost.
        told: called with what is done, and the share of the whole.

    Returns:
        What was found. Where no choice with integers in it holds, the file with least of them, and `met` is False.

    Raises:
        BadInput: the graph's outputs are no scores of classes.
    """
    judge = Judge(layers.graph, judging)
    everything = judge.drop(layers.shipped(()))
    costs = sensitivities(layers, judging.examples, lambda done, total: _tell(told, "sensitivity", done / total))
    gains = measured_gains(layers, plan, judge.inputs(plan.batch), lambda s: _tell(told, "gain", s)) if plan else {}
    chosen = _Choice((), everything, 1)
    if everything > judging.max_drop:
        chosen = _choose(layers, judge, (_order(costs, gains), gains), judging.max_drop, told)
    rows = tuple(_row(layers, name, costs[name], gains.get(name), name in chosen.keep) for name in layers.layers)
    metric, compared = "agreement" if judging.labels is None else "accuracy", min(COMPARED, judge.examples)
    return MixedPrecision(
        rows, tuple(sorted(chosen.keep)), chosen.lost, everything, judging.max_drop, metric, judge.examples, compared,
        chosen.tried, chosen.lost <= judging.max_drop,
    )  # fmt: skip


@dataclass(frozen=True)
class _Choice:
    keep: tuple[str, ...]
    lost: float
    tried: int


def _choose(
    layers: QuantLayers, judge: Judge, ordered: tuple[list[str], Mapping[str, Estimate]], most: float, told: Told
) -> _Choice:
    """Search by few examples and judge what comes out by all; if that fails, search by all."""
    tried: dict[tuple[bool, frozenset[str]], bool] = {}
    lost = {frozenset[str](): 100.0}

    def quick(keep: tuple[str, ...]) -> bool:
        return judge.holds(layers.with_float(keep))

    def exact(keep: tuple[str, ...]) -> bool:
        lost[frozenset(keep)] = judge.drop(layers.shipped(keep))
        return lost[frozenset(keep)] <= most

    def remembered(holds: Holds) -> Holds:
        def asked(keep: tuple[str, ...]) -> bool:
            key = (holds is exact, frozenset(keep))
            if key not in tried:
                tried[key] = holds(keep)
                _tell(told, "choice", min(1.0, len(tried) / (len(layers.layers) + 1)))
            return tried[key]

        return asked

    keep = _fewest(*ordered, remembered(quick))
    if not remembered(exact)(keep):
        keep = _fewest(*ordered, remembered(exact))
        remembered(exact)(keep)
    return _Choice(keep, lost[frozenset(keep)], 1 + len({key for _, key in tried}))


def _order(costs: Mapping[str, float], gains: Mapping[str, Estimate]) -> list[str]:
    """Return the layers, those first that are to stay in fp32: they cost much, or their integers spare nothing.

    A gain whose interval contains zero counts as the median of all, so that noise puts no layer in front.
    """
    usual = float(np.median([gain.value for gain in gains.values()])) if gains else 1.0
    spared = {name: usual if _is_unsure(gain) else gain.value for name, gain in gains.items()}
    least = max([*spared.values(), 0.0]) / 1000 or 1.0
    return sorted(costs, key=lambda name: -costs[name] / max(spared.get(name, 1.0), least))


def _is_unsure(gain: Estimate) -> bool:
    return gain.low is None or gain.high is None or gain.low <= 0 <= gain.high


def _fewest(order: Sequence[str], gains: Mapping[str, Estimate], holds: Holds) -> tuple[str, ...]:
    """Return a choice that holds, or all but the last, which one layer at least must be: the rest is no int8 file.

    Keeping none is known not to hold.
    """
    low, high = 0, len(order) - 1
    if high < 1 or not holds(tuple(order[:high])):
        return tuple(order[:high])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(tuple(order[:middle])) else (middle, high)
    return _given_back(tuple(order[:high]), gains, holds)


def _given_back(keep: tuple[str, ...], gains: Mapping[str, Estimate], holds: Holds) -> tuple[str, ...]:
    """Put layers back into integers as far as the rest holds, those first that spare most; none that is slower so."""
    able = [name for name in keep if not slower(gains, name)]
    for name in sorted(able, key=lambda name: -gains[name].value if name in gains else 0.0):
        fewer = tuple(one for one in keep if one != name)
        if fewer and holds(fewer):
            keep = fewer
    return keep


def _row(layers: QuantLayers, name: str, cost: float, gain: Estimate | None, kept: bool) -> LayerChoice:
    measured = (None, None, None) if gain is None else (gain.value, gain.low, gain.high)
    return LayerChoice(name, layers.module(name), cost, measured[0], kept, *measured[1:])


def _tell(told: Told, what: str, share: float) -> None:
    begin, end = _SPANS[what]
    told(what, begin + share * (end - begin))


__all__ = ["Judging", "LayerChoice", "MixedPrecision", "search"]
