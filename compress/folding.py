"""Fold batch norms into the convolutions before them: the same function in fewer operators, for inference only."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..models.graph import aten, get_tensor, put_tensor, shape_of
from ..models.model import Model

# The second overload of each takes padding by name ("same", "valid"); all other arguments agree.
CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
)


def fold_batch_norm(model: Model) -> Model:
    """Return a model whose batch norms that follow a convolution or a linear layer directly are part of its weights.

    A batch norm stays where its layer's result or weight has other users. For inference: the folded model
    cannot be trained as the first could.
    """
    made = model.copy()
    graph = made.module.graph
    for norm in list(graph.nodes):
        convolution = norm.args[0] if norm.target == aten.batch_norm.default else None
        if isinstance(convolution, Node) and _foldable(convolution):
            _fold(made, convolution, norm)
    graph.eliminate_dead_code()
    made.module.recompile()
    return made


def _foldable(convolution: Node) -> bool:
    # Of a linear layer the norm's channels are its outputs only where nothing lies between: in rank two.
    linear = convolution.target == aten.linear.default and len(shape_of(convolution) or ()) == 2
    if not (linear or convolution.target in CONVOLUTIONS) or len(convolution.users) != 1:
        return False
    constants = [a for a in convolution.args[1:3] if isinstance(a, Node)]
    return all(c.op == "get_attr" and len(c.users) == 1 for c in constants)


def _fold(model: Model, convolution: Node, norm: Node) -> None:
    def value(node: object) -> torch.Tensor | None:
        return get_tensor(model.module, str(node.target)).detach() if isinstance(node, Node) else None

    weight_node, bias_node = convolution.args[1], convolution.args[2] if len(convolution.args) > 2 else None
    weight, bias = value(weight_node), value(bias_node)
    scale, shift, mean, variance = (value(a) for a in norm.args[1:5])
    if weight is None or mean is None or variance is None or not isinstance(weight_node, Node):
        return
    factor = torch.rsqrt(variance + float(norm.args[7])) * (1 if scale is None else scale)  # type: ignore[arg-type]  # eps
    offset = ((0 if bias is None else bias) - mean) * factor + (0 if shift is None else shift)
    put_tensor(model.module, str(weight_node.target), weight * factor.view(-1, *([1] * (weight.ndim - 1))))
    name = f"{weight_node.target}_folded_bias".replace(".", "_")
    model.module.register_buffer(name, offset)
    with model.module.graph.inserting_before(convolution):
        new_bias = model.module.graph.get_attr(name)
    rest = convolution.args[3:]
    convolution.args = (convolution.args[0], weight_node, new_bias, *rest)
    norm.replace_all_uses_with(convolution)
    model.module.graph.erase_node(norm)
