"""Small ONNX files as other tools write them, and files that are written to do harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'


def save(path: Path, model: onnx.ModelProto | bytes) -> Path:
    """Write a model as it is, unchecked."""
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def parsed(text: str, head: str = HEAD) -> onnx.ModelProto:
    """Make a model of onnx's own text form."""
    return parser.parse_model(head + text)


def _ones(*dims: int) -> str:
    return "{" + ",".join(["0.5"] * int(np.prod(dims))) + "}"


def convolution(opset: int = 9, batch: str = "N", ir: int = 3) -> onnx.ModelProto:
    """Return a convolution with a batch-norm of its own, as old exporters leave it: weights are among the inputs."""
    held = [f"float[2,3,3,3] w = {_ones(2, 3, 3, 3)}", *(f"float[2] {name} = {_ones(2)}" for name in "sbmv")]
    text = f"""g (float[{batch},3,8,8] x) => (float[{batch},2,6,6] y) <{", ".join(held)}> {{
        c = Conv(x, w)
        n = BatchNormalization(c, s, b, m, v)
        y = Relu(n)
    }}"""
    model = parsed(text, f'<ir_version: {ir}, opset_import: ["": {opset}]>\n')
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def literal_batch(size: int) -> onnx.ModelProto:
    """Return a convolution whose batch is written as a number, such as -1 or 0."""
    model = convolution()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = size
    return model


def recurrent(batch: str = "batch") -> onnx.ModelProto:
    """Return an LSTM fed with its state, whose batch is the second dimension; its weights are `Constant` nodes."""
    turned = helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2])
    weights = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.full(dims, 0.1, np.float32)))
        for name, dims in (("w", (1, 20, 4)), ("r", (1, 20, 5)))
    ]
    dim: Any = int(batch) if batch.isdigit() else batch
    lstm = helper.make_node("LSTM", ["t", "w", "r", "", "", "h0", "c0"], ["", "h1", "c1"], hidden_size=5, name="lstm")
    x = helper.make_tensor_value_info("x", 1, [dim, "length", 4])
    state = [helper.make_tensor_value_info(name, 1, [1, dim, 5]) for name in ("h0", "c0")]
    out = [helper.make_tensor_value_info(name, 1, [1, dim, 5]) for name in ("h1", "c1")]
    graph = helper.make_graph([*weights, turned, lstm], "g", [x, *state], out)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tokens() -> onnx.ModelProto:
    """Return an embedding and a product, with a mask twice as long and one longer than the tokens."""
    model = parsed(f"""g (int64[batch,seq] ids, float[batch,other] mask) => (float[batch,seq,2] y) <
        float[9,4] table = {_ones(9, 4)}, float[4,2] w = {_ones(4, 2)}> {{
        e = Gather(table, ids)
        s = ReduceSum(mask)
        p = MatMul(e, w)
        y = Mul(p, s)
    }}""")
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "2*seq+1"
    return model


def loop() -> onnx.ModelProto:
    """Return a product inside a loop, whose number of turns is an input."""
    return parsed(f"""g (float[1,4] x, int64 turns) => (float[1,4] y) <bool go = {{1}}, float[4,4] w = {_ones(4, 4)}> {{
        y = Loop (turns, go, x) <body = b (int64 i, bool c, float[1,4] s) => (bool d, float[1,4] t) {{
            d = Identity(c)
            t = MatMul(s, w)
        }}>
    }}""")


def texts() -> onnx.ModelProto:
    """Return a file that takes text."""
    return parsed("g (string[N] x) => (string[N] y) { y = Identity(x) }")


def sequence() -> onnx.ModelProto:
    """Return a file that gives a sequence of tensors."""
    return parsed("g (float[2,3] x) => (seq(float[3]) y) { y = SplitToSequence<axis = 0, keepdims = 0>(x) }")


def custom() -> onnx.ModelProto:
    """Return a file with an operator that no one here knows."""
    head = '<ir_version: 8, opset_import: ["": 17, "my.ops": 1]>\n'
    return parsed("g (float[1,3] x) => (float[1,3] y) { y = my.ops.Magic(x) }", head)


def external(location: str, dims: tuple[int, ...] = (2,), **entries: int) -> onnx.ModelProto:
    """Return a sum whose weight lies in another file."""
    weight = TensorProto(name="w", data_type=1, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    shape = [helper.make_tensor_value_info(name, 1, [1, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", shape[:1], shape[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def empty_weight() -> onnx.ModelProto:
    """Return a weight of 2**40 numbers that holds none."""
    model = parsed(f"g (float[1] x) => (float[1] y) <float[1] w = {_ones(1)}> {{ y = Add(x, w) }}")
    model.graph.initializer[0].CopyFrom(TensorProto(name="w", data_type=1, dims=[1 << 40]))
    return model


def bomb(steps: str, constants: str = "int64[1] s = {100000000}") -> onnx.ModelProto:
    """Return a file that asks for absurd sizes in some nodes that end in `y`."""
    return parsed(f"g (float[1] x) => (float[N] y) <{constants}> {{ {steps} }}")


def nested(depth: int) -> onnx.ModelProto:
    """Return branches inside each other."""
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "g", [], [_value("o")])
    for _ in range(depth):
        other = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "e", [], [_value("o")])
        node = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=other)
        inner = helper.make_graph([node], "g", [], [_value("o")])
    inputs = [helper.make_tensor_value_info("x", 1, [1]), helper.make_tensor_value_info("c", 9, [])]
    graph = helper.make_graph(inner.node, "g", inputs, [_value("o")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def functions(levels: int, loops: bool = False) -> onnx.ModelProto:
    """Return functions each of which calls the one before it twice; with `loops` the first calls the last."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = []
    for level in range(levels):
        called = f"f{(level or levels) - 1}"
        plain = level == 0 and not loops
        steps = [
            helper.make_node("Identity" if plain else called, [a], [b], domain="" if plain else "own")
            for a, b in (("a", "t"), ("t", "b"))
        ]
        made.append(helper.make_function("own", f"f{level}", ["a"], ["b"], steps, opsets))
    values = [helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="own")], "g", values[:1], values[1:]
    )
    return helper.make_model(graph, functions=made, opset_imports=opsets, ir_version=9)


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, 1, None)
