"""Features inside a network: tensors at module paths, and maps from a student's to its teacher's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from ..models.errors import BadInput, first_few
from ..models.graph import aten, changes, module_path
from .attention_maps import attention_shown
from .least_squares import fit, sums_of

_MAP = "_feature_map_{}"


def feature_node(module: GraphModule, path: str) -> Node:
    """Return the node that gives the result of a module.

    Raises:
        BadInput: no operator of the graph comes from a module of that path, or its result has no channels.
    """
    nodes: Iterable[Node] = module.graph.nodes
    inside = [node for node in nodes if node.op == "call_function" and _within(module_path(node), path)]
    if not inside:
        paths = sorted({found for node in nodes if (found := module_path(node))})
        raise BadInput(f"no module {path!r} in the model; there are {first_few(paths)}")
    value = inside[-1].meta.get("val")
    if not isinstance(value, Tensor) or value.ndim < 2:
        raise BadInput(f"the result of {path!r} has no channels to compare; name another module")
    return inside[-1]


def _within(found: str, path: str) -> bool:
    return found == path or found.startswith(f"{path}.")


@contextmanager
def shown(module: GraphModule, paths: Sequence[str], attentions: Sequence[str] = ()) -> Iterator[None]:
    """While it lasts, calling the graph gives `(output, features)`: its only output, and a tuple of tensors.

    They are the results of the modules at `paths`, then the scores of `attentions` (see `attention_maps`).
    """
    with (
        _tapped(module, paths) as taps,
        attention_shown(module, attentions) as scores,
        _more_outputs(module, [*taps, *scores]),
    ):
        yield


@contextmanager
def mapped(
    module: GraphModule, paths: Sequence[str], inputs: tuple[Tensor, ...], wanted: Sequence[Tensor],
    attentions: Sequence[str] = (),
) -> Iterator[None]:  # fmt: skip
    """While it lasts, calling the graph gives `(output, features)`, the features as maps onto others'.

    A map is linear over channels, the same for every pixel: the 1 x 1 convolution of Romero et al. (2015, "FitNets").
    Maps are parameters of the module for as long as they are there, so that they are trained with it. They begin as
    the least-squares fit for one batch, not at random.

    Args:
        module: the graph; it is as before afterwards, but for what training changed.
        paths: module paths.
        inputs: a batch.
        wanted: for each path, what the feature of that batch should become: the same shape but for the channels, which
            are dimension 1, or the last of a tensor of rank two or three.
        attentions: of whose scores come behind the features, without maps.

    Raises:
        BadInput: the shapes differ in more than the channels.
    """
    with shown(module, paths), torch.no_grad():
        _, given = module(*inputs)
    maps = [_fitted(path, a, b.to(a.dtype)) for path, a, b in zip(paths, given, wanted, strict=True)]
    with _tapped(module, paths) as taps, attention_shown(module, attentions) as scores:
        made = [
            _insert_map(module, _MAP.format(i), tap, value.ndim, *found)
            for i, (tap, value, found) in enumerate(zip(taps, given, maps, strict=True))
        ]
        try:
            with _more_outputs(module, [*made, *scores]):
                yield
        finally:
            for node in made:
                constants = node.all_input_nodes[1:]
                for gone in (node, *constants):
                    module.graph.erase_node(gone)
                for constant in constants:
                    delattr(module, str(constant.target))
            module.recompile()


@contextmanager
def _tapped(module: GraphModule, paths: Sequence[str]) -> Iterator[list[Node]]:
    """Give nodes that hold the modules' results: copies where those are changed in place afterwards."""
    nodes = [feature_node(module, path) for path in paths]
    taps = [_copied(module, node) if any(changes(user, node) for user in node.users) else node for node in nodes]
    try:
        yield taps
    finally:
        for tap, node in zip(taps, nodes, strict=True):
            if tap is not node:
                module.graph.erase_node(tap)
        module.recompile()


def _copied(module: GraphModule, node: Node) -> Node:
    with module.graph.inserting_after(node):
        return module.graph.call_function(aten.clone.default, (node,))


def feature_loss(given: Sequence[Tensor], wanted: Sequence[Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of mean squared differences, each relative to the variance of what is wanted."""
    parts = [(a, b.to(a.dtype), w) for a, b, w in zip(given, wanted, weights.values(), strict=True)]
    return torch.stack([w * F.mse_loss(a, b) / b.var() for a, b, w in parts]).sum()


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1) if x.ndim > 3 else x


def _fitted(path: str, given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _channels_last(given), _channels_last(wanted)
    if a.shape[:-1] != b.shape[:-1]:
        raise BadInput(
            f"the features at {path!r} do not fit: {tuple(given.shape)} here, {tuple(wanted.shape)} in the teacher; "
            "they may differ in their channels only"
        )
    found = fit(sums_of(a.flatten(0, -2), b.flatten(0, -2)), offset=True)
    return found.weight.T.to(given.dtype), found.bias.to(given.dtype)


def _insert_map(module: GraphModule, name: str, node: Node, rank: int, weight: Tensor, bias: Tensor) -> Node:
    kernel = weight.reshape(*weight.shape, *[1] * (rank - 2)) if rank > 3 else weight
    for suffix, value in (("weight", kernel), ("bias", bias)):
        module.register_parameter(f"{name}_{suffix}", nn.Parameter(value.contiguous()))
    operator = {4: aten.conv2d.default, 5: aten.conv3d.default}.get(rank, aten.linear.default)
    with module.graph.inserting_before(node.next):
        constants = [module.graph.get_attr(f"{name}_{suffix}") for suffix in ("weight", "bias")]
        return module.graph.call_function(operator, (node, *constants))


@contextmanager
def _more_outputs(module: GraphModule, nodes: Sequence[Node]) -> Iterator[None]:
    """While it lasts, the graph gives `(output, values of the nodes)`."""
    graph = module.graph
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    before, codegen = output.args, graph._codegen
    only: Any = before[0]
    output.args = ((only[0] if isinstance(only, tuple | list) else only, tuple(nodes)),)
    graph.set_codegen(CodeGen())
    module.recompile()
    try:
        yield
    finally:
        output.args = before
        graph.set_codegen(codegen)
        module.recompile()
