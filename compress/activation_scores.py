"""How important each channel is by what flows through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node

from ..models.graph import aten, get_tensor
from ..models.model import Model
from .channels import Channels
from .folding import CONVOLUTIONS
from .layers import running
from .scores import add_to, with_scores_for_all


def activation_scores(model: Model, channels: Channels, x: Tensor | tuple[Tensor, ...]) -> dict[int, float]:
    """Score channels by the size of what layers read of them: activations times weights.

    For each convolution and linear layer a channel counts with the root mean square of its activations, times the norm
    of the weights that read it (Wanda; Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language
    Models", there for single weights).

    Args:
        model: the analysed model.
        channels: its channels.
        x: examples `(n, ...)` of each input, or of the only one; no more are used than fit into memory.
    """
    totals = {root: 0.0 for group in channels.groups for root in group.channels}
    for node, values in running(model, x):
        _score_reader(model, channels, node, values, totals)
    return with_scores_for_all(model, channels, totals)


def _score_reader(
    model: Model, channels: Channels, node: Node, values: Mapping[Node, Any], totals: dict[int, float]
) -> None:
    """Add what one layer says of the channels that it reads."""
    convolution = node.target in CONVOLUTIONS
    if not convolution and node.target is not aten.linear.default:
        return
    source, constant = node.args[:2]
    assert isinstance(source, Node)
    assert isinstance(constant, Node)
    atoms = channels.nodes[source.name][1 if convolution else -1]
    if constant.op != "get_attr" or atoms is None:
        return
    value, weight = values[source], get_tensor(model.module, str(constant.target)).detach()
    size = value.movedim(1 if convolution else -1, 0).flatten(1).square().mean(1).sqrt().double()
    norms = weight.movedim(1, 0).flatten(1).norm(dim=1).double()
    if len(norms) < len(size):  # each group of inputs has its own weights, in other rows
        grouped = weight.reshape(len(size) // len(norms), -1, *weight.shape[1:]).movedim(2, 1)
        norms = grouped.flatten(0, 1).flatten(1).norm(dim=1).double()
    for column in atoms.T:
        add_to(totals, column, (size * norms).numpy())
