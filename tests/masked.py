"""The truth that pruning is held against: the original graph, where what is removed is masked instead.

Every tensor keeps its size; after each operator the positions that are removed are set to zero. Where a norm or its
statistics span them, they are taken over the others, by formulas written here anew.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from shipworthy.compress.atoms import kept
from shipworthy.compress.channels import Channels
from shipworthy.models.graph import argument
from shipworthy.models.model import Model

_STATISTICS = ("mean", "var", "std", "var_mean", "std_mean")
_NORMS = ("layer_norm", "rms_norm", "group_norm")


def masked_outputs(model: Model, channels: Channels, gone: Collection[int], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what a model gives with the channels `gone` masked; the model stays as it is."""
    with torch.no_grad():
        return tensors(_Masked(model.copy(), channels, gone).run(*inputs))


def tensors(found: Any) -> list[Tensor]:
    """Return the tensors among a model's outputs."""
    return [x for x in torch.utils._pytree.tree_leaves(found) if isinstance(x, Tensor)]


def some_gone(channels: Channels, seed: int, ratio: float = 0.5) -> set[int]:
    """Draw a share of each free group's channels, such that no dimension loses all its positions."""
    draw, gone = random.Random(seed), set[int]()
    for group in channels.groups:
        if group.frozen is None and len(group.channels) > 1:
            gone |= set(
                draw.sample(group.channels, max(1, round(len(group.channels) * ratio * draw.uniform(0.8, 1.0))))
            )
    for dims in (*channels.tensors.values(), *channels.nodes.values()):
        for atoms in dims:
            if atoms is not None and not kept(atoms, channels.lost(gone)).any():
                gone -= set(atoms[0].tolist())
    return gone


def worst_difference(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference of any output, relative to that output's largest value."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(wanted, found, strict=True) if a.is_floating_point()]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-300)) for a, b in pairs)


@contextmanager
def float64_by_default() -> Iterator[None]:
    """Let what a graph makes of whole numbers be float64 too."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def in_float64(model: Model) -> Model:
    """Return a copy that computes in float64 throughout."""
    made = model.copy()
    made.module.double()
    for part in made.module.modules():
        if isinstance(part, GraphModule):
            _widen(part)
    return made


def _widen(module: GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.op == "call_function":
            node.args = tuple(torch.float64 if a is torch.float32 else a for a in node.args)
            node.kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in node.kwargs.items()}
    module.recompile()


class _Masked(Interpreter):
    def __init__(self, model: Model, channels: Channels, gone: Collection[int]) -> None:
        super().__init__(model.module)
        self._channels, self._lost = channels, channels.lost(gone)

    def run_node(self, n: Node) -> Any:
        """Run one operator and mask its result."""
        name = str(n.target).split(".")[1] if n.op == "call_function" and str(n.target).startswith("aten.") else ""
        source = n.args[0] if n.args else None
        if isinstance(source, Node) and self._masks(source, self.env[source]):
            batch_statistics = name == "batch_norm" and argument(n, "training")
            if name in _STATISTICS or name in _NORMS or batch_statistics:
                return self._mask(n, self._normalized(name, n, self.env[source], self._weights(source)))
        return self._mask(n, super().run_node(n))

    def _masks(self, node: Node, value: Tensor) -> list[tuple[int, Tensor]]:
        found = []
        for dim, atoms in enumerate(self._channels.nodes.get(node.name, ())):
            if atoms is None or kept(atoms, self._lost).all():
                continue
            left = np.tile(kept(atoms, self._lost), value.shape[dim] // len(atoms))
            found.append((dim, torch.from_numpy(left).view([-1 if i == dim else 1 for i in range(value.ndim)])))
        return found

    def _mask(self, node: Node, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        for _, left in self._masks(node, value):
            # In place, so that an operator that changes a view still changes what it is a view of.
            own = all(stride or size == 1 for stride, size in zip(value.stride(), value.shape, strict=True))
            value = value.masked_fill_(~left, 0) if own else value.masked_fill(~left, 0)
        return value

    def _weights(self, node: Node) -> Tensor:
        weights = torch.ones_like(self.env[node])
        for _, left in self._masks(node, self.env[node]):
            weights = weights * left
        return weights

    def _normalized(self, name: str, node: Node, x: Tensor, w: Tensor) -> Any:
        if name in _STATISTICS:
            return self._statistics(name, node, x, w)
        centred, lengths = name != "rms_norm", list(x.shape)
        if name == "group_norm":
            grouped = (len(x), int(argument(node, "num_groups")), -1)
            x, w, over = x.reshape(grouped), w.reshape(grouped), [2]
        elif name == "batch_norm":
            over = [d for d in range(x.ndim) if d != 1]
        else:
            over = list(range(-len(argument(node, "normalized_shape")), 0))
        eps = argument(node, "eps")
        mean = _mean(x, w, over, True) if centred else torch.zeros_like(x)
        variance = _mean((x - mean).square(), w, over, True)
        y = ((x - mean) * torch.rsqrt(variance + (torch.finfo(x.dtype).eps if eps is None else eps))).reshape(lengths)
        channelwise = [1, -1] + [1] * (len(lengths) - 2)
        for part, change in (("weight", torch.mul), ("bias", torch.add)):
            value = argument(node, part)
            if isinstance(value, Node):
                one = self.env[value]
                y = change(y, one.view(channelwise) if name in ("group_norm", "batch_norm") else one)
        return y

    def _statistics(self, name: str, node: Node, x: Tensor, w: Tensor) -> Any:
        dims = argument(node, "dim")
        over = list(range(x.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
        keep = bool(argument(node, "keepdim", False))
        mean = _mean(x, w, over, keep)
        if name == "mean":
            return mean
        correction = argument(node, "correction")
        if correction is None:
            correction = 0 if argument(node, "unbiased") is False else 1
        deviation = ((x - _mean(x, w, over, True)).square() * w).sum(over, keepdim=keep)
        variance = deviation / (w.sum(over, keepdim=keep) - correction).clamp(min=1)
        found = variance if name.startswith("var") else variance.sqrt()
        return (found, mean) if name.endswith("_mean") else found


def _mean(x: Tensor, w: Tensor, over: list[int], keep: bool) -> Tensor:
    return (x * w).sum(over, keepdim=keep) / w.sum(over, keepdim=keep).clamp(min=1)
