"""Recovery by distillation: the compressed model learns from the uncompressed one."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from annotated_types import Ge, Gt, Le
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.errors import BadInput
from .passes import SETTINGS, Context, Pass, need_data

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.model import Model
    from .distill_loss import SoftTarget
    from .training import LossOf

DistanceName = Literal["kl", "js", "mse", "dkd", "dist"]


@final
@dataclass(frozen=True, config=SETTINGS)
class Distill(Pass):
    """Train the model on the teacher's softened outputs and on the labels (Hinton et al. 2015).

    The loss is `alpha * distance(teacher, student) + (1 - alpha) * cross-entropy`. Zeros of weights that the sparsify
    pass made sparse stay zero.

    Attributes:
        epochs: passes over the training examples; give this or `steps`.
        steps: optimizer steps; give this or `epochs`. Equal steps cost equal time whatever the data's size.
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
        learning_rate: the peak of a one-cycle schedule.
        batch: examples a step.
        weight_decay: on weights of two and more dimensions.
        reuse: steps for each batch that the teacher judges. The teacher is the larger network, so most of the time goes
            into it; blended images wear out slowly. 1: a new batch every step.
        flip: mirror half of the images; wrong for text and digits.
        shift: move images by up to so many pixels.
        mixup: blend pairs of images (Zhang et al. 2018); the teacher says what the blend is, so that few images
            teach much (Beyer et al. 2022, "function matching"). The Beta distribution's parameter; 0 is off.
        seed: order of examples and augmentation.
    """

    epochs: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Ge(1)] | None = None
    distance: DistanceName = "kl"
    temperature: Annotated[float, Gt(0)] = 4.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9
    alpha_end: Annotated[float, Ge(0), Le(1)] | None = None
    beta: Annotated[float, Ge(0)] = 8.0
    features: dict[str, Annotated[float, Gt(0)]] = Field(default_factory=dict)
    feature_distance: Literal["fitnets", "attention"] = "fitnets"
    learning_rate: Annotated[float, Gt(0)] = 0.05
    batch: Annotated[int, Ge(2)] = 128
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    reuse: Annotated[int, Ge(1)] = 3
    flip: bool = True
    shift: Annotated[int, Ge(0)] = 2
    mixup: Annotated[float, Ge(0)] = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse two lengths, and none."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from .distill_data import teacher_batches
        from .facts import learns_from
        from .features import mapped, shown
        from .sparsity import zeros_held
        from .training import Schedule, train

        data = need_data(context, "to learn from")
        if context.teacher is None:
            raise BadInput("needs a teacher: pass `teacher=` (in a recipe: the uncompressed model)")
        for one in (model, context.teacher):
            learns_from(one, data)
        steps = self.steps or max(1, round((self.epochs or 0) * len(data.train) / self.batch))
        student, paths = model.copy(), list(self.features)
        batches = teacher_batches(self, data, context.teacher, steps)
        x, target = next(batches)
        comparable = (
            mapped(student.module, paths, x, target.features)
            if self.feature_distance == "fitnets"
            else shown(student.module, paths)
        )
        with zeros_held(student), comparable:
            losses = train(
                student.module,
                chain([(x, target)], batches),
                self._loss(steps),
                Schedule(steps, self.learning_rate, self.weight_decay),
                context.report,
            )
        tail = losses[-max(1, steps // 20) :]
        facts = {
            "steps": steps,
            "epochs": round(steps * self.batch / len(data.train), 2),
            "first_loss": round(losses[0], 4),
            "last_loss": round(sum(tail) / len(tail), 4),
        }
        return student, facts

    def _loss(self, steps: int) -> LossOf:
        """Return the loss of a batch; each call is a step."""
        from .attention_transfer import attention_loss
        from .distill_loss import soft_target_loss
        from .features import feature_loss

        last = self.alpha if self.alpha_end is None else self.alpha_end
        alphas = (self.alpha + (last - self.alpha) * step / max(1, steps - 1) for step in range(steps))
        compare = feature_loss if self.feature_distance == "fitnets" else attention_loss

        def loss_of(found: tuple[Tensor, tuple[Tensor, ...]], target: SoftTarget) -> Tensor:
            loss = soft_target_loss(found[0], target, self.temperature, next(alphas), self.distance, self.beta)
            return loss + compare(found[1], target.features, self.features) if self.features else loss

        return loss_of
