"""Structured pruning: remove whole channels, so that the model becomes a smaller dense one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from annotated_types import Ge, Gt, Lt
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.errors import BadInput
from .passes import SETTINGS, Context, Pass, need_data

if TYPE_CHECKING:
    from ..models.model import Model
    from .channels import Channels

Ratio = Annotated[float, Gt(0), Lt(1)]


@final
@dataclass(frozen=True, config=SETTINGS)
class Prune(Pass):
    """Remove the least important channels of every group of layers that must keep equal widths.

    Attributes:
        ratio: the share of channels to remove, in (0, 1).
        score: how a channel's importance is found. `l1` and `l2`: the norm of its weights (Li et al. 2017);
            `taylor`: |sum of weight x gradient| of the loss on training data (Molchanov et al. 2019). Those are
            summed over all layers that share the channel. `reconstruction`: channels are taken one by one, each the
            one that helps most to give again, by refitted weights, what the layers that read them gave on training
            data (greedy, as ThiNet; Luo et al. 2017); groups of which no such layer is known are scored as by `l2`.
        round_to: widths left are multiples of this, where the layer is that wide: fast kernels work on whole vectors.
        min_channels: no group is left with fewer channels.
        layers: ratios of their own for groups by the name of a layer in them (`fnmatch` pattern); 0 keeps a group.
        ignore: patterns of layers whose groups are kept.
        samples: training examples used by `taylor` and `reconstruction`.
        reconstruct: training examples on which the weights that are left are refitted, layer by layer, to give the
            outputs they gave before (He et al. 2017): most of the accuracy is back before any training. 0: off.
            Without data the weights stay as they are.
        seed: picks those examples.
    """

    ratio: Ratio = 0.5
    score: Literal["l1", "l2", "taylor", "reconstruction"] = "l2"
    round_to: Annotated[int, Ge(1)] = 8
    min_channels: Annotated[int, Ge(1)] = 8
    layers: dict[str, Annotated[float, Ge(0), Lt(1)]] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    samples: Annotated[int, Ge(1)] = 512
    reconstruct: Annotated[int, Ge(0)] = 256
    seed: int = 0

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from .channels import find_channels
        from .facts import training_inputs
        from .prune_choice import check_patterns, choose
        from .reconstruct import reconstruct
        from .rewrite import remove_channels

        channels = find_channels(model)
        check_patterns(self, channels)
        gone = choose(self, channels, self._scores(model, channels, context))
        if not gone:
            raise BadInput(
                f"nothing to remove: {_why_nothing(channels)}; lower round_to ({self.round_to}) or "
                f"min_channels ({self.min_channels}), raise ratio ({self.ratio}), or drop the pass"
            )
        free = [g for g in channels.groups if g.frozen is None]
        facts = {
            "channels_before": sum(len(g.channels) for g in free),
            "channels_removed": len(gone),
            "groups": len(free),
            "widths": {g.name: len(set(g.channels) - gone) for g in free},
            "operators_without_rule": list(channels.unknown),
        }
        pruned = remove_channels(model, channels, gone)
        if self.reconstruct and context.data is not None:
            x = training_inputs(model, context.data, self.reconstruct, self.seed)
            facts["layers_refitted"] = len(reconstruct(model, pruned, x, channels, gone))
        return pruned, facts

    def _scores(self, model: Model, channels: Channels, context: Context) -> dict[int, float]:
        from .facts import learns_from, training_inputs
        from .prune_choice import widths_left
        from .scores import channel_scores, taylor_gradients
        from .selection import selection_scores

        if self.score in ("l1", "l2"):
            return channel_scores(model, channels, self.score)
        data = need_data(context, f"for the score `{self.score}`")
        if self.score == "taylor":
            learns_from(model, data)
            return channel_scores(model, channels, "taylor", taylor_gradients(model, data, self.samples, self.seed))
        x = training_inputs(model, data, self.samples, self.seed)
        return channel_scores(model, channels, "l2") | selection_scores(model, channels, x, widths_left(self, channels))


def _why_nothing(channels: Channels) -> str:
    from .prune_choice import layers_of

    groups = [g for g in channels.groups if layers_of(g)]
    free = sum(g.frozen is None for g in groups)
    reasons = Counter(g.frozen for g in groups if g.frozen)
    most = ", ".join(reason for reason, _ in reasons.most_common(2))
    return f"{free} of {len(groups)} groups are free" + (f" (others: {most})" if most else "")
