"""Batches for distillation: changed examples, what the teachers say of them, and their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..models.errors import BadInput
from ..models.model import Model
from .attention_transfer import attention_map
from .distill_loss import SoftTarget
from .features import shown
from .folding import fold_batch_norm
from .lessons import Lessons, generator_of
from .surroundings import Surroundings
from .training import Batch, BatchAt, Inputs, laid_out, lay_out, moved

MEMORY_BYTES = 512 * 2**20
"""Judged batches are kept for reuse up to so much memory; then the oldest go."""


@dataclass(frozen=True)
class Shown:
    """What of the teacher's inside is compared, by module path: features, as they are or as maps, and attention."""

    features: tuple[str, ...] = ()
    as_maps: bool = False
    attentions: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is anything."""
        return bool(self.features or self.attentions)


@contextmanager
def teacher_batches(
    lessons: Lessons, teachers: Sequence[Model], reuse: int = 1, inside: Shown | None = None
) -> Iterator[BatchAt]:
    """Give batches by step. Teachers see the very examples that the student sees (Beyer et al. 2022).

    Every `reuse`-th batch is new; those between are drawn from the batches that were judged before. Where examples are
    never changed, each is judged once.

    Args:
        lessons: batches with labels.
        teachers: their scores are averaged, which is the geometric mean of their distributions (Hinton et al. 2015).
        reuse: steps for each batch that is judged.
        inside: what else of the teacher is compared.

    Raises:
        BadInput: features of several teachers, or a path that is not there.
    """
    inside = inside or Shown()
    if inside.any and len(teachers) > 1:
        raise BadInput(f"features are compared with one teacher, and there are {len(teachers)}; leave `features` out")
    with ExitStack() as stack:
        # Folding would lose where the modules' results are.
        judges = [(one.copy() if inside.any else fold_batch_norm(one)).module for one in teachers]
        for judge in judges:
            stack.enter_context(shown(judge, inside.features, inside.attentions))
        for judge in judges:
            judge.to(lessons.around.device)
        asked = _Teachers(judges, [lay_out(judge) for judge in judges], inside, lessons.around)
        if lessons.changes.none and not inside.any:
            yield _Remembered(lessons, asked)
        else:
            yield _Reused(lessons, asked, reuse)


@dataclass(frozen=True, eq=False)
class _Teachers:
    judges: Sequence[GraphModule]
    layouts: Sequence[torch.memory_format]
    inside: Shown
    around: Surroundings

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the scores of a batch, and what is compared beside them as 16-bit numbers."""
        inputs = moved(inputs, self.around.device)
        with self.around.precision():
            found = self._found(inputs)
        scores = torch.stack([one.float() for one, _ in found]).mean(0)
        features, count = found[0][1], len(self.inside.features)
        if self.inside.as_maps:
            named = zip(self.inside.features, features, strict=False)
            features = (*(attention_map(path, feature) for path, feature in named), *features[count:])
        least = torch.finfo(torch.half).min
        return scores, tuple(feature.clamp_min(least).half() for feature in features)

    def _found(self, inputs: Inputs) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        return [
            judge(*(laid_out(x, layout) for x in inputs))
            for judge, layout in zip(self.judges, self.layouts, strict=True)
        ]


@dataclass(eq=False)
class _Reused:
    """Batches of which every `reuse`-th is new. One that was drawn and is not in memory is judged again."""

    lessons: Lessons
    teachers: _Teachers
    reuse: int
    _judged: dict[int, Batch] = field(default_factory=dict)
    _most: int = 0

    def __call__(self, step: int) -> Batch:
        fresh = step // self.reuse
        if step % self.reuse:
            newest = self._batch(fresh)
            window = min(fresh + 1, self._window(newest))
            back = torch.randint(window, (), generator=generator_of(self.lessons.seed, "reuse", step))
            return self._batch(fresh - int(back))
        return self._batch(fresh)

    def _batch(self, number: int) -> Batch:
        if number not in self._judged:
            inputs, labels = self.lessons(number)
            scores, features = self.teachers(inputs)
            self._judged[number] = inputs, SoftTarget(scores, labels, features)
            for old in [one for one in self._judged if one <= number - self._window(self._judged[number])]:
                del self._judged[old]
        return self._judged[number]

    def _window(self, batch: Batch) -> int:
        """Return how many batches are kept; found once, so that it is the same in every step."""
        inputs, target = batch
        size = (sum(x.nbytes for x in inputs) + target.nbytes) * self.lessons.around.crew.size
        self._most = self._most or max(1, MEMORY_BYTES // size)
        return self._most


@dataclass(eq=False)
class _Remembered:
    """Batches of examples that never change, each judged once."""

    lessons: Lessons
    teachers: _Teachers
    _scores: Tensor | None = None
    _known: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def __call__(self, step: int) -> Batch:
        indices = self.lessons.own(step)
        inputs, labels = self.lessons(step)
        if self._scores is None or not self._known[indices].all():
            scores, _ = self.teachers(inputs)
            if self._scores is None:
                count = len(self.lessons.data.train)
                self._scores, self._known = (
                    scores.new_zeros(count, scores.shape[1]),
                    torch.zeros(count, dtype=torch.bool),
                )
            self._scores[indices], self._known[indices] = scores, True
        return inputs, SoftTarget(self._scores[indices], labels)


__all__ = ["Shown", "teacher_batches"]
