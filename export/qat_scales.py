"""The scales that a model was trained with, by the names of its ONNX graph, and that graph in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto

from ..models.fake_quantize import PER_CHANNEL, bare
from ..models.graph import get_tensor, put_tensor
from ..models.model import Model
from .float_graph import float_graph
from .int8 import Known
from .onnx_graph import OnnxGraph
from .quant_grid import Range
from .quant_rules import MOVES

Array = NDArray[Any]


def graph_with_grids(model: Model, opset: int) -> tuple[OnnxGraph, Known]:
    """Return a model as a clean graph in fp32, and the ranges and scales that it was trained with.

    The weights in the graph are those that training rounded: a grid of more bits gives the same ones. Without
    fake quantization in the model nothing is known, and the graph is the model's.

    Args:
        model: with or without fake quantization.
        opset: of the graph.

    Raises:
        ToolFailed: the exporter refused the model.
    """
    plain, scales = _without_rounded_weights(model)
    graph = float_graph(plain, opset)
    ranges = _take_pairs(graph)
    _pass_on(graph.proto.graph, ranges)
    weights = {name: get_tensor(plain.module, name).detach().numpy() for name in scales}
    names = _names_of(graph, weights)
    return graph, Known(ranges, {names[name]: steps for name, steps in scales.items() if name in names})


# --- weights


def _without_rounded_weights(model: Model) -> tuple[Model, dict[str, Array]]:
    """Return a model whose weights are rounded where they are stored, and the scales of each by its name."""
    rounded = [node for node in model.module.graph.nodes if node.target == PER_CHANNEL]
    if not rounded:
        return model, {}
    made, scales = model.copy(), dict[str, Array]()
    for node in [node for node in made.module.graph.nodes if node.target == PER_CHANNEL]:
        source, steps, zeros = (get_tensor(made.module, str(one.target)).detach() for one in node.args[:3])
        name = str(bare(node).target)
        if all(user.target == PER_CHANNEL for user in bare(node).users):
            with torch.no_grad():
                put_tensor(made.module, name, PER_CHANNEL(source, steps, zeros, *node.args[3:]))
        scales[name] = steps.numpy().copy()
        node.replace_all_uses_with(bare(node))
        made.module.graph.erase_node(node)
    made.module.graph.eliminate_dead_code()
    made.module.recompile()
    return replace(made, quantization=None), scales


def _names_of(graph: OnnxGraph, weights: Mapping[str, Array]) -> dict[str, str]:
    """Return the names that weights have in the graph: their own, or another where the exporter transposed them."""
    shapes = {one.name: tuple(one.dims) for one in graph.proto.graph.initializer}
    found = {name: name for name in weights if shapes.get(name) == weights[name].shape}
    for name in (name for name in weights if name not in found and weights[name].ndim == 2):
        turned = weights[name].T
        like = (one for one, shape in shapes.items() if shape == turned.shape and one not in found.values())
        same = next((one for one in like if np.array_equal(np.asarray(graph.constant(one)), turned)), None)
        if same is not None:
            found[name] = same
    return found


# --- activations


def _take_pairs(graph: OnnxGraph) -> dict[str, Range]:
    """Remove the pairs of QuantizeLinear and DequantizeLinear, in place; return the range of each value by its name."""
    held = graph.proto.graph
    quantizers = {node.output[0]: node for node in held.node if node.op_type == "QuantizeLinear"}
    if not quantizers:
        return {}
    outputs = {value.name for value in held.output}
    ranges: dict[str, Range] = {}
    renamed: dict[str, str] = {}
    for node in held.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in quantizers:
            continue
        quantizer = quantizers[node.input[0]]
        source, value = renamed.get(quantizer.input[0], quantizer.input[0]), node.output[0]
        # An output's name must stay.
        old, new = (source, value) if value in outputs else (value, source)
        renamed = {name: new if to == old else to for name, to in renamed.items()} | {old: new}
        ranges[new] = _range_of(graph, quantizer)
    kept = [node for node in held.node if not _is_pair(node, quantizers)]
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    _store(held, kept)
    return ranges


def _is_pair(node: NodeProto, quantizers: Mapping[str, NodeProto]) -> bool:
    return node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in quantizers)


def _range_of(graph: OnnxGraph, quantizer: NodeProto) -> Range:
    scale, zero = (graph.constant(name) for name in quantizer.input[1:3])
    assert scale is not None
    assert zero is not None
    ends = np.iinfo(zero.dtype)
    low, high = ((end - int(zero)) * float(scale) for end in (ends.min, ends.max))
    return Range(low, high)


def _store(held: GraphProto, nodes: list[NodeProto]) -> None:
    """Put nodes into a graph, numbered anew, without the constants that nobody reads any more, in place."""
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    del held.node[:]
    held.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in held.output}
    left = [one for one in held.initializer if one.name in used]
    del held.initializer[:]
    held.initializer.extend(left)


def _pass_on(held: GraphProto, ranges: dict[str, Range]) -> None:
    """Give what only moves a value that value's range, in place; and the value its, where that alone has one."""
    moves = [node for node in held.node if node.op_type in MOVES]
    for node in moves:
        if node.input[0] in ranges:
            ranges |= {name: ranges[node.input[0]] for name in node.output if name and name not in ranges}
    for node in reversed(moves):
        found = next((ranges[name] for name in node.output if name in ranges), None)
        if found is not None:
            ranges.setdefault(node.input[0], found)


__all__ = ["graph_with_grids"]
