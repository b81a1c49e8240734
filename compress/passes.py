"""What every compression pass is: frozen settings, called on a model, giving a new model and the facts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, final

from pydantic import ConfigDict

from ..models.errors import BadInput, ShipworthyError, ToolFailed
from .surroundings import HERE, Surroundings

if TYPE_CHECKING:
    from ..models.data import Dataset
    from ..models.model import Model

SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class PassResult:
    """What a pass made: the new model, whether anything changed, and facts about it (plain, JSON-able values)."""

    model: Model
    changed: bool
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What a pass may use beside the model: training data, the uncompressed model, and a progress callback.

    `report(done, total)` is called now and then by passes that take longer than a second. `keep` is a folder for
    training that is not finished, `around` where it takes place.
    """

    data: Dataset | None = None
    teachers: tuple[Model, ...] = ()
    report: Any = field(default=None, compare=False)
    keep: Path | None = None
    around: Surroundings = HERE

    @property
    def teacher(self) -> Model | None:
        """The uncompressed model, or the first of several teachers."""
        return self.teachers[0] if self.teachers else None


class Pass(ABC):
    """A compression pass. Subclasses are final, frozen, and their fields are their settings.

    Calling a pass leaves its input model untouched and checks that the new model keeps the interface:
    the same inputs and outputs (names, types, shapes), that it runs, and that weights made sparse are still so.
    """

    adapts: ClassVar[bool] = False
    """Whether the pass may give other classes and colours, as transfer does; no other may."""

    @final
    def __call__(self, model: Model, *, data: Dataset | None = None, teacher: Model | Sequence[Model] | None = None,
                 report: Any = None, keep: Path | None = None, around: Surroundings = HERE) -> PassResult:  # fmt: skip
        """Apply the pass.

        Args:
            model: the model to compress; it is not changed.
            data: training data, for passes that score, calibrate or train.
            teacher: the uncompressed model, for passes that distil, or several models whose scores are averaged.
            report: called as `report(done, total)` while the pass works.
            keep: a folder where training keeps its state now and then; called again with the same arguments, it goes
                on from there and ends with the same weights.
            around: the device and the processes that train, and who is told of each step.

        Returns:
            The new model with facts: what the pass says of itself, and `params_before/after`, `macs_before/after`
            (per example) and `seconds`.

        Raises:
            BadInput: the settings do not fit the model, data that the pass needs is missing, or the pass removed
                channels so that a weight is no longer 2:4.
            ToolFailed: the pass broke the model's interface, or gave a zero of a sparse weight another value.
        """
        from .facts import count, same_interface
        from .sparsity import still_sparse

        began = time.perf_counter()
        name = type(self).__name__.lower()
        before = count(model)
        try:
            made, facts = self._apply(model, Context(data, _several(teacher), report, keep, around))
            same_interface(made if self.adapts else model, made)
            made = still_sparse(model, made)
        except ShipworthyError as fault:
            raise type(fault)(f"{name}: {fault}") from fault
        after = count(made)
        sizes = {f"{what}_{when}": value[what] for what in before for when, value in (("before", before), ("after", after))}  # fmt: skip # noqa: E501
        seconds = {"seconds": round(time.perf_counter() - began, 3)}
        return PassResult(made, made is not model, MappingProxyType({**sizes, **facts, **seconds}))

    @abstractmethod
    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        """Return the new model and the pass's own facts."""


def _several(teacher: Model | Sequence[Model] | None) -> tuple[Model, ...]:
    if teacher is None:
        return ()
    return tuple(teacher) if isinstance(teacher, Sequence) else (teacher,)


def need_data(context: Context, reason: str) -> Dataset:
    """Return the training data, or say why it is needed."""
    if context.data is None:
        raise BadInput(f"needs training data {reason}: pass `data=` (in a recipe: the `data` section)")
    return context.data


__all__ = ["SETTINGS", "Context", "Pass", "PassResult", "ToolFailed", "need_data"]
