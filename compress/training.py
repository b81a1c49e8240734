"""The loop that trains a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..models.errors import ToolFailed
from ..models.graph import set_training

Batch = tuple[Tensor, Any]
LossOf = Callable[[Tensor, Any], Tensor]
"""From the model's output and the batch's target to a scalar loss."""


@dataclass(frozen=True)
class Schedule:
    """SGD with Nesterov momentum under a one-cycle learning rate (Smith 2018), over a fixed number of steps."""

    steps: int
    learning_rate: float
    weight_decay: float
    momentum: float = 0.9
    warm_up: float = 0.15


def train(
    module: GraphModule,
    batches: Iterable[Batch],
    loss_of: LossOf,
    schedule: Schedule,
    report: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train a captured graph in place and leave it in evaluation mode.

    Args:
        module: the graph; its parameters change.
        batches: `(inputs, target)`, at least `schedule.steps` of them.
        loss_of: the loss of one batch.
        schedule: the optimizer's settings.
        report: called as `report(done, total)` after every step.

    Returns:
        The loss of every step.

    Raises:
        ToolFailed: the loss became infinite or not a number; the step is named.
    """
    optimizer, rate = _optimizer(module, schedule)
    losses: list[float] = []
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types this by keyword only
    set_training(module, True)
    for step, (x, target) in zip(range(schedule.steps), batches, strict=False):
        loss = loss_of(module(x.contiguous(memory_format=_layout(x))), target)
        value = loss.item()
        if not torch.isfinite(loss):
            raise ToolFailed(f"the loss is {value} at step {step + 1} of {schedule.steps}; lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        rate.step()
        losses.append(value)
        if report:
            report(step + 1, schedule.steps)
    set_training(module, False)
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as above
    return losses


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format


def _optimizer(
    module: GraphModule, schedule: Schedule
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Weight decay holds for kernels only: decaying norms and biases harms (He et al. 2019, "Bag of Tricks")."""
    kernels = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=schedule.momentum, nesterov=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=schedule.steps + 1, pct_start=schedule.warm_up,
        cycle_momentum=False,
    )  # fmt: skip
    return optimizer, rate
