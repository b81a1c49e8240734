"""Small graphs with random weights, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from shipworthy.export.artifact import Target
from shipworthy.export.int8 import Int8Settings, Quantized, to_int8
from shipworthy.export.parity_taps import open_graph
from shipworthy.export.session import OnnxSession
from shipworthy.tests.foreign_files import parsed

Array = NDArray[Any]
HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
IMAGE = (3, 8, 8)


def net(
    body: str, head: str = HEAD, given: str = "float[N,3,8,8] x", made: str = "float y", **weights: Any
) -> ModelProto:
    """Return a graph of nodes in onnx's text form; a weight is a shape, filled with noise, or its values."""
    model = parsed(f"g ({given}) => ({made}) {{ {body} }}", head)
    draw = np.random.default_rng(0)
    for name, value in weights.items():
        if isinstance(value, tuple):
            value = draw.normal(0, max(1, prod(value[1:])) ** -0.5, value).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model)


def noise(count: int = 32, shape: tuple[int, ...] = IMAGE, seed: int = 0) -> Array:
    """Return examples."""
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def fed(x: Array, size: int = 16) -> Callable[[], Iterator[dict[str, Array]]]:
    """Give examples of the input `x` in parts."""
    return lambda: ({"x": x[start : start + size]} for start in range(0, len(x), size))


def in_integers(proto: ModelProto, target: Target = "cpu", x: Array | None = None, **settings: Any) -> Quantized:
    """Quantize a graph by noise."""
    return to_int8(proto, fed(noise() if x is None else x), target, Int8Settings(**settings))


def outputs(proto: ModelProto, x: Array) -> list[Array]:
    """Run a graph in ONNX Runtime."""
    return open_graph(proto, OnnxSession).run({proto.graph.input[0].name: x})


def apart(found: Array, wanted: Array) -> float:
    """Return the error relative to what is wanted, both in the root of the mean square."""
    return float(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))


def optimized(proto: ModelProto, folder: Path) -> ModelProto:
    """Return a graph as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def types(proto: ModelProto) -> list[str]:
    """Return the operators of a graph."""
    return [node.op_type for node in proto.graph.node]


def left_in_float(proto: ModelProto, folder: Path) -> list[str]:
    """Return products in fp32, and pairs that lead from integers straight back to them, as ONNX Runtime runs it."""
    graph = optimized(proto, folder).graph
    makers = {name: node for node in graph.node for name in node.output}
    floats = [node.op_type for node in graph.node if node.op_type in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "Mul", "Sigmoid", "Relu", "Clip")]  # fmt: skip # noqa: E501
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    pairs = [q.name for q in quantizers if q.input[0] in makers and makers[q.input[0]].op_type == "DequantizeLinear"]
    return floats + pairs
