"""What the tokens of a transformer attend to: scores inside attention modules, compared between two networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from ..models.errors import BadInput, first_few
from ..models.graph import aten, module_path

_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_FUSED = aten.scaled_dot_product_attention.default
_MASKED = -1e2
"""Scores below it are of places that are not to be seen; no real one is so low (Jiao et al. 2020, their code)."""


@contextmanager
def attention_shown(module: GraphModule, paths: Sequence[str]) -> Iterator[list[Node]]:
    """Give nodes that hold the scores of attention modules before softmax, `(batch, heads, tokens, tokens)`.

    Where attention is one fused operator, its scores are computed once more beside it; these nodes go afterwards.

    Raises:
        BadInput: there is no attention in a module of that path.
    """
    found = [_attention(module, path) for path in paths]
    made: list[Node] = []
    try:
        yield [_scores_of(module, node, made) for node in found]
    finally:
        for node in reversed(made):
            module.graph.erase_node(node)
        module.recompile()


def attention_map_loss(given: Sequence[Tensor], wanted: Sequence[Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of mean squared differences of attention scores (Jiao et al. 2020, "TinyBERT", eq. 7).

    Scores are compared before softmax, as in the paper; masked ones count as zero. Where the number of heads differs,
    as after pruning, their means are compared.

    Args:
        given: the student's scores, `(batch, heads, tokens, tokens)`.
        wanted: the teacher's.
        weights: by path.

    Raises:
        BadInput: the networks saw other tokens.
    """
    parts = []
    for (path, weight), here, there in zip(weights.items(), given, wanted, strict=True):
        a, b = _seen(here), _seen(there.to(here.dtype))
        if a.shape[1] != b.shape[1]:
            a, b = a.mean(1), b.mean(1)
        if a.shape != b.shape:
            raise BadInput(f"the attention at {path!r} does not fit: {tuple(here.shape)} here, {tuple(there.shape)} in the teacher")  # fmt: skip # noqa: E501
        parts.append(weight * F.mse_loss(a, b))
    return torch.stack(parts).sum()


def _seen(scores: Tensor) -> Tensor:
    return torch.where(scores <= _MASKED, 0.0, scores)


def _attention(module: GraphModule, path: str) -> Node:
    every: Iterable[Node] = module.graph.nodes
    nodes = [node for node in every if node.target in (*_SOFTMAX, _FUSED) and _is_attention(node)]
    inside = [node for node in nodes if f"{module_path(node)}.".startswith(f"{path}.")]
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise BadInput(f"{len(inside)} attentions in {path!r}: {first_few(sorted(map(module_path, inside)))}; name one")
    there = sorted(set(map(module_path, nodes)))
    raise BadInput(f"no attention in {path!r}; {f'there is one in {first_few(there)}' if there else 'the model has none'}")  # fmt: skip # noqa: E501


def _is_attention(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim == 4


def _scores_of(module: GraphModule, node: Node, made: list[Node]) -> Node:
    """Return the node of the scores; nodes that were inserted for them are added to `made`."""
    if node.target != _FUSED:
        return node.all_input_nodes[0]
    query, key = node.args[0], node.args[1]
    assert isinstance(query, Node)
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    scale: Any = node.kwargs.get("scale") or query.meta["val"].shape[-1] ** -0.5
    with module.graph.inserting_before(node):

        def add(operator: Any, *args: Any) -> Node:
            made.append(module.graph.call_function(operator, args))
            return made[-1]

        scores = add(aten.mul.Tensor, add(aten.matmul.default, query, add(aten.transpose.int, key, -2, -1)), scale)
        if not isinstance(mask, Node):
            return scores
        unseen = mask.meta["val"].dtype == torch.bool
        return add(aten.where.ScalarOther, mask, scores, 0.0) if unseen else add(aten.add.Tensor, scores, mask)


__all__ = ["attention_map_loss", "attention_shown"]
