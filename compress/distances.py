"""Distances between what a student and its teacher say of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .distill import DistanceName

_NONE = -1e9
"""A score that leaves no probability, and is finite, so that zero times it is zero."""
_MOST_LABELS = 2
"""Classes of one example that DKD takes for its target: a blend of two images has two."""


@dataclass(frozen=True)
class Pair:
    """What is compared.

    Attributes:
        student: scores, logits `(batch, classes)`.
        teacher: scores, `(batch, classes)`.
        labels: class probabilities, `(batch, classes)`.
        temperature: that both are divided by.
        beta: see `decoupled`.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    temperature: float
    beta: float = 8.0

    @property
    def softened(self) -> tuple[Tensor, Tensor]:
        """The logarithms of both distributions at the temperature."""
        return F.log_softmax(self.student / self.temperature, 1), F.log_softmax(self.teacher / self.temperature, 1)


def kullback_leibler(pair: Pair) -> Tensor:
    """Return `T^2 KL(teacher || student)` (Hinton et al. 2015, section 2)."""
    student, teacher = pair.softened
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * pair.temperature**2


def jensen_shannon(pair: Pair) -> Tensor:
    """Return `4 T^2 JS`, JS the mean of both distributions' divergence from their mean (Lin 1991), at most log 2.

    With the factor of 4 it is Kullback and Leibler's where both nearly agree. It does not grow without bound where the
    student rules out what the teacher does not.
    """
    student, teacher = pair.softened
    mean = torch.logaddexp(student, teacher) - math.log(2)
    parts = [F.kl_div(mean, one, reduction="batchmean", log_target=True) for one in (student, teacher)]
    return 2 * (parts[0] + parts[1]) * pair.temperature**2


def mean_squared(pair: Pair) -> Tensor:
    """Return half the mean squared difference of the logits (Ba and Caruana 2014; Kim et al. 2021).

    For centred logits it is the limit of `kullback_leibler` at high temperature. The temperature plays no part.
    """
    return F.mse_loss(pair.student, pair.teacher) / 2


def decoupled(pair: Pair) -> Tensor:
    """Return `T^2 (TCKD + beta NCKD)` (Zhao et al. 2022, "Decoupled Knowledge Distillation").

    TCKD is the divergence of the target class against all others, NCKD that among the others, whose weight in
    Kullback and Leibler's is how unsure the teacher is. A blend of two images has two targets: both parts are
    taken for each and weighted by the labels.
    """
    weights, targets = pair.labels.topk(min(_MOST_LABELS, pair.labels.shape[1]), dim=1)
    shares = weights / weights.sum(1, keepdim=True)
    total = torch.zeros((), dtype=pair.student.dtype, device=pair.student.device)
    for share, target in zip(shares.unbind(1), targets.unbind(1), strict=True):
        own, rest = _apart(pair.student, target, pair.temperature)
        own_wanted, rest_wanted = _apart(pair.teacher, target, pair.temperature)
        target_part = F.kl_div(own, own_wanted, reduction="none", log_target=True).sum(1)
        other_part = F.kl_div(rest, rest_wanted, reduction="none", log_target=True).sum(1)
        total = total + (share * (target_part + pair.beta * other_part)).mean()
    return total * pair.temperature**2


def _apart(scores: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the logarithms of (target, all others) `(batch, 2)`, and of the others among themselves."""
    softened = scores / temperature
    others = softened.scatter(1, target[:, None], _NONE)
    own = torch.stack([softened.gather(1, target[:, None])[:, 0], others.logsumexp(1)], 1)
    return F.log_softmax(own, 1), F.log_softmax(others, 1)


def by_correlation(pair: Pair) -> Tensor:
    """Return how far Pearson's correlations of both are from one (Huang et al. 2022, "DIST"), 0 to 4.

    Over the classes of each example, and over the examples of each class: a student may be surer or less sure than its
    teacher as long as it ranks alike. A correlation does not shrink with the temperature, so there is no factor T^2:
    with it, training diverges at the learning rates of the others.
    """
    student, teacher = (one.exp() for one in pair.softened)
    between, within = 1 - _pearson(student, teacher), 1 - _pearson(student.T, teacher.T)
    return between.mean() + within.mean()


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8)


DISTANCES: Mapping[DistanceName, Callable[[Pair], Tensor]] = {
    "kl": kullback_leibler,
    "js": jensen_shannon,
    "mse": mean_squared,
    "dkd": decoupled,
    "dist": by_correlation,
}
