"""The loss of distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


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


def soft_target_loss(scores: Tensor, target: SoftTarget, temperature: float, alpha: float) -> Tensor:
    """Return `alpha * T^2 * KL(teacher / T || student / T) + (1 - alpha) * cross-entropy`, the mean over the batch.

    The factor T^2 keeps the two gradients in proportion whatever the temperature (Hinton et al. 2015, section 2).
    """
    student = F.log_softmax(scores / temperature, 1)
    teacher = F.log_softmax(target.scores / temperature, 1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    if alpha == 1:
        return soft
    return alpha * soft + (1 - alpha) * F.cross_entropy(scores, target.labels)
