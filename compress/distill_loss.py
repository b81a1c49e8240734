"""The loss of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from .distances import DISTANCES, Pair

if TYPE_CHECKING:
    from .distill import DistanceName


@dataclass(frozen=True)
class SoftTarget:
    """What a batch should be.

    `scores`: the teacher's, `(batch, classes)`; `labels`: class probabilities `(batch, classes)`; `features`: the
    teacher's at the places that are compared, as 16-bit numbers.
    """

    scores: Tensor
    labels: Tensor
    features: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(t.nbytes for t in (self.scores, self.labels, *self.features))


def soft_target_loss(
    scores: Tensor, target: SoftTarget, temperature: float, alpha: float, distance: DistanceName = "kl",
    beta: float = 8.0,
) -> Tensor:  # fmt: skip
    """Return `alpha * distance(teacher, student) + (1 - alpha) * cross-entropy`, the mean over the batch.

    Divergences carry a factor T^2, which keeps the two gradients in proportion whatever the temperature (Hinton et al.
    2015, section 2).

    Args:
        scores: the student's, `(batch, classes)`.
        target: what they should be.
        temperature: scores are divided by it, both.
        alpha: the teacher's weight, in 0 to 1.
        distance: one of `distances.DISTANCES`.
        beta: of `dkd`.
    """
    soft = DISTANCES[distance](Pair(scores, target.scores, target.labels, temperature, beta))
    if alpha == 1:
        return soft
    return alpha * soft + (1 - alpha) * F.cross_entropy(scores, target.labels)
