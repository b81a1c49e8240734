"""Refit the weights of a model that lost channels or blocks, so that every layer gives again what it gave before.

A layer that lost inputs can often say the same with other weights on those it kept, because channels resemble each
other. Layer by layer, the new weights are the least-squares fit of the original's outputs on the inputs that the
smaller model now gives it (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.1),
drawn towards the old weights where the examples do not decide. The last layer of a residual branch is fitted to the
original's sum, less what the smaller model's shortcut gives (section 3.3 there): it makes good what was lost before.
Batch norms follow: their statistics move as far as those of their inputs did (Li et al. 2020, "EagleEye", shows why
that matters).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from ..models.graph import SUMS, aten, get_tensor, put_tensor
from ..models.model import Model
from .channels import Channels
from .layers import Layer, affordable, alone, count_of, first, layer_of, norm_eps, norm_scale, patch_sums
from .least_squares import fit
from .rewrite import without

CHECKED = 4
"""One example in so many is left out of the fit, and decides whether it is better than the old weights."""

FAINTEST = 1e-2
"""A channel scaled by less than this share of what the strongest one is makes no other's errors good: the weights would
become huge."""

Keep = Callable[[Node, Tensor], Tensor]
"""From a node of the original and its value to the part of it that is left."""


def reconstruct(
    original: Model,
    smaller: Model,
    x: Tensor | tuple[Tensor, ...],
    channels: Channels | None = None,
    gone: Collection[int] = (),
) -> list[str]:
    """Refit convolutions, linear layers and batch-norm statistics of a smaller model, in place.

    Grouped and very wide layers stay as they are, and so do weights that several operators share, and sparse ones: a
    fit would give their zeros other values.

    Args:
        original: the model before.
        smaller: the same without the channels `gone`, or without some operators; those left have their old names.
        x: examples `(n, ...)` of each input, or of the only one; no more are used than fit into memory.
        channels: the analysis of the original, where channels are gone.
        gone: the roots that were removed.

    Returns:
        The names of the weights that were refitted: those whose fit is better on examples left out of it.
    """
    lost = np.zeros(1, np.bool_) if channels is None else channels.lost(gone)

    def keep(node: Node, value: Tensor) -> Tensor:
        return value if channels is None else without(value, channels.nodes[node.name], lost)

    walk = _Walk(original, smaller, keep, first(x, max(CHECKED, affordable(original, count_of(x)))))
    with torch.no_grad():
        return [name for node in smaller.module.graph.nodes if (name := walk.step(node))]


class _Walk:
    """Both models side by side, one operator of the smaller one after the other."""

    def __init__(self, original: Model, smaller: Model, keep: Keep, inputs: tuple[Tensor, ...]) -> None:
        self._smaller, self._keep = smaller, keep
        places = [node.name for node in original.module.graph.nodes if node.op == "placeholder"]
        self._inputs = dict(zip(places, inputs, strict=True))
        self._before, self._after = Interpreter(original.module), Interpreter(smaller.module)
        self._originals = {node.name: node for node in original.module.graph.nodes}
        self._ahead = iter(original.module.graph.nodes)
        self._aims: dict[Node, Tensor] = {}

    def step(self, node: Node) -> str | None:
        """Run an operator here, and the original's up to its like; return the name of the weight that was refitted."""
        if node.op == "output":
            return None
        old = self._originals.get(node.name)
        if old is None:  # a copy that keeps what was a tensor of its own
            self._run(self._after, node)
            _forget(self._after, node)
            return None
        for passed in self._ahead:
            self._run(self._before, passed)
            if passed is old:
                break
            _forget(self._before, passed)
        self._run(self._after, node)
        layer = layer_of(self._smaller, node)
        refitted = layer is not None and self._fit_layer(node, layer)
        if refitted or self._move_norm(node):
            self._run_again(node)
        _forget(self._before, old)
        for used in _forget(self._after, node):
            self._aims.pop(used, None)
        return layer.weight if layer is not None and refitted else None

    def _run(self, interpreter: Interpreter, node: Node) -> None:
        given = node.op == "placeholder"
        interpreter.env[node] = self._inputs[node.name].clone() if given else interpreter.run_node(node)

    def _original(self, node: Node) -> Tensor:
        """Return what is left of the original's value at one of its nodes."""
        return self._keep(node, self._before.env[node])

    def _fit_layer(self, node: Node, layer: Layer) -> bool:
        aim = self._aims[node] = self._original(self._originals[node.name]) + self._missing_beside(node, layer.norm)
        return _refit(self._smaller, layer, self._after.env[layer.source], aim - self._after.env[node])

    def _missing_beside(self, node: Node, norm: Node | None) -> Tensor:
        """Return what the other side of a layer's sum lacks, in terms of the layer's result; 0 if it is in no sum."""
        here, nothing = _other_side(norm or node), torch.zeros(())
        if here is None:
            return nothing
        place, total = here
        other, old = total.args[place], self._originals[total.name].args[place]
        if not (
            isinstance(other, Node) and other in self._after.env and isinstance(old, Node) and old in self._before.env
        ):
            return nothing  # computed later: that side will make good what this one lost
        missing: Tensor = self._original(old) - self._after.env[other]
        if missing.shape != self._after.env[node].shape:
            return nothing
        return missing if norm is None else missing * _unscaling(self._smaller, norm, missing.ndim)

    def _move_norm(self, node: Node) -> bool:
        """Shift the running mean and scale the running variance as the norm's input was shifted and scaled."""
        if node.target != aten.batch_norm.default or not alone(node):
            return False
        source, *constants = [a for a in node.args[:5] if isinstance(a, Node)]
        if not isinstance(node.args[3], Node):
            return False
        old = self._originals[node.name].args[0]
        assert isinstance(old, Node)
        # What gave the norm its input before may be gone: the aim of what gives it now is another's.
        aimed = source in self._aims and source.name == old.name
        had, has = self._aims[source] if aimed else self._original(old), self._after.env[source]
        others = [0, *range(2, had.ndim)]
        names = [str(constant.target) for constant in constants[-2:]]
        mean, variance = (get_tensor(self._smaller.module, name) for name in names)
        eps = norm_eps(node)
        put_tensor(self._smaller.module, names[0], mean + has.mean(others) - had.mean(others))
        put_tensor(self._smaller.module, names[1], variance * (has.var(others) + eps) / (had.var(others) + eps))
        return True

    def _run_again(self, node: Node) -> None:
        """Compute a node anew, with its constants as they are now."""
        for constant in node.all_input_nodes:
            if constant.op == "get_attr":
                self._run(self._after, constant)
        self._run(self._after, node)


def _forget(interpreter: Interpreter, node: Node) -> list[Node]:
    """Free what no operator after `node` uses."""
    unused = interpreter.user_to_last_uses.get(node, [])
    for used in unused:
        del interpreter.env[used]
    return unused


def _refit(model: Model, layer: Layer, x: Tensor, missing: Tensor) -> bool:
    """Add to a layer's weights what brings `missing`, the difference wanted of its output, nearest to zero."""
    if model.sparsity and layer.weight in model.sparsity.patterns:
        return False
    weight = get_tensor(model.module, layer.weight).detach()
    rows = missing.flatten(2).transpose(1, 2) if weight.ndim > 2 else missing.reshape(len(missing), -1, len(weight))
    checked = len(x) // CHECKED
    change = fit(patch_sums(layer.patches, x[checked:], rows[checked:]), offset=bool(layer.bias or layer.norm))
    if not change.helps(patch_sums(layer.patches, x[:checked], rows[:checked])):
        return False
    put_tensor(model.module, layer.weight, weight + change.weight.T.reshape(weight.shape).to(weight.dtype))
    if layer.bias is not None:
        bias = get_tensor(model.module, layer.bias).detach()
        put_tensor(model.module, layer.bias, bias + change.bias.to(bias.dtype))
    return True


# --- sums


def _other_side(node: Node) -> tuple[int, Node] | None:
    """Return the plain sum that a node's result goes into and nothing else does, and the other place in it.

    Dropout between them rests.
    """
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target in SUMS:
            plain = len(user.args) == len(user.all_input_nodes) == 2 and not user.kwargs
            return (1 - user.args.index(node), user) if plain else None
        if user.target not in (aten.dropout.default, aten.dropout_.default):
            return None
        node = user
    return None


def _unscaling(model: Model, norm: Node, rank: int) -> Tensor:
    """Return what undoes a batch norm's scaling, for each channel; 0 where it would be huge."""
    scale = norm_scale(model, norm)
    if scale is None:
        return torch.zeros(())
    undone = torch.where(scale.abs() <= FAINTEST * scale.abs().max(), 0, 1 / scale)
    return undone.view(1, -1, *[1] * (rank - 2))
