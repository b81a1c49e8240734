"""Structured pruning: remove whole channels, so that the model becomes a smaller dense one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from annotated_types import Ge, Gt, Lt
from pydantic import BeforeValidator, Field, GetPydanticSchema, model_validator
from pydantic.dataclasses import dataclass

from ..models.errors import BadInput
from .distill import Distill
from .passes import SETTINGS, Context, Pass, need_data

if TYPE_CHECKING:
    from typing import Self

    from ..models.model import Model
    from .channels import Channels
    from .prune_goal import Goal

Ratio = Annotated[float, Gt(0), Lt(1)]
Share = Annotated[float, Ge(0), Lt(1)]
Target = Literal["cpu", "tensorrt"]
Score = Literal["l1", "l2", "bn", "taylor", "activation", "geometric_median", "random", "reconstruction"]

WHOLE_VECTORS = {"cpu": 8, "tensorrt": 16}
"""Widths that suit the hardware: AVX2 works on eight floats at a time, tensor cores on sixteen channels."""


def _width(value: Any) -> Any:
    """Take a number, or what the model is for."""
    if isinstance(value, str) and value not in WHOLE_VECTORS:
        raise ValueError(f'got "{value}", wanted a whole number or {" or ".join(WHOLE_VECTORS)}')
    return WHOLE_VECTORS.get(value, value) if isinstance(value, str) else value


_Width = Annotated[int, Ge(1), BeforeValidator(_width)]


@final
@dataclass(frozen=True, config=SETTINGS)
class Prune(Pass):
    """Remove the least important channels of every group of layers that must keep equal widths.

    Whatever can be captured can be pruned: convolutions of all kinds, linear layers, attention (heads and head sizes),
    norms, embeddings, recurrent layers. What stays, because an operator is not known or the model's inputs and outputs
    need it, is named by `shipworthy inspect`. Where a norm spans channels (layer norm), it is taken over those left.

    Attributes:
        ratio: the share of channels to remove, in (0, 1); 0.5 unless `macs` or `params` is given.
        macs: instead: remove as many, by one ratio for all, that at most this share of multiply-accumulates is left.
        params: instead: the same for parameters.
        score: how a channel's importance is found. `l1` and `l2`: the norm of its weights (Li et al. 2017); `bn`: the
            scale that batch norms give it (Liu et al. 2017); `geometric_median`: how far its weights are from those of
            the others (He et al. 2019); `taylor`: |sum of weight x gradient| of the loss on training data (Molchanov et
            al. 2019); `activation`: how large it is on training data, times the weights that read it (Sun et al. 2023);
            `random`. Those are summed over all layers that share the channel. `reconstruction`: channels are taken one
            by one, each the one that helps most to give again, by refitted weights, what the layers that read them gave
            on training data (greedy, as ThiNet; Luo et al. 2017); groups of which no such layer is known are scored as
            by `l2`, and so are those without a batch norm under `bn`.
        scope: `uniform`: every group loses its share; `global`: scores, divided by their group's mean, are ranked over
            all groups.
        round_to: widths left are multiples of this, where the layer is that wide: fast kernels work on whole vectors.
            A number, or what the model is for: `cpu` (8), `tensorrt` (16).
        min_channels: no group is left with fewer channels.
        heads: the share of attention heads (of groups, for grouped convolutions) to remove; null: as other channels.
        head_size: the share of each head's (each group's) channels to remove.
        layers: ratios of their own for groups by the name of a layer in them (`fnmatch` pattern); 0 keeps a group.
        ignore: patterns of layers whose groups are kept.
        samples: training examples used by `taylor`, `activation` and `reconstruction`.
        reconstruct: training examples on which the weights that are left are refitted, layer by layer, to give the
            outputs they gave before (He et al. 2017): most of the accuracy is back before any training. 0: off.
            Without data the weights stay as they are.
        rounds: reach the goal in so many rounds of equal size, scoring anew before each.
        recover: settings of a `distill` pass between the rounds, towards the uncompressed model.
        seed: picks those examples.
    """

    ratio: Ratio | None = None
    macs: Ratio | None = None
    params: Ratio | None = None
    score: Score = "l2"
    scope: Literal["uniform", "global"] = "uniform"
    round_to: Annotated[int | Target, GetPydanticSchema(lambda _, handler: handler(_Width))] = 8
    min_channels: Annotated[int, Ge(1)] = 8
    heads: Share | None = None
    head_size: Share = 0.0
    layers: dict[str, Share] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    samples: Annotated[int, Ge(1)] = 512
    reconstruct: Annotated[int, Ge(0)] = 256
    rounds: Annotated[int, Ge(1)] = 1
    recover: Distill | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [name for name in ("ratio", "macs", "params") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of ratio, macs and params, not {' and '.join(given)}")
        if self.scope == "global" and self.score == "reconstruction":
            raise ValueError("scores by reconstruction rank channels within a group; take scope: uniform")
        if self.recover is not None and self.rounds == 1:
            raise ValueError("recover trains between rounds; set rounds to 2 or more")
        return self

    @property
    def step_width(self) -> int:
        """What widths are multiples of."""
        return WHOLE_VECTORS[self.round_to] if isinstance(self.round_to, str) else self.round_to

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from .channels import find_channels
        from .prune_choice import check_patterns
        from .prune_goal import goals

        check_patterns(self, find_channels(model))
        if self.recover is not None:
            need_data(context, "to recover between rounds")
        made, first, facts = model, dict[str, Any](), dict[str, Any]()
        for place, goal in enumerate(goals(self)):
            if place and self.recover is not None:
                made = self.recover(
                    made,
                    data=context.data,
                    teacher=context.teacher or model,
                    report=context.report,
                    around=context.around,
                ).model
            made, facts = self._round(made, context, goal)
            first = first or facts
        before = {"channels_before": first["channels_before"]}
        left = facts["channels_before"] - facts["channels_removed"]
        return made, facts | before | {"channels_removed": first["channels_before"] - left}

    def _round(self, model: Model, context: Context, goal: Goal) -> tuple[Model, dict[str, Any]]:
        from .channels import find_channels
        from .facts import training_inputs
        from .prune_choice import choose, widths_left
        from .prune_goal import ratio_for
        from .reconstruct import reconstruct
        from .rewrite import remove_channels
        from .selection import selection_scores

        channels = find_channels(model)
        scores = self._scores(model, channels, context)
        ratio = ratio_for(self, model, channels, scores, goal)
        if self.score == "reconstruction":
            x = training_inputs(model, need_data(context, _FOR_SCORE.format(self.score)), self.samples, self.seed)
            scores |= selection_scores(model, channels, x, widths_left(self, channels, ratio))
        gone = choose(self, channels, scores, ratio)
        if not gone:
            raise BadInput(
                f"nothing to remove: {_why_nothing(channels)}; lower round_to ({self.step_width}) or "
                f"min_channels ({self.min_channels}), raise ratio ({ratio:.3g}), or drop the pass"
            )
        pruned = remove_channels(model, channels, gone)
        facts = {"ratio": ratio, **_facts(channels, gone)}
        if self.reconstruct and context.data is not None:
            x = training_inputs(model, context.data, self.reconstruct, self.seed)
            facts["layers_refitted"] = len(reconstruct(model, pruned, x, channels, gone))
        return pruned, facts

    def _scores(self, model: Model, channels: Channels, context: Context) -> dict[int, float]:
        from .activation_scores import activation_scores
        from .facts import learns_from, training_inputs
        from .scores import channel_scores, taylor_gradients

        if self.score == "reconstruction":
            return channel_scores(model, channels, "l2")
        if self.score != "taylor" and self.score != "activation":
            return channel_scores(model, channels, self.score, seed=self.seed)
        data = need_data(context, _FOR_SCORE.format(self.score))
        if self.score == "activation":
            return activation_scores(model, channels, training_inputs(model, data, self.samples, self.seed))
        learns_from(model, data)
        return channel_scores(model, channels, "taylor", taylor_gradients(model, data, self.samples, self.seed))


_FOR_SCORE = "for the score `{}`"


def _facts(channels: Channels, gone: set[int]) -> dict[str, Any]:
    free = [g for g in channels.groups if g.frozen is None]
    return {
        "channels_before": sum(len(g.channels) for g in free),
        "channels_removed": len(gone),
        "groups": len(free),
        "widths": {g.name: len(set(g.channels) - gone) for g in free},
        "operators_without_rule": list(channels.unknown),
    }


def _why_nothing(channels: Channels) -> str:
    from .prune_choice import layers_of

    groups = [g for g in channels.groups if layers_of(g)]
    free = sum(g.frozen is None for g in groups)
    reasons = Counter(g.frozen for g in groups if g.frozen)
    most = ", ".join(reason for reason, _ in reasons.most_common(2))
    return f"{free} of {len(groups)} groups are free" + (f" (others: {most})" if most else "")
