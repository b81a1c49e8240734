"""Optimizers and their learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

OptimizerName = Literal["sgd", "adamw"]
Shape = Literal["one-cycle", "cosine", "constant"]
Group = Mapping[str, Any]
"""`params`, and, where they differ from the schedule's, `lr_factor` and `weight_decay`."""

_LEAST = 1e-2
"""Of the peak, what the cosine ends at, so that the last steps still learn."""


@dataclass(frozen=True)
class Schedule:
    """How weights move over a fixed number of steps.

    Attributes:
        steps: of the optimizer.
        learning_rate: its peak.
        weight_decay: on kernels alone: decaying norms and biases harms (He et al. 2019, "Bag of Tricks").
        momentum: Nesterov's, of `sgd`; AdamW's first beta is 0.9 whatever it is.
        warm_up: the share of the steps in which the rate rises.
        most_gradient: a longer gradient is scaled down to this norm.
        optimizer: `sgd`, or `adamw` (Loshchilov and Hutter 2019).
        shape: `one-cycle` (Smith 2018), `cosine` after a straight rise (Loshchilov and Hutter 2017; Goyal et al. 2017),
            or `constant` after it.
        ema: decay of the weights' moving average, which is what training ends with (Polyak and Juditsky 1992); 0: off.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    momentum: float = 0.9
    warm_up: float = 0.15
    most_gradient: float = math.inf
    optimizer: OptimizerName = "sgd"
    shape: Shape = "one-cycle"
    ema: float = 0.0


def optimizer_of(
    module: nn.Module, schedule: Schedule, groups: Sequence[Group] | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer of a module's parameters, or of `groups` of them, and what moves its learning rate."""
    made = [_group(one, schedule) for one in groups or kernels_and_others(module.parameters(), schedule.weight_decay)]
    optimizer: torch.optim.Optimizer
    if schedule.optimizer == "adamw":
        optimizer = torch.optim.AdamW(made, lr=schedule.learning_rate, foreach=True)
    else:
        optimizer = torch.optim.SGD(
            made, lr=schedule.learning_rate, momentum=schedule.momentum, nesterov=schedule.momentum > 0, foreach=True
        )
    if schedule.shape == "one-cycle":
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [one["lr"] for one in made], total_steps=schedule.steps + 1, pct_start=schedule.warm_up,
            cycle_momentum=False,
        )  # fmt: skip
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_factor, schedule))


def kernels_and_others(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """Return two groups: weights of two and more dimensions, which decay, and the rest, which do not."""
    given = list(parameters)
    kernels, others = [p for p in given if p.ndim > 1], [p for p in given if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _group(group: Group, schedule: Schedule) -> dict[str, Any]:
    return {
        "params": list(group["params"]),
        "lr": schedule.learning_rate * group.get("lr_factor", 1.0),
        "weight_decay": group.get("weight_decay", schedule.weight_decay),
    }


def _factor(schedule: Schedule, step: int) -> float:
    """Return the share of the peak rate at a step."""
    rise = schedule.warm_up * schedule.steps
    if step < rise:
        return (step + 1) / (rise + 1)
    if schedule.shape == "constant":
        return 1.0
    done = (step - rise) / max(1.0, schedule.steps - rise)
    return _LEAST + (1 - _LEAST) * (1 + math.cos(math.pi * min(1.0, done))) / 2


__all__ = ["Group", "OptimizerName", "Schedule", "Shape", "kernels_and_others", "optimizer_of"]
