"""Quantization-aware training: a captured graph learns with the rounding of its int8 file in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from ..models.data import Dataset
from ..models.errors import BadInput
from ..models.model import Model
from .distill import Distill
from .distill_data import labelled_batches, teacher_batches
from .distill_loss import SoftTarget, soft_target_loss
from .facts import learns_from
from .passes import Context
from .qat_nodes import finish, insert
from .qat_places import find_places
from .qat_prepare import prepared
from .qat_ranges import start_ranges
from .sparsity import zeros_held
from .training import Batch, LossOf, Schedule, train

if TYPE_CHECKING:
    from .quantize import Quantize

MOST_GRADIENT = 1.0
"""Without batch norms one batch can throw a network out of its minimum: no gradient is longer than this."""

FROZEN_AFTER = 0.5
"""The share of the steps after which moving averages of ranges stand still: the weights then settle on fixed grids."""


def train_quantized(
    settings: Quantize, model: Model, context: Context, data: Dataset, examples: Tensor
) -> tuple[Model, dict[str, Any]]:
    """Return a model that learnt under fake quantization, with its grids in the graph, and facts.

    Batch norms are folded first, so that what is rounded in training are the weights of the file.

    Args:
        settings: of the pass; `steps` is at least 1.
        model: left as it is.
        context: the teacher, and who is told of progress.
        data: to learn from.
        examples: inputs that the first ranges are of.

    Raises:
        BadInput: the model and the data do not go together, or nothing in the model would compute in integers.
        ToolFailed: the loss became infinite or not a number.
    """
    for one in (model, context.teacher):
        if one is not None:
            learns_from(one, data)
    student = prepared(model)
    places = find_places(student, settings.keep_float)
    if not places.weights:
        raise BadInput(
            "nothing to train: the model has no convolution and no linear layer with weights that keep_float leaves"
        )
    ranges = start_ranges(student, places, (examples,), settings.method)
    inserted = insert(student.module, places, ranges, settings.weight_bits or 7, settings.learn_steps)

    def after_step(done: int, total: int) -> None:
        inserted.settle(done >= FROZEN_AFTER * total)
        if context.report:
            context.report(done, total)

    batches, loss_of = _lessons(settings, data, context.teacher)
    schedule = Schedule(settings.steps, settings.learning_rate, settings.weight_decay, most_gradient=MOST_GRADIENT)
    with zeros_held(student):
        losses = train(student.module, batches, loss_of, schedule, after_step)
    finish(student.module, inserted)
    tail = losses[-max(1, settings.steps // 20) :]
    return student, {
        "steps": settings.steps,
        "learns_from": "labels" if context.teacher is None else "teacher",
        "grids": len(places.sites),
        "rounded_weights": len(inserted.weights),
        "first_loss": round(losses[0], 4),
        "last_loss": round(sum(tail) / len(tail), 4),
    }


def _lessons(settings: Quantize, data: Dataset, teacher: Model | None) -> tuple[Iterator[Batch], LossOf]:
    """Return batches and their loss: a teacher's judgement and the labels, or the labels alone."""
    lessons = Distill(
        steps=settings.steps, temperature=settings.temperature, alpha=settings.alpha, batch=settings.batch,
        reuse=settings.reuse, flip=settings.flip, shift=settings.shift, mixup=settings.mixup, seed=settings.seed,
    )  # fmt: skip
    if teacher is None:
        return labelled_batches(lessons, data, settings.steps), F.cross_entropy

    def loss_of(scores: Tensor, target: SoftTarget) -> Tensor:
        return soft_target_loss(scores, target, settings.temperature, settings.alpha)

    return teacher_batches(lessons, data, teacher, settings.steps), loss_of


__all__ = ["train_quantized"]
