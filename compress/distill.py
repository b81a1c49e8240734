"""Recovery by distillation: the compressed model learns from the uncompressed one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.errors import BadInput
from .learning import Learning
from .passes import SETTINGS, Context, need_data

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.model import Model
    from .distill_loss import SoftTarget
    from .training import LossOf

DistanceName = Literal["kl", "js", "mse", "dkd", "dist"]

ORIGINAL, ITSELF = "original", "self"


@final
@dataclass(frozen=True, config=SETTINGS)
class Distill(Learning):
    """Train the model on the teacher's softened outputs and on the labels (Hinton et al. 2015).

    The loss is `alpha * distance(teacher, student) + (1 - alpha) * cross-entropy`. Zeros of weights that the sparsify
    pass made sparse stay zero. The settings of `Learning` are there too. `mixup` is 1 for images unless it is given:
    the teacher says what a blend is, so that few images teach much (Beyer et al. 2022, "function matching").

    Attributes:
        teachers: who teaches: `original`, the uncompressed model; `self`, the model as it comes to this pass
            (Furlanello et al. 2018, "Born-again networks"); or a model's source, as under `model.source`. The scores
            of several are averaged.
        distance: between the two distributions: `kl` (Hinton et al. 2015), `js` (Jensen and Shannon), `mse` of logits,
            `dkd` (Zhao et al. 2022) or `dist` (Huang et al. 2022); see `distances`.
        temperature: scores are divided by it; higher values show more of how the teacher ranks the wrong classes.
        alpha: the weight of the teacher against the labels, in 0 to 1.
        alpha_end: the weight in the last step; it goes there in a straight line. None: it stays.
        beta: how much the classes beside the target count, for `dkd`.
        features: how much the student's features count, by the path of the module that gives them (`layer1: 1.0`).
            None: scores alone.
        feature_distance: `fitnets` compares features through learnt linear maps, by their squared difference relative
            to the teacher's variance (Romero et al. 2015; here all the time and beside the scores); `attention`
            compares where they are large, whatever their channels (Zagoruyko and Komodakis 2017).
        attentions: how much the scores of a transformer's attention count, by the path of the module that has it (Jiao
            et al. 2020, "TinyBERT"); its hidden states are `features`.
        reuse: steps for each batch that the teacher judges. The teacher is the larger network, so most of the time goes
            into it; blended images wear out slowly. 1: a new batch every step.
    """

    teachers: Annotated[tuple[str, ...], MinLen(1)] = (ORIGINAL,)
    distance: DistanceName = "kl"
    temperature: Annotated[float, Gt(0)] = 4.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9
    alpha_end: Annotated[float, Ge(0), Le(1)] | None = None
    beta: Annotated[float, Ge(0)] = 8.0
    features: dict[str, Annotated[float, Gt(0)]] = Field(default_factory=dict)
    feature_distance: Literal["fitnets", "attention"] = "fitnets"
    attentions: dict[str, Annotated[float, Gt(0)]] = Field(default_factory=dict)
    reuse: Annotated[int, Ge(1)] = 3

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from .distill_data import Shown, teacher_batches
        from .facts import learns_from
        from .features import mapped, shown
        from .lessons import Lessons, extras_of, held_out, keep_in, steps_of
        from .sparsity import zeros_held
        from .training import train

        data, held = held_out(need_data(context, "to learn from"), self.validation, self.seed)
        teachers = self._teachers(model, context)
        for one in (model, *teachers):
            learns_from(one, data)
        steps, student = steps_of(self, data), model.copy()
        lessons = Lessons(self, data, 1.0, context.around)
        paths, attentions = tuple(self.features), tuple(self.attentions)
        inside = Shown(paths, self.feature_distance == "attention", attentions)
        with ExitStack() as stack:
            batch_at = stack.enter_context(teacher_batches(lessons, teachers, self.reuse, inside))
            stack.enter_context(zeros_held(student))
            if self.feature_distance == "fitnets" and paths:
                x, target = batch_at(0)
                wanted = target.features[: len(paths)]
                stack.enter_context(mapped(student.module, paths, x, wanted, attentions))
            else:
                stack.enter_context(shown(student.module, paths, attentions))
            keep = keep_in(context.keep, (model, *teachers), self, data.fingerprint)
            extras = extras_of(self, lessons, held, steps, keep)
            found = train(student.module, batch_at, self._loss(steps), self.plan(steps), context.report, extras)
        return student, self.facts(found, steps, data)

    def _teachers(self, model: Model, context: Context) -> list[Model]:
        """Return who teaches.

        Raises:
            BadInput: there is no uncompressed model, or a source cannot be loaded.
        """
        from ..models.sources import load

        made: list[Model] = []
        for name in self.teachers:
            if name == ORIGINAL and not context.teachers:
                raise BadInput("needs a teacher: pass `teacher=` (in a recipe: the uncompressed model)")
            made += context.teachers if name == ORIGINAL else [model if name == ITSELF else load(name)]
        return made

    def _loss(self, steps: int) -> LossOf:
        """Return the loss of a batch."""
        from .attention_maps import attention_map_loss
        from .attention_transfer import attention_loss
        from .distill_loss import soft_target_loss
        from .features import feature_loss

        last, count = self.alpha if self.alpha_end is None else self.alpha_end, len(self.features)
        compare = feature_loss if self.feature_distance == "fitnets" else attention_loss

        def loss_of(found: tuple[Tensor, tuple[Tensor, ...]], target: SoftTarget, step: int) -> Tensor:
            alpha = self.alpha + (last - self.alpha) * step / max(1, steps - 1)
            loss = soft_target_loss(found[0], target, self.temperature, alpha, self.distance, self.beta)
            if self.features:
                loss = loss + compare(found[1][:count], target.features[:count], self.features)
            if self.attentions:
                loss = loss + attention_map_loss(found[1][count:], target.features[count:], self.attentions)
            return loss

        return loss_of
