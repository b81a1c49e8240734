"""Trimming: remove whole residual blocks and layers, so that the model becomes a shallower one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from annotated_types import Ge, MinLen
from pydantic import GetPydanticSchema, WrapValidator
from pydantic.dataclasses import dataclass

from .passes import SETTINGS, Context, Pass, need_data

if TYPE_CHECKING:
    from ..models.model import Model
    from .blocks import Block


def _count_or_names(value: Any, names: Any) -> Any:
    """Take a whole number from 1; anything else is checked as a list of names, so that faults are about one form."""
    if not isinstance(value, int) or isinstance(value, bool):
        return names(tuple(value) if isinstance(value, list) else value)
    if value < 1:
        raise ValueError(f"got {value}, wanted 1 or more, or a list of names")
    return value


_Names = Annotated[tuple[str, ...], MinLen(1), WrapValidator(_count_or_names)]


@final
@dataclass(frozen=True, config=SETTINGS)
class Trim(Pass):
    """Remove residual blocks, of which the shortcut alone is left, and layers, whose results their inputs replace.

    What can go is what keeps its input's shape: residual blocks, convolutions (without the norm behind) and poolings.
    Then operators and weights that nobody uses are removed, whoever left them there.

    Attributes:
        blocks: the module paths (`fnmatch` patterns), or how many to remove. A block is a module that adds to its
            input something computed from it; a block with several such sums, as of a transformer, goes as a whole.
            A pattern that matches blocks does not mean the layers in them. A number takes, one at a time, the block or
            layer that adds least harm for each microsecond spared, those chosen before it removed; it needs data.
        per: what harm is weighed against. `time`: the time of the operators that go, measured here: torch on one CPU
            thread, one example, a stand-in for the runtime that will run the exported file. It is rounded to two
            digits, and yet two runs may choose differently between near equals. `macs`: multiply-accumulates, counted:
            every run chooses alike.
        samples: training examples on which harm is measured: the KL divergence of class probabilities from the
            model's own, or, if it does not score the data's classes, the squared error relative to its outputs'
            variance.
        reconstruct: training examples on which the layers that are left are refitted, one by one, to give what they
            gave before (as in `prune`): the next block's last layer makes good what the removed one added. 0: off.
            Without data the weights stay as they are.
        seed: picks those examples.
    """

    blocks: Annotated[tuple[str, ...] | int, GetPydanticSchema(lambda _, handler: handler(_Names))]
    per: Literal["time", "macs"] = "time"
    samples: Annotated[int, Ge(1)] = 256
    reconstruct: Annotated[int, Ge(0)] = 256
    seed: int = 0

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from .bypass import remove_blocks, remove_dead
        from .facts import training_inputs
        from .reconstruct import reconstruct

        going, candidates = self._going(model, context)
        trimmed = remove_blocks(model, going)
        facts: dict[str, Any] = {"blocks_removed": [block.path for block in going]}
        if self.reconstruct and context.data is not None:
            x = training_inputs(model, context.data, self.reconstruct, self.seed)
            facts["layers_refitted"] = len(reconstruct(model, trimmed, x))
        facts["dead_operators_removed"], facts["dead_params_removed"] = remove_dead(trimmed)
        return trimmed, facts | candidates

    def _going(self, model: Model, context: Context) -> tuple[list[Block], dict[str, Any]]:
        """Return what is to be removed, in the order of the graph, and the facts of a choice."""
        from ..models.summary import macs_by_operator
        from .blocks import blocks_named, in_order
        from .bypass import outermost
        from .candidates import find_candidates
        from .harm import harm_on
        from .operator_times import operator_microseconds
        from .trim_choice import Scales, choose, facts_of

        if not isinstance(self.blocks, int):
            return outermost(model.module.graph, blocks_named(model, self.blocks)), {}
        data = need_data(context, "to choose blocks, unless they are named")
        costs = operator_microseconds(model) if self.per == "time" else macs_by_operator(model)
        harm = harm_on(model, data, self.samples, self.seed)
        scales = Scales(model.module.graph, costs, harm, self.per == "time", context.report)
        choice = choose(find_candidates(model), self.blocks, scales)
        going = in_order(model, [candidate.block for candidate in choice.removed])
        return going, {"candidates": facts_of(choice, self.per)}
