"""Compute a low-precision graph as a GPU does, where the CPU would not: operators in fp32, each result rounded.

ONNX Runtime computes much of fp16 in fp32 on a CPU and leaves the casts between out: 300 * 300 / 300 gives 300 there,
and infinity on a GPU. It has next to no bf16. Written out, roundings are taken on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from .as_written import as_written, widen_tensor
from .onnx_graph import OnnxGraph, Weight, size_of, stub
from .onnx_store import MOST_BYTES
from .typed import FLOAT
from .typed_nodes import HALVES

Array = NDArray[Any]


def with_roundings(graph: OnnxGraph) -> OnnxGraph:
    """Return a graph in fp32 that gives what one in fp16 or bf16 does, on hardware that sums in fp32.

    Every value that is low in the given graph is rounded to that type; names stay.
    """
    weights = dict(graph.weights)

    def widen(held: TensorProto) -> None:
        if held.name not in graph.weights:
            widen_tensor(held)
        elif held.data_type in HALVES:
            weights[held.name] = partial(_in_fp32, graph.weights[held.name])
            held.CopyFrom(stub(held.name, FLOAT, held.dims))

    typed = onnx.shape_inference.infer_shapes(graph.light(), data_prop=True)
    return OnnxGraph(as_written(graph.proto, typed, widen), weights)


def _in_fp32(read: Weight) -> Array:
    return read().astype(np.float32)


def run(graph: OnnxGraph, feeds: Mapping[str, Array], wanted: Sequence[str] = ()) -> dict[str, Array]:
    """Run an fp32 graph in ONNX Runtime on the CPU and return its outputs, or those asked for, by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Weights of a graph that is too large for protobuf are given as inputs.
    small = sum(map(size_of, graph.proto.graph.initializer)) <= MOST_BYTES
    proto = graph.filled() if small else graph.light()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(wanted) or [output.name for output in session.get_outputs()]
    given = {i.name: feeds[i.name] if i.name in feeds else graph.weights[i.name]() for i in session.get_inputs()}
    return dict(zip(names, map(np.asarray, session.run(names, given)), strict=True))
