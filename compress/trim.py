"""Trimming: remove whole residual blocks, so that the model becomes a shallower one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, final

from annotated_types import Ge, MinLen
from pydantic.dataclasses import dataclass

from .passes import SETTINGS, Context, Pass

if TYPE_CHECKING:
    from ..models.model import Model


@final
@dataclass(frozen=True, config=SETTINGS)
class Trim(Pass):
    """Remove residual blocks: their shortcut alone is left, as if the branch beside it gave zero.

    Attributes:
        blocks: the module paths of the blocks (`fnmatch` patterns). A block is a module that adds to its input
            something computed from it; a block with several such sums, as of a transformer, goes as a whole.
        reconstruct: training examples on which the layers that are left are refitted, one by one, to give what they
            gave before (as in `prune`): the next block's last layer makes good what the removed one added. 0: off.
            Without data the weights stay as they are.
        seed: picks those examples.
    """

    blocks: Annotated[tuple[str, ...], MinLen(1)]
    reconstruct: Annotated[int, Ge(0)] = 256
    seed: int = 0

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from .blocks import blocks_named, find_blocks, remove_blocks
        from .facts import training_inputs
        from .reconstruct import reconstruct

        going = blocks_named(find_blocks(model), self.blocks)
        trimmed = remove_blocks(model, going)
        facts: dict[str, Any] = {"blocks_removed": [block.path for block in going]}
        if self.reconstruct and context.data is not None:
            x = training_inputs(model, context.data, self.reconstruct, self.seed)
            facts["layers_refitted"] = len(reconstruct(model, trimmed, x))
        return trimmed, facts
