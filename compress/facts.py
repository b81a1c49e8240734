"""What a pass did to a model, in numbers, and the check that it kept the model's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..models.data import NOUNS
from ..models.data_fit import misfit
from ..models.errors import BadInput, ToolFailed
from ..models.model import Model
from ..models.summary import summarize

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.data import Dataset


def count(model: Model) -> dict[str, int]:
    """Return `params`, `macs` (per example) and `weight_bytes` of a model."""
    summary = summarize(model)
    stored = sum(t.numel() * t.element_size() for t in model.module.state_dict().values())
    return {"params": summary.params, "macs": summary.macs, "weight_bytes": stored}


def learns_from(model: Model, data: Dataset) -> None:
    """Check that a model can be trained on labelled examples.

    Raises:
        BadInput: it takes other inputs than the data gives, or does not give one score for each class.
    """
    takes, gives = [spec.shape[1:] for spec in model.inputs], [spec.shape[1:] for spec in model.outputs]
    if misfit(model, data) or gives != [(len(data.classes),)]:
        raise BadInput(
            f"the model maps {takes} to {gives}, the data {data.name!r} has {NOUNS[data.task]}s {data.input_shapes[0]} "
            f"of {len(data.classes)} classes; choose data that fit the model"
        )


def takes_inputs_of(model: Model, data: Dataset) -> None:
    """Check that a model's inputs are the data's.

    Raises:
        BadInput: they are not.
    """
    takes = [spec.shape[1:] for spec in model.inputs]
    if fault := misfit(model, data):
        raise BadInput(f"the model takes {takes}, the data {data.name!r} {data.input_shapes[0]}: {fault}")


def training_inputs(model: Model, data: Dataset, count: int, seed: int) -> tuple[Tensor, ...]:
    """Return the inputs `(count, ...)`, in order, of training examples drawn by `seed`.

    Raises:
        BadInput: the model takes other inputs.
    """
    takes_inputs_of(model, data)
    return data.inputs(data.train, data.sample(count, seed))


def same_interface(before: Model, after: Model) -> None:
    """Check that the new model has the old inputs and outputs, and that it runs.

    Raises:
        ToolFailed: a spec differs, or the new graph fails or gives another shape.
    """
    if before.inputs != after.inputs or before.outputs != after.outputs:
        raise ToolFailed(f"the model's interface changed: {before.inputs, before.outputs} -> {after.inputs, after.outputs}")  # fmt: skip # noqa: E501
    try:
        with torch.no_grad():
            found = torch.utils._pytree.tree_leaves(after.module(*after.example_inputs))
    except RuntimeError as fault:
        raise ToolFailed(f"the new graph does not run: {fault}") from fault
    for spec, value in zip(after.outputs, found, strict=True):
        wanted = spec.shape[1:] if after.dynamic_batch else spec.shape
        if tuple(value.shape)[-len(wanted) or len(value.shape) :] != wanted:
            raise ToolFailed(f"output {spec.name}: shape {tuple(value.shape)}, wanted {spec.shape}")
