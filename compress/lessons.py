"""Batches to learn from: which examples a step takes, and how they are changed. All of it follows from seed and step.

So that training which was killed goes on with the very batches that it would have had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from ..models.data import Dataset, Split
from ..models.errors import BadInput
from .augment import cutmix, flip_and_shift, mixup
from .surroundings import HERE, Surroundings
from .training import Batch, Extras, Inputs, Judging, moved
from .training_state import Keep

if TYPE_CHECKING:
    from pathlib import Path

    from ..models.model import Model
    from .learning import Learning

IMAGES = "image-classification"
JUDGEMENTS = 20
_JUDGED_AT_ONCE = 256


class Augmentation(Protocol):
    """The settings that decide batches; `Learning` and `Quantize` have them."""

    @property
    def batch(self) -> int: ...
    @property
    def flip(self) -> bool | None: ...
    @property
    def shift(self) -> int | None: ...
    @property
    def mixup(self) -> float | None: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Changes:
    """How examples are changed, with nothing left open; see `Learning`."""

    flip: bool
    shift: int
    mixup: float
    cutmix: float
    label_smoothing: float

    @property
    def none(self) -> bool:
        """Whether an example is always the same."""
        return not (self.flip or self.shift or self.mixup or self.cutmix)


def changes_of(settings: Augmentation, data: Dataset, usual_mixup: float) -> Changes:
    """Return how examples are changed: what the settings leave open is as the task has it.

    Raises:
        BadInput: the settings ask for what cannot be done to such examples.
    """
    images, blends = data.task == IMAGES, data.task != "text-classification"
    asked = {"flip": settings.flip, "shift": settings.shift, "cutmix": getattr(settings, "cutmix", 0.0)}
    asked |= {} if blends else {"mixup": settings.mixup}
    if odd := [name for name, value in asked.items() if value and not images]:
        raise BadInput(f"{', '.join(odd)}: for images, and {data.name!r} is data of {data.task}; leave it out")
    given = settings.mixup if settings.mixup is not None else usual_mixup if images else 0.0
    return Changes(
        images if settings.flip is None else settings.flip,
        (2 if images else 0) if settings.shift is None else settings.shift,
        given, getattr(settings, "cutmix", 0.0), getattr(settings, "label_smoothing", 0.0),
    )  # fmt: skip


class Lessons:
    """Labelled batches by step; of several processes each gets its part of them."""

    def __init__(
        self, settings: Augmentation, data: Dataset, usual_mixup: float = 0.0, around: Surroundings = HERE
    ) -> None:
        self.data = data
        self.around = around
        self.changes = changes_of(settings, data, usual_mixup)
        self._size = min(settings.batch, len(data.train))
        self.seed = settings.seed
        self._order = lru_cache(2)(self._shuffled)

    def indices(self, step: int) -> Tensor:
        """Return the training examples of a step `(batch,)`: shuffled passes over all, one after the other."""
        count = len(self.data.train)
        first = step * self._size
        places = range(first, first + self._size)
        epochs = sorted({place // count for place in places})
        whole = torch.cat([self._order(epoch) for epoch in epochs])
        start = first - epochs[0] * count
        return whole[start : start + self._size]

    def own(self, step: int) -> Tensor:
        """Return the training examples of a step that are this process's."""
        whole = self.indices(step)
        return whole[self.around.crew.part(len(whole))]

    def __call__(self, step: int) -> Batch:
        """Return inputs and class probabilities `(batch, classes)` of a step."""
        indices, generator = self.indices(step), generator_of(self.seed, "changes", step)
        # Changed as a whole, so that examples are blended with those that they would be blended with.
        inputs, labels = self._blended(self._inputs(indices, generator), self._labels(indices), generator)
        mine = self.around.crew.part(len(indices))
        return tuple(x[mine] for x in inputs), labels[mine]

    def said_of(self, step: int) -> str:
        """Name the examples of a step."""
        shown = self.indices(step).tolist()
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        return f"training examples {', '.join(map(str, shown[:8]))}{more}"

    def _shuffled(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.data.train), generator=generator_of(self.seed, "order", epoch))

    def _inputs(self, indices: Tensor, generator: torch.Generator) -> Inputs:
        data, how = self.data, self.changes
        if not (how.flip or how.shift):
            return data.inputs(data.train, indices)
        moved = Split(
            data.train.labels, lambda asked: flip_and_shift(data.train.pixels(asked), generator, how.flip, how.shift)
        )
        return data.inputs(moved, indices)

    def _labels(self, indices: Tensor) -> Tensor:
        classes, share = len(self.data.classes), self.changes.label_smoothing
        return F.one_hot(self.data.train.labels[indices], classes).float() * (1 - share) + share / classes

    def _blended(self, inputs: Inputs, labels: Tensor, generator: torch.Generator) -> Batch:
        how = self.changes
        if not (how.mixup or how.cutmix):
            return inputs, labels
        boxes = bool(how.cutmix) and (not how.mixup or bool(torch.rand((), generator=generator) < 0.5))
        x, labels = (cutmix if boxes else mixup)(inputs[0], labels, generator, how.cutmix if boxes else how.mixup)
        return (x,), labels


def generator_of(seed: int, what: str, number: int) -> torch.Generator:
    """Return a source of chance of its own for the `number`-th drawing of a kind."""
    digest = hashlib.blake2b(f"{seed}/{what}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def held_out(data: Dataset, share: float, seed: int) -> tuple[Dataset, Split | None]:
    """Return data without a share of its training examples, and those; None where the share is 0."""
    if not share:
        return data, None
    order = data.sample(len(data.train), seed)
    count = max(1, round(share * len(order)))
    if count >= len(order):
        raise BadInput(f"validation {share}: no training example of {data.name!r} is left; hold out fewer")
    return replace(data, train=part_of(data.train, order[count:].sort()[0])), part_of(data.train, order[:count])


def part_of(split: Split, places: Tensor) -> Split:
    """Return the examples at `places` `(n,)` of a split."""
    return Split(split.labels[places], lambda indices: split.fetch(places[indices]))


def accuracy_on(data: Dataset, split: Split) -> Callable[[GraphModule], float]:
    """Return what gives the share of a split's examples that a graph classifies rightly."""

    def score(module: GraphModule) -> float:
        right, device = 0, str(next((p.device for p in module.parameters()), "cpu"))
        for part in torch.arange(len(split)).split(_JUDGED_AT_ONCE):  # type: ignore[no-untyped-call]  # torch's own
            found: Any = module(*moved(data.inputs(split, part), device))
            scores = found[0] if isinstance(found, tuple) else found
            right += int((scores.argmax(1).cpu() == split.labels[part]).sum())
        return right / len(split)

    return score


def steps_of(settings: Learning, data: Dataset) -> int:
    """Return how many steps a training has."""
    return settings.steps or max(1, round((settings.epochs or 0) * len(data.train) / settings.batch))


def extras_of(
    settings: Learning, lessons: Lessons, held: Split | None, steps: int, keep: Keep | None, **more: Any
) -> Extras:
    """Return what training has beside batches and a loss, from the common settings."""
    judging = None
    if held is not None:
        judging = Judging(accuracy_on(lessons.data, held), max(1, steps // JUDGEMENTS), settings.patience)
    return Extras(judging=judging, keep=keep, said_of=lessons.said_of, around=lessons.around, **more)


def keep_in(folder: Path | None, models: Sequence[Model], *decided_by: object) -> Keep | None:
    """Return where training is kept; the models that take part and `decided_by` are all that decides it."""
    if folder is None:
        return None
    digest = hashlib.sha256(repr(decided_by).encode())
    for model in models:
        digest.update(model.module.code.encode())
        for name, value in model.module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return Keep(folder / "training.pt", digest.hexdigest())


__all__ = ["Lessons", "accuracy_on", "changes_of", "extras_of", "generator_of", "held_out", "keep_in", "steps_of"]
