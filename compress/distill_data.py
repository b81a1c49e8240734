"""Batches for distillation: augmented images, what the teacher says of them, and their labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.data import Dataset
from ..models.model import Model
from .attention_transfer import attention_map
from .augment import flip_and_shift, mixup
from .distill_loss import SoftTarget
from .features import shown
from .folding import fold_batch_norm
from .training import laid_out, lay_out

if TYPE_CHECKING:
    from .distill import Distill

MEMORY_BYTES = 512 * 2**20
"""Judged batches are kept for reuse up to so much memory; then the oldest go."""


def teacher_batches(
    settings: Distill, data: Dataset, teacher: Model, steps: int
) -> Iterator[tuple[Tensor, SoftTarget]]:
    """Yield `steps` batches. The teacher sees the very images that the student sees (Beyer et al. 2022).

    Every `settings.reuse`-th batch is new; those between are drawn from the batches the teacher has judged before.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    fresh = _fresh_batches(settings, data, teacher, -(-steps // settings.reuse), generator)
    judged: deque[tuple[Tensor, SoftTarget]] = deque()
    for step in range(steps):
        if step % settings.reuse == 0:
            judged.append(next(fresh))
            if len(judged) * (judged[0][0].nbytes + judged[0][1].nbytes) > MEMORY_BYTES:
                judged.popleft()
            yield judged[-1]
        else:
            yield judged[int(torch.randint(len(judged), (), generator=generator))]


def labelled_batches(settings: Distill, data: Dataset, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `steps` batches of augmented images with the probabilities of their classes `(batch, classes)`."""
    generator = torch.Generator().manual_seed(settings.seed)
    for indices in _endless(len(data.train), min(settings.batch, len(data.train)), steps, generator):
        yield _augmented(settings, data, indices, generator)


def _fresh_batches(
    settings: Distill, data: Dataset, teacher: Model, count: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, SoftTarget]]:
    # Folding would lose where the modules' results are.
    judge = (teacher.copy() if settings.features else fold_batch_norm(teacher)).module
    layout = lay_out(judge)
    with shown(judge, list(settings.features)):
        for indices in _endless(len(data.train), min(settings.batch, len(data.train)), count, generator):
            x, labels = _augmented(settings, data, indices, generator)
            with torch.no_grad():
                scores, features = judge(laid_out(x, layout))
            if settings.feature_distance == "attention":
                named = zip(settings.features, features, strict=True)
                features = tuple(attention_map(path, feature) for path, feature in named)
            yield x, SoftTarget(scores, labels, tuple(feature.half() for feature in features))


def _augmented(settings: Distill, data: Dataset, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    pixels = data.train.pixels(indices)
    if settings.flip or settings.shift:
        pixels = flip_and_shift(pixels, generator, settings.flip, settings.shift)
    x = data.preprocessing(pixels)
    labels = F.one_hot(data.train.labels[indices], len(data.classes)).float()
    return mixup(x, labels, generator, settings.mixup) if settings.mixup else (x, labels)


def _endless(size: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices in shuffled passes over the data; the last batch of a pass is filled from the next."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(size, generator=generator)])
        yield order[:batch]
        order = order[batch:]
