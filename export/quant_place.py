"""Write the pairs of QuantizeLinear and DequantizeLinear of a plan into a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .artifact import Target
from .onnx_shapes import attributes_of
from .quant_grid import WEIGHT_BITS, Grid, Range, grid_of, weight_scales, whole_weights
from .quant_plan import QuantPlan, Wiring, clamp_limits, inner_names
from .quant_rules import CLAMPS

Array = NDArray[Any]

_MOST_BIAS = float(2**31 - 2**24)


@dataclass(frozen=True, eq=False)
class Grids:
    """What is known of scales before the pairs are written.

    Attributes:
        ranges: of activations, by name.
        weight_scales: of weights, by name, `(channels,)`; others follow from the weights.
        bits: of weights; None for what the target takes.
        by_error: choose other weights' scales by squared error, not by the largest weight.
    """

    ranges: Mapping[str, Range]
    weight_scales: Mapping[str, Array] = field(default_factory=dict)
    bits: int | None = None
    by_error: bool = False


def place(proto: ModelProto, wiring: Wiring, plan: QuantPlan, grids: Grids, target: Target) -> ModelProto:
    """Return the graph with Q/DQ pairs; weights of products become 8-bit integers.

    Args:
        proto: fp32, of operator set 13 or later, constants as initializers, every node named.
        wiring: of `proto.graph`.
        plan: what is quantized.
        grids: a range for each tensor of the plan that is observed.
        target: whose grids they are.
    """
    return _Placer(proto, wiring, plan, grids, target).result()


def weight_axis(node: NodeProto, rank: int) -> int | None:
    """Return the dimension of a product's weight that is its output channels; None where it has no single one."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attributes_of(node).get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attributes_of(node).get("transB", 0) else 1
    return 1 if rank == 2 else None


class _Placer:
    def __init__(self, proto: ModelProto, wiring: Wiring, plan: QuantPlan, grids: Grids, target: Target) -> None:
        self._proto, self._wiring, self._plan, self._grids = proto, wiring, plan, grids
        self._target: Target = target
        self._bits = grids.bits or WEIGHT_BITS[target]
        ends = [node for node in wiring.graph.node if node.op_type in CLAMPS and node.name in plan.nodes]
        dropped = [node for node in ends if node.output[0] in plan.held]
        self._clamped = {node.input[0]: node.output[0] for node in dropped}
        self._limits = {node.output[0]: clamp_limits(node, wiring.weights) or (-inf, inf) for node in dropped}
        self._of = {name: self._grid(name) for name in plan.tensors}
        self._added: dict[str, TensorProto] = {}
        self._pairs = 0

    def _grid(self, name: str) -> Grid:
        source = self._plan.takes_over.get(name, name)
        if source in self._plan.fixed:
            return grid_of(Range(*self._plan.fixed[source]), self._target)
        low, high = self._limits.get(source, (-inf, inf))
        return grid_of(_within(self._grids.ranges[source], low, high), self._target)

    def result(self) -> ModelProto:
        made = ModelProto()
        made.CopyFrom(self._proto)
        graph = made.graph
        del graph.node[:], graph.value_info[:]
        for value in graph.input:
            graph.node.extend(self._quantizer(value.name, value.name))
        for node in self._wiring.graph.node:
            if not self._is_dropped(node):
                graph.node.extend(self._rewritten(node))
        used = {name for node in graph.node for name in (*node.input, *inner_names(node))} | self._wiring.outputs
        left = [one for one in graph.initializer if one.name in used]
        del graph.initializer[:]
        graph.initializer.extend([*left, *self._added.values()])
        return made

    def _rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield a node with what goes into it, and the quantizers of what comes out."""
        new = NodeProto()
        new.CopyFrom(node)
        chosen = node.name in self._plan.nodes
        for place, name in enumerate(node.input):
            if name in self._of and (chosen or name in self._plan.held or self._is_shortcut(node)):
                yield from self._dequantized(new, place, f"{name}/whole", self._of[name])
            elif chosen and name in self._wiring.weights and name in self._wiring.floats:
                yield from self._constant(node, new, place)
        yield from self._ended(new)

    def _ended(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield a finished node and the quantizers of its results, by the names that readers know."""
        names = [self._clamped.get(name, name) for name in node.output]
        of_kernel = [name in self._of and name in self._wiring.outputs and name in self._plan.held for name in names]
        made = [f"{name}/made" if held else name for name, held in zip(names, of_kernel, strict=True)]
        node.output[:] = made
        yield node
        for name, source, held in zip(names, made, of_kernel, strict=True):
            yield from self._quantizer(source, name)
            if held:
                yield self._dequantizer(f"{name}/whole", name, self._of[name])

    def _is_dropped(self, node: NodeProto) -> bool:
        """Whether a node does what the grid of its result does anyway: cut off what is outside."""
        return node.op_type in CLAMPS and node.output[0] in self._clamped.values()

    def _is_shortcut(self, node: NodeProto) -> bool:
        return self._target == "tensorrt" and node.op_type == "Add"

    def _quantizer(self, source: str, name: str) -> Iterator[NodeProto]:
        if name in self._of:
            yield helper.make_node("QuantizeLinear", [source, *self._grid_names(self._of[name])], [f"{name}/whole"], f"{name}/quantize")  # fmt: skip # noqa: E501

    def _dequantized(self, node: NodeProto, place: int, whole: str, grid: Grid) -> Iterator[NodeProto]:
        """Yield the dequantizer of one input: runtimes match each of theirs to one reader."""
        self._pairs += 1
        name = f"{whole}/{self._pairs}"
        node.input[place] = name
        yield self._dequantizer(whole, name, grid)

    def _dequantizer(self, whole: str, name: str, grid: Grid) -> NodeProto:
        return helper.make_node("DequantizeLinear", [whole, *self._grid_names(grid)], [name], f"{name}/dequantize")

    def _grid_names(self, grid: Grid) -> list[str]:
        return [
            self._add(f"scale/{grid.scale!r}", np.array(grid.scale, np.float32)),
            self._add(f"zero/{grid.kind.name}/{grid.zero_point}", np.array(grid.zero_point, grid.kind)),
        ]

    def _add(self, name: str, values: Array) -> str:
        if name not in self._added:
            self._added[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def _constant(self, node: NodeProto, new: NodeProto, place: int) -> Iterator[NodeProto]:
        """Yield the dequantizer of a weight, a bias, or another constant that `node` reads and `new` is to."""
        if node.name not in self._plan.products:
            values = numpy_helper.to_array(self._wiring.weights[node.input[place]])
            grid = grid_of(Range(float(values.min()), float(values.max())), self._target)
            yield from self._dequantized(new, place, self._add(f"{node.input[place]}/whole", grid.whole(values)), grid)
        elif place == 1:
            scales, axis = self._scales(node)
            weight = numpy_helper.to_array(self._wiring.weights[node.input[1]])
            whole = whole_weights(weight, scales, axis, self._bits)
            yield from self._by_channel(new, 1, self._add(self._name_of(node), whole), scales, axis)
        elif place == 2 and self._target == "cpu":
            yield from self._bias(node, new)

    def _name_of(self, node: NodeProto) -> str:
        """Return the name of a weight's integers: of its own where two nodes that read it differ in their bias."""
        shared = len(self._wiring.readers[node.input[1]]) > 1
        return f"{node.input[1]}/{node.name}/whole" if shared else f"{node.input[1]}/whole"

    def _scales(self, node: NodeProto) -> tuple[Array, int | None]:
        """Return the scales of a product's weight, and their dimension; a bias must fit into 32 bits of them."""
        name = node.input[1]
        weight = numpy_helper.to_array(self._wiring.weights[name])
        axis = weight_axis(node, weight.ndim)
        given = self._grids.weight_scales.get(name)
        scales = weight_scales(weight, axis, self._bits, self._grids.by_error) if given is None else given
        bias = self._whole_bias(node)
        if bias is None:
            return scales, axis
        least = np.abs(bias if axis is not None else bias.max(keepdims=True)) / (
            _MOST_BIAS * self._of[node.input[0]].scale
        )
        return np.maximum(scales, least).astype(np.float32), axis

    def _whole_bias(self, node: NodeProto) -> Array | None:
        """Return a bias that is to become integers: on CPUs, one number for each channel."""
        name = node.input[2] if len(node.input) > 2 else ""
        if self._target != "cpu" or name not in self._wiring.weights:
            return None
        bias = numpy_helper.to_array(self._wiring.weights[name]).astype(np.float64)
        return bias if bias.ndim == 1 else None

    def _bias(self, node: NodeProto, new: NodeProto) -> Iterator[NodeProto]:
        """Yield the dequantizer of a bias: integers in the scale of the products that it is added to."""
        bias = self._whole_bias(node)
        if bias is None:
            return
        scales, axis = self._scales(node)
        unit = scales.astype(np.float64) * self._of[node.input[0]].scale
        whole = self._add(f"{node.input[2]}/{node.name}/whole", np.round(bias / unit).astype(np.int32))
        yield from self._by_channel(new, 2, whole, unit.astype(np.float32), None if axis is None else 0)

    def _by_channel(
        self, node: NodeProto, place: int, whole: str, scales: Array, axis: int | None
    ) -> Iterator[NodeProto]:
        """Yield the dequantizer of integers with a scale for each channel, or one in all."""
        self._pairs += 1
        name, kind = f"{whole}/{self._pairs}", helper.tensor_dtype_to_np_dtype(self._added[whole].data_type)
        zeros = np.zeros(len(scales), kind)
        alone = axis is None
        grid = [
            self._add(f"{whole}/scale", scales[0] if alone else scales),
            self._add(f"{whole}/zero", zeros[0] if alone else zeros),
        ]
        node.input[place] = name
        axes: dict[str, Any] = {} if alone else {"axis": axis}
        yield helper.make_node("DequantizeLinear", [whole, *grid], [name], f"{name}/dequantize", **axes)


def _within(span: Range, low: float, high: float) -> Range:
    """Return a range cut off where a clamp cuts off that the grid stands for; trained ones may reach further.

    What is over by less than half a step of 8 bits stays: the grid that was trained with is worth more.
    """
    half = (span.high - span.low) / 510
    return Range(low if span.low < low - half else span.low, high if span.high > high + half else span.high)
