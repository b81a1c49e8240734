"""The settings that every pass has which trains; torch-free, so that recipes are checked without it."""

from __future__ import annotations

import math
from abc import ABC
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.dataclasses import dataclass

from .passes import SETTINGS, Pass

if TYPE_CHECKING:
    from ..models.data import Dataset
    from .optimizers import Schedule
    from .training import Trained

Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, config=SETTINGS)
class Learning(Pass, ABC):
    """How a pass trains.

    Attributes:
        epochs: passes over the training examples; give this or `steps`.
        steps: optimizer steps; give this or `epochs`. Equal steps cost equal time whatever the data's size.
        optimizer: `sgd` with Nesterov momentum, or `adamw` (Loshchilov and Hutter 2019).
        learning_rate: the peak of the schedule.
        schedule: of the learning rate: `one-cycle` (Smith 2018), `cosine` after a straight rise (Loshchilov and Hutter
            2017), or `constant` after it.
        warm_up: the share of the steps in which the rate rises.
        weight_decay: on weights of two and more dimensions.
        clip: longer gradients are scaled down to this norm. None: they are not.
        ema: decay of a moving average of the weights, which is what training ends with; 0: off.
        batch: examples a step.
        flip: mirror half of the images; wrong for text and digits. None: on for images.
        shift: move images by up to so many pixels. None: 2 for images, else 0.
        mixup: blend pairs of examples (Zhang et al. 2018); the Beta distribution's parameter; 0 is off. None: as the
            pass and the task have it.
        cutmix: put a box of one image into another (Yun et al. 2019); the Beta distribution's parameter; 0 is off. With
            `mixup` too, one of the two is drawn for each batch.
        label_smoothing: the share of each label that all classes have alike (Szegedy et al. 2016).
        validation: the share of training examples that is held out of training, to judge it by: the weights that do
            best on it are kept.
        patience: judgements without gain after which training stops; there are twenty in a training. None: it goes on.
        seed: order of examples, augmentation, and what is held out.
    """

    epochs: Annotated[float, Gt(0)] | None = None
    steps: Annotated[int, Ge(1)] | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Gt(0)] = 0.05
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warm_up: Share = 0.15
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    clip: Annotated[float, Gt(0)] | None = None
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    batch: Annotated[int, Ge(2)] = 128
    flip: bool | None = None
    shift: Annotated[int, Ge(0)] | None = None
    mixup: Annotated[float, Ge(0)] | None = None
    cutmix: Annotated[float, Ge(0)] = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    validation: Annotated[float, Ge(0), Lt(1)] = 0.0
    patience: Annotated[int, Ge(1)] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse two lengths and none, and patience without anything to judge by."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.patience is not None and not self.validation:
            raise ValueError("patience needs `validation`, a share of the training examples to judge by")

    def plan(self, steps: int) -> Schedule:
        """Return how weights move in a training of so many steps."""
        from .optimizers import Schedule

        return Schedule(
            steps, self.learning_rate, self.weight_decay, warm_up=self.warm_up, optimizer=self.optimizer,
            most_gradient=math.inf if self.clip is None else self.clip, shape=self.schedule, ema=self.ema,
        )  # fmt: skip

    def facts(self, found: Trained, steps: int, data: Dataset) -> dict[str, Any]:
        """Return what is to be said of a training."""
        said: dict[str, Any] = {
            "steps": len(found.losses),
            "epochs": round(len(found.losses) * self.batch / len(data.train), 2),
            "first_loss": round(found.losses[0], 4),
            "last_loss": round(found.last_loss, 4),
        }
        if found.best_step is not None:
            said |= {"best_step": found.best_step, "validation_accuracy": round(found.scores[found.best_step], 4)}
        return said | ({"stopped_early": True} if len(found.losses) < steps else {})


__all__ = ["Learning"]
