"""How far pruning goes: ratios that reach a share of MACs or parameters, in one round or several."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

from ..models.errors import BadInput
from ..models.model import Model
from .channels import Channels
from .costs import costs
from .prune import Prune
from .prune_choice import choose

HALVINGS = 12
MOST = 1 - 1e-9
"""All that may go, goes: widths have their own lower bounds."""

Kind = Literal["ratio", "macs", "params"]


class Goal(NamedTuple):
    """A share: of channels to remove, or of MACs or parameters to leave, of the model as it is then."""

    kind: Kind
    share: float


def goals(settings: Prune) -> list[Goal]:
    """Return the goal of each round; together they come to that of the settings."""
    kind: Kind = "macs" if settings.macs else "params" if settings.params else "ratio"
    left = 1 - (settings.ratio or 0.5) if kind == "ratio" else settings.macs or settings.params or 0.5
    # Equal steps of channels; of what is left, as MACs fall by the square, an equal share each time.
    parts = [i / settings.rounds for i in range(settings.rounds + 1)]
    at = [1 - (1 - left) * part if kind == "ratio" else left**part for part in parts]
    shares = [after / before for before, after in pairwise(at)]
    return [Goal(kind, 1 - share if kind == "ratio" else share) for share in shares]


def ratio_for(settings: Prune, model: Model, channels: Channels, scores: Mapping[int, float], goal: Goal) -> float:
    """Return the smallest ratio of channels that reaches a goal.

    Raises:
        BadInput: none does; the message says how little can be left.
    """
    if goal.kind == "ratio":
        return goal.share
    before = costs(model, channels, channels.lost(()))[goal.kind]

    def left(ratio: float) -> float:
        return costs(model, channels, channels.lost(choose(settings, channels, scores, ratio)))[goal.kind] / before

    least = left(MOST)
    if least > goal.share:
        what = {"macs": "MACs", "params": "parameters"}[goal.kind]
        raise BadInput(
            f"{goal.kind}: {goal.share:.3g} cannot be reached: with the least widths allowed {least:.3g} of the {what} "
            f"are left; lower min_channels ({settings.min_channels}), round_to ({settings.step_width}) or what "
            "`ignore` and `layers` keep"
        )
    low, high = 0.0, MOST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= goal.share else (middle, high)
    return high
