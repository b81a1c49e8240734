"""Which parameters learn, from which step, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch.fx import GraphModule

from ..models.graph import TRAINING_FLAG, aten
from .patterns import matching

if TYPE_CHECKING:
    from .optimizers import Group
    from .transfer import Transfer


def depths(module: GraphModule) -> dict[str, int]:
    """Return how many layers lie between each parameter and the output, by the graph's order; the head's is 0."""
    known = dict(module.named_parameters())
    owners = dict.fromkeys(
        str(node.target).rpartition(".")[0]
        for reader in module.graph.nodes
        for node in reader.all_input_nodes
        if node.op == "get_attr" and node.target in known
    )
    order = {owner: place for place, owner in enumerate(reversed(owners))}
    return {name: order.get(name.rpartition(".")[0], len(order)) for name in known}


def groups_of(settings: Transfer, module: GraphModule, head: Sequence[str]) -> list[Group]:
    """Return a group for each parameter that ever learns, with its rate.

    Raises:
        BadInput: a pattern matches no parameter.
    """
    names = [name for name, _ in module.named_parameters()]
    still = set(matching(settings.freeze, names, "parameter"))
    far = depths(module)
    made: list[Group] = []
    for name, value in module.named_parameters():
        if name in still:
            continue
        factor = settings.layer_decay ** far[name] * (settings.head_rate if name in head else 1.0)
        decay = settings.weight_decay if value.ndim > 1 else 0.0
        made.append({"params": [value], "lr_factor": factor, "weight_decay": decay})
    return made


def thawing(settings: Transfer, module: GraphModule, steps: int) -> Callable[[int], None]:
    """Return what lets parameters learn from their step on, and holds batch norm still where it is to be."""
    named = dict(module.named_parameters())
    matching(settings.thaw, list(named), "parameter")
    still = set(matching(settings.freeze, list(named), "parameter"))
    first = {
        name: max((share * steps for pattern, share in settings.thaw.items() if fnmatchcase(name, pattern)), default=0)
        for name in named
    }

    def on_step(step: int) -> None:
        for name, value in named.items():
            value.requires_grad_(name not in still and step >= first[name])
        if settings.batch_norm == "frozen":
            _hold_statistics(module)

    return on_step


def _hold_statistics(module: GraphModule) -> None:
    """Put batch norm into evaluation mode, where it is not."""
    place = TRAINING_FLAG[aten.batch_norm.default]
    norms = [n for n in module.graph.nodes if n.target == aten.batch_norm.default and n.args[place] and n.args[3]]
    for node in norms:
        node.update_arg(place, False)
    if norms:
        module.recompile()


__all__ = ["depths", "groups_of", "thawing"]
