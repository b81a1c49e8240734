"""Fake quantization into a graph, trainable, and from there to ATen's operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..models.fake_quantize import PER_CHANNEL, PER_TENSOR
from ..models.graph import get_tensor
from .qat_bounds import bounds_of, is_gate
from .qat_modules import ActivationGrid, FollowedGrid, GateGrid, LargestSteps, LearntGrid, LearntSteps, WeightSteps
from .qat_places import Places
from .qat_ranges import LEVELS, Bounds

PACE = 0.05
"""The share of a moving average that a batch renews."""


@dataclass(frozen=True, eq=False)
class Inserted:
    """What was inserted into a graph: the nodes, each with its module.

    Weights also come with the name of the constant and the dimension of its channels.
    """

    activations: tuple[tuple[Node, ActivationGrid], ...]
    weights: tuple[tuple[Node, WeightSteps, int], ...]
    bits: int

    def settle(self, frozen: bool) -> None:
        """After a step: bring steps that fell too low back, and let ranges stand still from some step on."""
        for one in (*(grid for _, grid in self.activations), *(steps for _, steps, _ in self.weights)):
            one.settle()
            if isinstance(one, FollowedGrid):
                one.frozen = frozen


def insert(module: GraphModule, places: Places, ranges: Mapping[Node, Bounds], bits: int, learn: bool) -> Inserted:
    """Insert trainable fake quantization into a prepared graph, in place.

    Args:
        module: changed.
        places: where.
        ranges: of every origin, to start from.
        bits: of weights.
        learn: steps are learnt; otherwise ranges follow a moving average, and weights' steps their largest value.
    """
    weights = _round_weights(module, places, 2 ** (bits - 1) - 1, learn)
    grids = _grids(places, ranges, learn)
    activations = []
    for site in places.sites:
        users = set(site.readers or site.value.users)
        node = _call(module, site.value, grids[site.origin])
        site.value.replace_all_uses_with(node, delete_user_cb=users.__contains__)
        activations.append((node, grids[site.origin]))
    module.recompile()
    return Inserted(tuple(activations), weights, bits)


def _round_weights(
    module: GraphModule, places: Places, most: int, learn: bool
) -> tuple[tuple[Node, WeightSteps, int], ...]:
    """One weight that several operators read has one set of steps."""
    made: dict[tuple[str, int], tuple[Node, WeightSteps, int]] = {}
    for weight in places.weights:
        source = weight.source
        key = str(source.target), weight.axis
        if key not in made:
            value = get_tensor(module, str(source.target))
            steps = LearntSteps(value, weight.axis, most) if learn else LargestSteps(weight.axis, most)
            made[key] = _call(module, source, steps), steps, weight.axis
        weight.user.update_arg(weight.place, made[key][0])
    return tuple(made.values())


def _grids(places: Places, ranges: Mapping[Node, Bounds], learn: bool) -> dict[Node, ActivationGrid]:
    """Return the grid of every origin; those that share one have the same, or follow their ranges together."""
    made: dict[Node, ActivationGrid] = {site.origin: GateGrid() for site in places.sites if is_gate(site.origin)}
    if learn:
        for origin in places.origins:
            if origin not in made:
                made |= dict.fromkeys(places.shared[origin], LearntGrid(ranges[origin], bounds_of(origin)))
        return made
    followed = {origin: FollowedGrid(ranges[origin], PACE) for origin in places.origins}
    for origin, grid in followed.items():
        grid.join(tuple(followed[one] for one in places.shared[origin]))
    return made | followed


def _call(module: GraphModule, source: Node, rounding: ActivationGrid | WeightSteps) -> Node:
    """Insert a call of a module behind a node."""
    known = {id(one): name for name, one in module.named_children()}
    name = known.get(id(rounding)) or next(one for i in count() if not hasattr(module, one := f"rounding_{i}"))
    module.add_submodule(name, rounding)
    with module.graph.inserting_after(source):
        node = module.graph.call_module(name, (source,))
    node.meta = dict(source.meta)
    return node


def finish(module: GraphModule, inserted: Inserted) -> None:
    """Write ATen's fake quantization with the present grids instead of the trainable one, in place."""
    graph = module.graph
    trained = {str(node.target) for node, _ in inserted.activations}
    trained |= {str(node.target) for node, _, _ in inserted.weights}
    for node, module_of in inserted.activations:
        grid = module_of.grid()
        with graph.inserting_before(node):
            _replace(graph.call_function(PER_TENSOR, (node.args[0], grid.step, grid.zero, 0, LEVELS)), node)
    most = 2 ** (inserted.bits - 1) - 1
    for node, steps_of, axis in inserted.weights:
        name = str(node.args[0].target)  # type: ignore[union-attr]  # a constant
        steps = steps_of.steps(get_tensor(module, name).detach()).contiguous()
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        with graph.inserting_before(node):
            constants = [_constant(module, f"{name}_{what}", x) for what, x in (("scale", steps), ("zero", zeros))]
            _replace(graph.call_function(PER_CHANNEL, (node.args[0], *constants, axis, -most - 1, most)), node)
    for name in trained:
        delattr(module, name)
    graph.lint()
    module.recompile()


def _replace(new: Node, old: Node) -> None:
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def _constant(module: GraphModule, name: str, value: Any) -> Node:
    place = name.replace(".", "_")
    module.register_buffer(place, value)
    node = module.graph.get_attr(place)
    node.meta["val"] = value
    return node


__all__ = ["Inserted", "finish", "insert"]
