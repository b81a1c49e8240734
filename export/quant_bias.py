"""Correct biases for what rounding moves the means of products by.

Bias correction (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"), by
examples: for each channel of each quantized product, the mean in fp32 less that in integers goes to its bias. The paper
does so layer by layer, with a look at the examples for each, since a layer's mean also moves by what those before it
did. Here each product in integers is given what it gets in fp32, so that only its own part is seen: one look does for
all layers. Every fourth example is held out: on these outputs are compared, and the correction is left out where it
brings them no nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .quant_chains import Constants, number
from .quant_place import weight_axis
from .quant_plan import Wiring
from .quant_prepare import wiring_of
from .quant_stream import Examples, Feeds, means_by_channel, values_of

Array = NDArray[Any]

_LOCAL = "local/"
_HELD_OUT = 4
_NOTHING = 1e-12


def with_biases(proto: ModelProto, products: Collection[str]) -> ModelProto:
    """Return the same function with a bias that is its own at each product: zeros where there was none.

    Args:
        proto: a prepared fp32 graph.
        products: names of its nodes.
    """
    made = ModelProto()
    made.CopyFrom(proto)
    wiring = wiring_of(made)
    for node in [node for node in made.graph.node if node.name in products]:
        channels = _channels(wiring, node)
        if channels is None:
            continue
        if node.op_type == "MatMul":
            _own_sum(made, wiring, node, channels)
        elif number(node, "beta", 1.0) == 1:
            _own_bias(made, wiring, node, channels)
    return made


def corrected(
    proto: ModelProto, products: Collection[str], placed: Callable[[ModelProto], ModelProto], examples: Examples
) -> ModelProto:
    """Return the fp32 graph with biases that make good what rounding moves the means by, or as it is if that is nearer.

    Args:
        proto: as `with_biases` gives it.
        products: names of the nodes that become integers.
        placed: quantizes such a graph; products keep their names.
        examples: what means are over, and what outputs are compared on.

    Raises:
        BadInput: the examples do not fit.
    """
    wiring = wiring_of(proto)
    nodes = [node for node in proto.graph.node if node.name in products]
    biases = {node.output[0]: bias for node in nodes if (bias := _bias_of(wiring, node)) is not None}
    axes = {node.output[0]: 1 if node.op_type.startswith("Conv") else -1 for node in nodes if node.output[0] in biases}
    whole = placed(proto)
    both = _beside(proto, whole, {node.name for node in nodes})
    means = means_by_channel(both, axes | {_LOCAL + name: axis for name, axis in axes.items()}, _shown(examples))
    made = _added(proto, {biases[name]: means[name] - means[_LOCAL + name] for name in axes})
    errors = [_error(proto, one, examples) for one in (whole, placed(made))]
    return made if errors[1] < errors[0] else proto


def _beside(proto: ModelProto, whole: ModelProto, products: Collection[str]) -> ModelProto:
    """Return the fp32 graph with each product a second time, in integers, of what it takes in fp32."""
    made = ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    held = {one.name for one in graph.initializer}
    graph.initializer.extend(one for one in whole.graph.initializer if one.name not in held)
    constants = {one.name for one in graph.initializer}
    makers = {name: node for node in whole.graph.node for name in node.output}
    results = {node.name: node.output[0] for node in proto.graph.node}
    there: set[str] = set()
    for source in whole.graph.node:
        if source.name not in products:
            continue
        for dequantizer in (makers[name] for name in source.input if name in makers):
            quantizer = makers.get(dequantizer.input[0])
            if quantizer is not None and quantizer.output[0] not in there:
                there.add(quantizer.output[0])
                value = quantizer.output[0].removesuffix("/whole")
                graph.node.append(_apart(quantizer, constants, quantizer.output, [value, *quantizer.input[1:]]))
            graph.node.append(_apart(dequantizer, constants, dequantizer.output))
        graph.node.append(_apart(source, constants, [results[source.name]]))
    return made


def _apart(
    source: NodeProto, constants: Collection[str], outputs: Sequence[str], inputs: Sequence[str] | None = None
) -> NodeProto:
    """Return a node with names of its own; inputs that are given, and constants, are those of the graph."""
    node = NodeProto()
    node.CopyFrom(source)
    node.name = _LOCAL + source.name
    node.input[:] = inputs or [name if name in constants else _LOCAL + name for name in source.input]
    node.output[:] = [_LOCAL + name for name in outputs]
    return node


def _shown(examples: Examples, held_out: bool = False) -> Iterator[Feeds]:
    """Yield three of four examples, or the fourth."""
    before = 0
    for feeds in examples():
        places = np.arange(before, before + len(next(iter(feeds.values()))))
        before += len(places)
        chosen = (places % _HELD_OUT == 0) == held_out
        if chosen.any():
            yield {name: array[chosen] for name, array in feeds.items()}


def _error(proto: ModelProto, whole: ModelProto, examples: Examples) -> float:
    """Return the squared error of the outputs, relative to their squares in fp32."""
    names = [value.name for value in proto.graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    lost, there = dict.fromkeys(names, 0.0), dict.fromkeys(names, _NOTHING)
    for wanted, found in zip(
        *(values_of(one, names, _shown(examples, held_out=True)) for one in (proto, whole)), strict=True
    ):
        for name in names:
            lost[name] += float(np.square(found.values[name] - wanted.values[name]).sum(dtype=np.float64))
            there[name] += float(np.square(wanted.values[name]).sum(dtype=np.float64))
    return sum(lost[name] / there[name] for name in names)


def _added(proto: ModelProto, values: Mapping[str, Array]) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(proto)
    constants = Constants(made)
    for name, more in values.items():
        constants.write(name, constants.read(name) + more)
    return made


def _channels(wiring: Wiring, node: NodeProto) -> int | None:
    """Return the output channels of a product; None where its weight has no dimension for them."""
    weight = wiring.weights[node.input[1]].dims
    if node.op_type == "ConvTranspose":
        return int(weight[1] * number(node, "group", 1))
    axis = weight_axis(node, len(weight))
    return None if axis is None else int(weight[axis])


def _bias_of(wiring: Wiring, node: NodeProto) -> str | None:
    """Return the name of a product's own bias."""
    if node.op_type == "MatMul":
        reader = wiring.only_reader(node.output[0])
        names = _rows(wiring, reader) if reader is not None and reader.op_type == "Add" else []
    else:
        names = [name for name in node.input[2:3] if name in wiring.weights]
    return names[0] if names and tuple(wiring.weights[names[0]].dims) == (_channels(wiring, node),) else None


def _rows(wiring: Wiring, node: NodeProto) -> list[str]:
    return [name for name in node.input if name in wiring.weights and len(wiring.weights[name].dims) == 1]


def _own_bias(made: ModelProto, wiring: Wiring, node: NodeProto, channels: int) -> None:
    """Give a Conv or Gemm a bias of one number for each channel, in place; one that differs by row stays."""
    given = node.input[2] if len(node.input) > 2 else ""
    if given and (given not in wiring.weights or np.prod(wiring.weights[given].dims, dtype=int) not in (1, channels)):
        return
    values = numpy_helper.to_array(wiring.weights[given]).reshape(-1) if given else np.zeros(1, np.float32)
    if given and wiring.weights[given].dims and wiring.weights[given].dims[-1] not in (1, channels):
        return
    name = f"{node.name}/bias"
    _hold(made, name, np.broadcast_to(values, channels))
    del node.input[2:]
    node.input.append(name)


def _own_sum(made: ModelProto, wiring: Wiring, node: NodeProto, channels: int) -> None:
    """Put a sum with a bias behind a MatMul, or give the one behind it a bias of its own, in place."""
    name, reader = f"{node.name}/bias", wiring.only_reader(node.output[0])
    known = _rows(wiring, reader) if reader is not None and reader.op_type == "Add" else []
    if reader is not None and known and tuple(wiring.weights[known[0]].dims) == (channels,):
        _hold(made, name, numpy_helper.to_array(wiring.weights[known[0]]))
        reader.input[list(reader.input).index(known[0])] = name
        return
    _hold(made, name, np.zeros(channels, np.float32))
    result, node.output[0] = node.output[0], f"{node.output[0]}/without_bias"
    at = next(i for i, one in enumerate(made.graph.node) if one.name == node.name)
    made.graph.node.insert(at + 1, helper.make_node("Add", [node.output[0], name], [result], f"{node.name}/add_bias"))


def _hold(made: ModelProto, name: str, values: Array) -> None:
    made.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))


__all__ = ["corrected", "with_biases"]
