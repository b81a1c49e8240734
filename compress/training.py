"""The loop that trains a captured graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..models.errors import ToolFailed
from ..models.graph import aten, set_training, shape_of
from .averaging import Average
from .optimizers import Group, Schedule, optimizer_of
from .surroundings import HERE, Surroundings
from .synced_norms import norms_together
from .training_state import Keep

Inputs = tuple[Tensor, ...]
Batch = tuple[Inputs, Any]
BatchAt = Callable[[int], Batch]
"""From a step to the model's inputs, in order, and the target. A pure function: the same step gives the same batch."""

LossOf = Callable[[Any, Any, int], Tensor]
"""From what the graph gives, the batch's target and the step to a scalar loss."""


@dataclass(frozen=True)
class Judging:
    """How training is judged on the way: the best weights are kept.

    Attributes:
        score: of the graph in evaluation mode, higher is better.
        every: steps between two judgements; the last step is judged too.
        patience: judgements without gain after which training stops; None: it goes on to the end.
    """

    score: Callable[[GraphModule], float]
    every: int
    patience: int | None = None


@dataclass(frozen=True)
class Extras:
    """What training may have beside batches and a loss.

    Attributes:
        groups: parameters that learn, with their own rates and decays; None: all.
        judging: on held-out examples.
        keep: where the unfinished state is kept.
        on_step: called before every step.
        said_of: names the examples of a step, for the message about a loss that is not finite.
        around: the device, the processes, and who is told of each step.
    """

    groups: Sequence[Group] | None = None
    judging: Judging | None = None
    keep: Keep | None = None
    on_step: Callable[[int], object] | None = None
    said_of: Callable[[int], str] | None = None
    around: Surroundings = HERE


@dataclass(frozen=True)
class Trained:
    """What came of training: the loss of every step, and the scores of judgements by their step."""

    losses: list[float]
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def best_step(self) -> int | None:
        """The steps done when the score was best; None where nobody judged."""
        return max(self.scores, key=lambda step: (self.scores[step], -step)) if self.scores else None

    @property
    def last_loss(self) -> float:
        """The mean loss of the last twentieth of the steps."""
        tail = self.losses[-max(1, len(self.losses) // 20) :]
        return sum(tail) / len(tail)


def train(
    module: GraphModule,
    batch_at: BatchAt,
    loss_of: LossOf,
    schedule: Schedule,
    report: Callable[[int, int], None] | None = None,
    extras: Extras | None = None,
) -> Trained:
    """Train a captured graph in place and leave it in evaluation mode.

    Args:
        module: the graph; its parameters change.
        batch_at: `(inputs, target)` of a step.
        loss_of: the loss of one batch.
        schedule: the optimizer's settings.
        report: called as `report(done, total)` after every step.
        extras: what else there is; `keep` makes a killed run end with the very weights of one that was not killed.

    Raises:
        ToolFailed: a loss or a gradient became infinite or not a number; the step and its examples are named, and the
            graph keeps the weights from before that step.
    """
    extras = extras or Extras()
    layout, around = lay_out(module), extras.around
    module.to(around.device)
    run = _Run(module, schedule, extras)
    with ExitStack() as stack:
        stack.callback(_put_back, module)
        stack.enter_context(norms_together(module, around.crew))
        for step in range(run.resumed(), schedule.steps):
            if run.tired:
                break
            if extras.on_step:
                extras.on_step(step)
            inputs, target = moved(batch_at(step), around.device)
            with around.precision():
                loss = loss_of(module(*(laid_out(x, layout) for x in inputs)), target, step)
            run.step(step, loss, len(inputs[0]))
            if report:
                report(step + 1, schedule.steps)
        run.finish()
    return Trained(run.losses, run.scores)


def _put_back(module: GraphModule) -> None:
    set_training(module, False)
    module.to("cpu")
    module.to(memory_format=torch.contiguous_format)


def moved(value: Any, device: str) -> Any:
    """Return tensors, in tuples and dataclasses too, on a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(moved(one, device) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: moved(getattr(value, one.name), device) for one in fields(value)})
    return value


class _Run:
    """One training: its optimizer, average, best weights, and what was seen so far."""

    def __init__(self, module: GraphModule, schedule: Schedule, extras: Extras) -> None:
        self._module, self._schedule, self._extras = module, schedule, extras
        self._optimizer, self._rate = optimizer_of(module, schedule, extras.groups)
        self._learning = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._average = Average(module, schedule.ema) if schedule.ema else None
        self._crew = extras.around.crew
        device = extras.around.device.partition(":")[0]
        self._scaler = torch.amp.GradScaler(device, enabled=extras.around.autocast == "fp16")
        self._best: dict[str, Tensor] | None = None
        # A forward pass moves them before its loss is known.
        self._statistics = [value for value in module.buffers() if value.is_floating_point()]
        self._good = [value.clone() for value in self._statistics]
        self.losses: list[float] = []
        self.scores: dict[int, float] = {}
        set_training(module, True)

    @property
    def tired(self) -> bool:
        """Whether the last judgements brought no gain."""
        judging = self._extras.judging
        if judging is None or judging.patience is None or not self.scores:
            return False
        scores = list(self.scores.values())
        return len(scores) - 1 - scores.index(max(scores)) >= judging.patience

    def resumed(self) -> int:
        """Return the first step that is to be done."""
        keep = self._extras.keep
        state = self._crew.from_first(keep.read) if keep else None
        if state is None:
            return 0
        self._module.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rate.load_state_dict(state["rate"])
        if self._average:
            self._average.load(state["average"])
        self._scaler.load_state_dict(state["scaler"])
        self._best, self.losses, self.scores = state["best"], state["losses"], state["scores"]
        if self._statistics:
            torch._foreach_copy_(self._good, self._statistics)
        return len(self.losses)

    def step(self, step: int, loss: Tensor, count: int) -> None:
        """Move the weights against the gradient of a loss, the mean over so many examples of this process."""
        share, value = self._shared(loss, count)
        self._refuse(math.isfinite(value), f"the loss is {value}", step)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss * share if share != 1 else loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients = [p.grad for p in self._learning if p.grad is not None]
        self._crew.add_up(gradients)
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        # With scaled losses a gradient that is too long is no fault: the step is left out, and the scale halved.
        finite = math.isfinite(norm.item())
        self._refuse(finite or self._scaler.get_scale() > 1, f"the gradient's length is {norm.item()}", step)
        if finite and norm > self._schedule.most_gradient:
            torch._foreach_mul_(gradients, self._schedule.most_gradient / float(norm))
        rate = float(self._rate.get_last_lr()[-1])
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._rate.step()
        if self._average:
            self._average.update()
        self.losses.append(value)
        if self._statistics:
            torch._foreach_copy_(self._good, self._statistics)
        self._after(step + 1, {"loss": value, "learning_rate": rate})

    def _shared(self, loss: Tensor, count: int) -> tuple[float, float]:
        """Return this process's share of the batch, and the loss of the whole batch."""
        if self._crew.alone:
            return 1.0, loss.item()
        sums = torch.stack([loss.detach().float() * count, torch.tensor(float(count), device=loss.device)])
        self._crew.add_up([sums])
        return count / float(sums[1]), float(sums[0] / sums[1])

    def finish(self) -> None:
        """Give the graph its last weights: the best, or the average, or those it has."""
        if self._best is not None:
            self._module.load_state_dict(self._best)
        elif self._average:
            self._average.apply()
        if self._extras.keep and self._crew.rank == 0:
            self._extras.keep.remove()

    def _after(self, done: int, values: dict[str, float]) -> None:
        judging, keep, log = self._extras.judging, self._extras.keep, self._extras.around.log
        if judging and (done % judging.every == 0 or done == self._schedule.steps):
            values["score"] = self._judged(judging, done)
        if log:
            log(done, values)
        if keep and self._crew.rank == 0 and done % keep.every == 0 and done < self._schedule.steps:
            keep.write(self._state())

    def _judged(self, judging: Judging, done: int) -> float:
        shown: AbstractContextManager[None] = self._average.shown() if self._average else nullcontext()
        set_training(self._module, False)
        with shown, torch.no_grad():
            score = judging.score(self._module)
            if not self.scores or score > max(self.scores.values()):
                self._best = {name: value.detach().clone() for name, value in self._module.state_dict().items()}
        set_training(self._module, True)
        self.scores[done] = score
        return score

    def _state(self) -> dict[str, Any]:
        return {
            "weights": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rate": self._rate.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.state() if self._average else None,
            "best": self._best,
            "losses": self.losses,
            "scores": self.scores,
        }

    def _refuse(self, finite: bool, said: str, step: int) -> None:
        if finite:
            return
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._good)
        batch = f" ({self._extras.said_of(step)})" if self._extras.said_of else ""
        where = ""
        if self._extras.keep and self._crew.rank == 0:
            self._extras.keep.write(self._state())
            where = f"; the weights before it are kept in {self._extras.keep.path}"
        raise ToolFailed(f"{said} at step {step + 1} of {self._schedule.steps}{batch}; lower learning_rate{where}")


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
