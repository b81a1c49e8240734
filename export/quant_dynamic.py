"""Dynamic int8: weights are integers in the file, the ranges of activations are found when it runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from .quant_grid import WEIGHT_BITS, weight_scales, whole_weights
from .quant_linear import Linear, Weights, kin


def dynamic(proto: ModelProto, layers: dict[str, Linear], bits: int | None = None, by_error: bool = False) -> ModelProto:  # fmt: skip # noqa: E501
    """Return the graph with linear layers in integers; each value is quantized once for all layers that read it.

    Of ONNX's own operators only. A range is that of a value in the whole batch, so examples in one batch share it. ONNX
    Runtime makes one kernel of a layer with its bias, and of its input's range where it is the only reader.

    Args:
        proto: a prepared fp32 graph.
        layers: of it, see `linear_layers`.
        bits: of weights; None for 7: right with and without VNNI.
        by_error: choose weights' scales by squared error, not by the largest weight.
    """
    made = _Dynamic(layers, bits or WEIGHT_BITS["cpu"], by_error)
    return made.weights.into(proto, [new for node in proto.graph.node for new in made.rewritten(node)])


class _Dynamic:
    def __init__(self, layers: dict[str, Linear], bits: int, by_error: bool) -> None:
        self._layers, self._bits, self._by_error = layers, bits, by_error
        self._seen: set[str] = set()
        self.weights = Weights()

    def rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        layer = self._layers.get(node.name)
        if layer is None:
            yield node
            return
        value = node.input[0]
        if value not in self._seen:
            self._seen.add(value)
            yield self._quantizer(node, value)
        yield from self._in_integers(layer, value)

    def _quantizer(self, node: NodeProto, value: str) -> NodeProto:
        made = kin(node, "DynamicQuantizeLinear", [value], f"{value}/whole", f"{value}/quantize")
        made.output.extend([f"{value}/scale", f"{value}/zero"])
        return made

    def _in_integers(self, layer: Linear, value: str) -> Iterator[NodeProto]:
        node, result = layer.node, layer.node.output[0]
        whole, scale = self._weight(layer)
        zero = self.weights.add("zero/weights", np.array(0, np.int8))
        yield kin(node, "MatMulInteger", [f"{value}/whole", whole, f"{value}/zero", zero], f"{result}/integers")
        yield kin(node, "Cast", [f"{result}/integers"], f"{result}/cast", to=TensorProto.FLOAT)
        yield kin(node, "Mul", [f"{value}/scale", scale], f"{result}/steps")
        yield from layer.product("Mul", [f"{result}/cast", f"{result}/steps"])

    def _weight(self, layer: Linear) -> tuple[str, str]:
        """Return the names of a weight's integers and scales, made once for all layers that read it alike."""
        names = (f"{layer.source}/whole", f"{layer.source}/scale")
        if not self.weights.has(names[0]):
            scales = weight_scales(layer.weight, 1, self._bits, self._by_error)
            self.weights.add(names[0], whole_weights(layer.weight, scales, 1, self._bits))
            self.weights.add(names[1], scales)
        return names
