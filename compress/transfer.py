"""Adapt a pretrained model to the data's classes and colours, by fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from annotated_types import Ge, Gt, Le
from pydantic import Field
from pydantic.dataclasses import dataclass

from .learning import Learning, Share
from .passes import SETTINGS, Context, need_data

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.data import Dataset
    from ..models.model import Model


@final
@dataclass(frozen=True, config=SETTINGS)
class Transfer(Learning):
    """Give the model the data's classes and colours, and train it on the labels.

    The loss is the cross-entropy plus a penalty on the weights. The settings of `Learning` are there too, with AdamW
    under a cosine.

    Attributes:
        head: `new` draws the last layer anew, `keep` leaves it; `auto` draws it where the classes differ in number.
        stem: `auto` fits the first convolution to grey or colour images, `keep` leaves it.
        freeze: patterns of parameters that do not learn (`layer1.*`).
        thaw: from which share of the steps parameters learn, by their pattern.
        layer_decay: the rate falls by this factor with each layer away from the head (Clark et al. 2020, "ELECTRA").
        head_rate: factor on the new head's rate.
        batch_norm: `frozen` leaves statistics as they are, and uses them in training.
        regularize: `l2`, `l2-sp` (Li et al. 2018: pretrained weights are pulled to where they were) or `none`.
        strength: of that penalty on pretrained weights.
        head_strength: of that penalty on the new head, for `l2-sp`.
    """

    adapts: ClassVar[bool] = True

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    schedule: Literal["one-cycle", "cosine", "constant"] = "cosine"
    head: Literal["auto", "keep", "new"] = "auto"
    stem: Literal["auto", "keep"] = "auto"
    freeze: tuple[str, ...] = ()
    thaw: dict[str, Share] = Field(default_factory=dict)
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    head_rate: Annotated[float, Gt(0)] = 1.0
    batch_norm: Literal["train", "frozen"] = "train"
    regularize: Literal["l2", "l2-sp", "none"] = "none"
    strength: Annotated[float, Ge(0)] = 0.01
    head_strength: Annotated[float, Ge(0)] = 0.01

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from .facts import learns_from
        from .lessons import Lessons, extras_of, held_out, keep_in, steps_of
        from .thawing import groups_of, thawing
        from .training import train

        data, held = held_out(need_data(context, "to learn from"), self.validation, self.seed)
        student, drawn = self._fitted(model, data)
        learns_from(student, data)
        steps, lessons = steps_of(self, data), Lessons(self, data, around=context.around)
        groups = groups_of(self, student.module, drawn)
        extras = extras_of(
            self, lessons, held, steps, keep_in(context.keep, (student,), self, data.fingerprint),
            groups=groups, on_step=thawing(self, student.module, steps),
        )  # fmt: skip
        found = train(student.module, lessons, self._loss(student, drawn), self.plan(steps), context.report, extras)
        student.module.requires_grad_(True)
        return student, self.facts(found, steps, data) | {"drawn": list(drawn)}

    def _fitted(self, model: Model, data: Dataset) -> tuple[Model, tuple[str, ...]]:
        """Return a copy with the data's classes and colours, and the names of the weights that were drawn."""
        from ..models.graph import get_tensor
        from .heads import find_head, new_head
        from .stems import find_stem, other_colours

        classes, drawn = len(data.classes), tuple[str, ...]()
        instead: dict[str, Tensor] = {}
        if self.head == "new" or (self.head == "auto" and model.outputs[0].shape[-1] != classes):
            instead = new_head(model.module, find_head(model.module), classes, self.seed)
            drawn = tuple(instead)
        images = model.inputs[0].shape
        if self.stem == "auto" and len(images) == 4 and images[1] != data.input_shape[0]:
            name = find_stem(model.module)
            instead = {**instead, name: other_colours(get_tensor(model.module, name).detach(), data.input_shape[0])}
        made = model.copy(instead)
        if not instead:
            return made, drawn
        return made.recaptured(self._examples(model, data)), drawn

    def _examples(self, model: Model, data: Dataset) -> Any:
        import torch

        if len(model.example_inputs) != 1 or model.example_inputs[0].ndim != 4:
            return model.example_inputs
        old = model.example_inputs[0]
        generator = torch.Generator().manual_seed(0)
        return (torch.rand(old.shape[0], data.input_shape[0], *old.shape[2:], generator=generator),)

    def _loss(self, student: Model, drawn: tuple[str, ...]) -> Any:
        import torch.nn.functional as F

        from .pull import l2, l2_sp

        weights = dict(student.module.named_parameters())
        start = {name: value.detach().clone() for name, value in weights.items()}

        def loss_of(scores: Any, target: Any, step: int) -> Any:
            loss = F.cross_entropy(scores, target)
            if self.regularize == "l2":
                return loss + l2(list(weights.values()), self.strength)
            if self.regularize == "l2-sp":
                return loss + l2_sp(weights, start, drawn, self.strength, self.head_strength)
            return loss

        return loss_of


__all__ = ["Transfer"]
