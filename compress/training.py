"""The loop that trains a captured graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..models.errors import ToolFailed
from ..models.graph import aten, set_training, shape_of

Batch = tuple[Tensor, Any]
LossOf = Callable[[Any, Any], Tensor]
"""From what the graph gives and the batch's target to a scalar loss."""


@dataclass(frozen=True)
class Schedule:
    """SGD with Nesterov momentum under a one-cycle learning rate (Smith 2018), over a fixed number of steps.

    Gradients whose norm is above `most_gradient` are scaled down to it.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    momentum: float = 0.9
    warm_up: float = 0.15
    most_gradient: float = math.inf


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
    layout = lay_out(module)
    set_training(module, True)
    for step, (x, target) in zip(range(schedule.steps), batches, strict=False):
        loss = loss_of(module(laid_out(x, layout)), target)
        value = loss.item()
        if not torch.isfinite(loss):
            raise ToolFailed(f"the loss is {value} at step {step + 1} of {schedule.steps}; lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if schedule.most_gradient < math.inf:
            torch.nn.utils.clip_grad_norm_(module.parameters(), schedule.most_gradient)
        optimizer.step()
        rate.step()
        losses.append(value)
        if report:
            report(step + 1, schedule.steps)
    set_training(module, False)
    module.to(memory_format=torch.contiguous_format)
    return losses


def lay_out(module: GraphModule) -> torch.memory_format:
    """Put a graph's kernels into the layout that runs fastest, in place, and return the layout for its inputs.

    That is channels last; but a `view` of a convolution's result works only in the layout that it was captured in, and
    some convolutions are broken in the other.
    """
    views = any(node.target is aten.view.default for node in module.graph.nodes)
    flat = all(p.ndim <= 4 for p in module.parameters())
    images = any(p.ndim == 4 for p in module.parameters())
    broken = any(_breaks_channels_last(node) for node in module.graph.nodes)
    layout = torch.channels_last if images and flat and not views and not broken else torch.contiguous_format
    module.to(memory_format=layout)
    return layout


def _breaks_channels_last(node: Node) -> bool:
    """Whether this is a strided 1 x 1 convolution of fewer than 8 channels.

    Its backward pass in channels last writes beyond its memory on CPUs (seen in torch 2.14 on AVX2: heap corruption for
    2 to 6 input channels, never for 8 or more, with another kernel or in another layout).
    """
    if node.target != aten.conv2d.default:
        return False
    weight = shape_of(node.args[1]) if isinstance(node.args[1], Node) else None
    stride: Any = node.args[3] if len(node.args) > 3 else (1, 1)
    return weight is not None and tuple(weight[2:]) == (1, 1) and max(stride) > 1 and bool(weight[1] < 8)


def laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return inputs in a layout; only images `(batch, channels, height, width)` have a choice."""
    return x.contiguous(memory_format=layout) if x.ndim == 4 else x


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
