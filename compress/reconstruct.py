"""Refit the weights that pruning left, so that every layer gives again what it gave before.

A layer that lost inputs can often say the same with other weights on those it kept, because channels resemble each
other. Layer by layer, the new weights are the least-squares fit of the original's outputs on the inputs that the pruned
model now gives it (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.1), drawn
towards the old weights where the examples do not decide. Batch norms follow: their statistics move as far as those of
their inputs did (Li et al. 2020, "EagleEye", shows why that matters).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Interpreter, Node

from ..models.graph import aten, get_tensor, put_tensor, shape_of
from ..models.model import Model
from .channels import Channels
from .least_squares import Sums, fit, sums_of
from .rewrite import without

MEMORY_BYTES = 2**30
"""All examples pass a layer before any passes the next, so no more are used than fit into this."""

CHUNK_BYTES = 2**26
"""The patches under a kernel are laid out as a matrix for so many bytes at a time."""

WIDEST = 5000
"""Layers with more weights for one output are left alone: a fit takes memory by their square and time by their cube."""

CHECKED = 4
"""One example in so many is left out of the fit, and decides whether it is better than the old weights."""


Patches = Callable[[Tensor], Tensor]
"""From a layer's inputs `(n, ...)` to what its kernel sees: `(n, positions, weights of one output)`."""


def reconstruct(original: Model, pruned: Model, channels: Channels, gone: Collection[int], x: Tensor) -> list[str]:
    """Refit convolutions, linear layers and batch-norm statistics of a pruned model, in place.

    Grouped and very wide layers stay as they are, and so do weights that several operators share.

    Args:
        original: the model before pruning.
        pruned: the same without the channels `gone`.
        channels: the analysis of the original.
        gone: the roots that were removed.
        x: examples `(n, ...)`; no more are used than fit into memory.

    Returns:
        The names of the weights that were refitted: those whose fit is better on examples left out of it.
    """
    x = x[: _affordable(original, len(x))]
    lost = np.fromiter(gone, np.int64, len(gone))
    before, after = Interpreter(original.module), Interpreter(pruned.module)
    refitted: list[str] = []

    def wanted(old: Node) -> Tensor:
        return without(before.env[old], channels.nodes[old.name], lost)

    with torch.no_grad():
        for old, new in zip(original.module.graph.nodes, pruned.module.graph.nodes, strict=True):
            if new.op == "output":
                break
            for interpreter, node in ((before, old), (after, new)):
                interpreter.env[node] = x.clone() if node.op == "placeholder" else interpreter.run_node(node)
            if new.target in PATCHES and _alone(new):
                if _refit(pruned, new, after.env[new.args[0]], wanted(old) - after.env[new]):
                    refitted.append(str(new.args[1].target))
                    _run_again(after, new)
            elif new.target == aten.batch_norm.default and _alone(new) and isinstance(new.args[3], Node):
                _move_statistics(pruned, new, wanted(old.args[0]), after.env[new.args[0]])
                _run_again(after, new)
            for interpreter, node in ((before, old), (after, new)):
                for used in interpreter.user_to_last_uses.get(node, ()):
                    del interpreter.env[used]
    return refitted


def _run_again(interpreter: Interpreter, node: Node) -> None:
    """Compute a node anew, with its constants as they are now."""
    for constant in node.all_input_nodes:
        if constant.op == "get_attr":
            interpreter.env[constant] = interpreter.run_node(constant)
    interpreter.env[node] = interpreter.run_node(node)


def _affordable(model: Model, count: int) -> int:
    """Return how many of `count` examples fit into memory, of both models, at the widest place."""
    if not model.dynamic_batch:
        return min(count, int(model.inputs[0].shape[0] or 1))
    interpreter = Interpreter(model.module)
    live, peak, sizes = 0, 1, dict[Node, int]()
    for node in model.module.graph.nodes:
        shape = shape_of(node) or ()
        sizes[node] = 0 if node.op == "get_attr" else 8 * int(np.prod([s for s in shape[1:] if isinstance(s, int)]))
        live += sizes[node]
        peak = max(peak, live)
        live -= sum(sizes[used] for used in interpreter.user_to_last_uses.get(node, ()))
    return max(CHECKED, min(count, MEMORY_BYTES // peak))


def _alone(node: Node) -> bool:
    """Whether no other operator uses this one's constants."""
    constants = [a for a in node.args[1:5] if isinstance(a, Node)]
    if not constants or any(c.op != "get_attr" for c in constants):
        return False
    names = {c.target for c in constants}
    return sum(len(n.users) for n in node.graph.nodes if n.op == "get_attr" and n.target in names) == len(constants)


# --- layers with a kernel


def _convolution_patches(node: Node, weight: Tensor) -> Patches | None:
    rest: list[Any] = list(node.args[3:])
    stride, padding, dilation, groups = rest + [(1, 1), (0, 0), (1, 1), 1][len(rest) :]
    if groups != 1:
        return None
    return lambda x: F.unfold(x, weight.shape[2:], dilation, padding, stride).transpose(1, 2)


def _linear_patches(node: Node, weight: Tensor) -> Patches:
    return lambda x: x.reshape(len(x), -1, x.shape[-1])


PATCHES: dict[Any, Callable[[Node, Tensor], Patches | None]] = {
    aten.conv2d.default: _convolution_patches,
    aten.linear.default: _linear_patches,
}


def _refit(model: Model, node: Node, x: Tensor, missing: Tensor) -> bool:
    """Add to a layer's weights what brings `missing`, the difference wanted of its output, nearest to zero."""
    weight_node, bias_node = node.args[1], node.args[2] if len(node.args) > 2 else None
    if not isinstance(weight_node, Node):
        return False
    weight = get_tensor(model.module, str(weight_node.target)).detach()
    patches = PATCHES[node.target](node, weight)
    if patches is None or weight[0].numel() > WIDEST:
        return False
    rows = missing.flatten(2).transpose(1, 2) if weight.ndim > 2 else missing.reshape(len(missing), -1, len(weight))
    step = max(1, CHUNK_BYTES // (4 * rows.shape[1] * weight[0].numel()))
    checked = len(x) // CHECKED
    offset = isinstance(bias_node, Node) or all(user.target == aten.batch_norm.default for user in node.users)
    change = fit(_sums(x[checked:], rows[checked:], patches, step), offset)
    if not change.helps(_sums(x[:checked], rows[:checked], patches, step)):
        return False
    put_tensor(model.module, str(weight_node.target), weight + change.weight.T.reshape(weight.shape).to(weight.dtype))
    if isinstance(bias_node, Node):
        bias = get_tensor(model.module, str(bias_node.target)).detach()
        put_tensor(model.module, str(bias_node.target), bias + change.bias.to(bias.dtype))
    return True


def _sums(x: Tensor, missing: Tensor, patches: Patches, step: int) -> Sums:
    parts = zip(torch.split(x, step), torch.split(missing, step), strict=True)
    return reduce(Sums.plus, (sums_of(patches(part).flatten(0, 1), errors.flatten(0, 1)) for part, errors in parts))


# --- batch norms


def _move_statistics(model: Model, norm: Node, had: Tensor, has: Tensor) -> None:
    """Shift the running mean and scale the running variance as the norm's input was shifted and scaled."""
    mean_name, variance_name = (str(node.target) for node in norm.args[3:5] if isinstance(node, Node))
    eps: Any = norm.args[7]
    others = [0, *range(2, had.ndim)]
    mean, variance = (get_tensor(model.module, name) for name in (mean_name, variance_name))
    put_tensor(model.module, mean_name, mean + has.mean(others) - had.mean(others))
    put_tensor(model.module, variance_name, variance * (has.var(others) + eps) / (had.var(others) + eps))
