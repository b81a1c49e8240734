"""Quantization-aware training: a captured graph learns with the rounding of its int8 file in it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from ..models.data import Dataset
from ..models.errors import BadInput
from ..models.model import Model
from .distill_data import teacher_batches
from .distill_loss import SoftTarget, soft_target_loss
from .facts import learns_from
from .lessons import Lessons, keep_in
from .optimizers import Schedule
from .passes import Context
from .qat_nodes import finish, insert
from .qat_places import find_places
from .qat_prepare import prepared
from .qat_ranges import start_ranges
from .sparsity import zeros_held
from .training import Extras, LossOf, train

if TYPE_CHECKING:
    from .quantize import Quantize

MOST_GRADIENT = 1.0
"""Without batch norms one batch can throw a network out of its minimum: no gradient is longer than this."""

FROZEN_AFTER = 0.5
"""The share of the steps after which moving averages of ranges stand still: the weights then settle on fixed grids."""


def train_quantized(
    settings: Quantize, model: Model, context: Context, data: Dataset, examples: tuple[Tensor, ...]
) -> tuple[Model, dict[str, Any]]:
    """Return a model that learnt under fake quantization, with its grids in the graph, and facts.

    Batch norms are folded first, so that what is rounded in training are the weights of the file.

    Args:
        settings: of the pass; `steps` is at least 1.
        model: left as it is.
        context: the teacher, and who is told of progress.
        data: to learn from.
        examples: of each input, that the first ranges are of.

    Raises:
        BadInput: the model and the data do not go together, or nothing in the model would compute in integers.
        ToolFailed: the loss became infinite or not a number.
    """
    for one in (model, *context.teachers):
        learns_from(one, data)
    student = prepared(model)
    places = find_places(student, settings.keep_float)
    if not places.weights:
        raise BadInput(
            "nothing to train: the model has no convolution and no linear layer with weights that keep_float leaves"
        )
    ranges = start_ranges(student, places, examples, settings.method)
    inserted = insert(student.module, places, ranges, settings.weight_bits or 7, settings.learn_steps)

    def after_step(done: int, total: int) -> None:
        inserted.settle(done >= FROZEN_AFTER * total)
        if context.report:
            context.report(done, total)

    lessons = Lessons(settings, data, 1.0, replace(context.around, autocast="off"))
    schedule = Schedule(settings.steps, settings.learning_rate, settings.weight_decay, most_gradient=MOST_GRADIENT)
    keep = keep_in(context.keep, (model, *context.teachers), settings, data.fingerprint)
    extras = Extras(keep=keep, said_of=lessons.said_of, around=lessons.around)
    teachers = teacher_batches(lessons, context.teachers, settings.reuse) if context.teachers else nullcontext(lessons)
    with zeros_held(student), teachers as batch_at:
        loss_of = _by_teacher(settings) if context.teachers else _by_labels
        found = train(student.module, batch_at, loss_of, schedule, after_step, extras)
    finish(student.module, inserted)
    return student, {
        "steps": settings.steps,
        "learns_from": "labels" if context.teacher is None else "teacher",
        "grids": len(places.sites),
        "rounded_weights": len(inserted.weights),
        "first_loss": round(found.losses[0], 4),
        "last_loss": round(found.last_loss, 4),
    }


def _by_labels(scores: Tensor, labels: Tensor, step: int) -> Tensor:
    return F.cross_entropy(scores, labels)


def _by_teacher(settings: Quantize) -> LossOf:
    def loss_of(found: tuple[Tensor, tuple[Tensor, ...]] | Tensor, target: SoftTarget, step: int) -> Tensor:
        scores = found[0] if isinstance(found, tuple) else found
        return soft_target_loss(scores, target, settings.temperature, settings.alpha, settings.distance)

    return loss_of


__all__ = ["train_quantized"]
