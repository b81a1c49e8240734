"""An ONNX graph whose large weights are read when they are asked for, so that none is held twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from onnx_ir.passes.common import LiftConstantsToInitializersPass

Array = NDArray[Any]
Weight = Callable[[], Array]

INLINE_BYTES = 1024
"""Constants up to this size stay in the graph: shapes and axes are looked at, weights are not."""

DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: onnx_ir.DataType.BFLOAT16.numpy(),
}


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A graph and its large weights.

    Attributes:
        proto: the graph; of a large weight only name, type and shape are in it (a stub).
        weights: gives the values of each stub by its name.
        fp32_nodes: names of nodes that stay in fp32 in a graph of lower precision.
    """

    proto: ModelProto
    weights: Mapping[str, Weight] = field(default_factory=dict)
    fp32_nodes: frozenset[str] = frozenset()

    def constant(self, name: str) -> Array | None:
        """Return the values of an initializer, None where there is none of that name."""
        if name in self.weights:
            return self.weights[name]()
        held = next((i for i in self.proto.graph.initializer if i.name == name), None)
        return numpy_helper.to_array(held) if held is not None else None

    def light(self) -> ModelProto:
        """Return a copy in which stubs are inputs: what checkers and shape inference take whatever the size."""
        made = ModelProto()
        made.CopyFrom(self.proto)
        kept = [i for i in made.graph.initializer if i.name not in self.weights]
        stubs = [i for i in made.graph.initializer if i.name in self.weights]
        made.graph.input.extend(helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in stubs)
        del made.graph.initializer[:]
        made.graph.initializer.extend(kept)
        return made

    def filled(self) -> ModelProto:
        """Return a copy with all weights in it."""
        made = ModelProto()
        made.CopyFrom(self.proto)
        for held in made.graph.initializer:
            if held.name in self.weights:
                held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(self.weights[held.name]()), held.name))
        return made


def size_of(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's values."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return count * int(onnx_ir.DataType(tensor.data_type).bitwidth) // 8


def stub(name: str, data_type: int, dims: Any) -> TensorProto:
    """Return a tensor without values."""
    return TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)


def from_exporter(model: onnx_ir.Model) -> OnnxGraph:
    """Take over what torch's exporter made, without a copy of its weights."""
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
    weights: dict[str, Weight] = {}
    for name, value in model.graph.initializers.items():
        held = value.const_value
        if held is not None and held.nbytes > INLINE_BYTES:
            weights[name] = held.numpy
            value.const_value = onnx_ir.ExternalTensor(
                "", 0, held.nbytes, held.dtype, shape=onnx_ir.Shape(held.shape.numpy()), name=name, base_dir=""
            )
    proto: ModelProto = onnx_ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            del tensor.external_data[:]
    return OnnxGraph(proto, weights)


def read_graph(path: Path) -> OnnxGraph:
    """Read an ONNX file; weights beside it are mapped, not loaded, and large ones in it are held aside."""
    proto = onnx.load(path, load_external_data=False)
    weights: dict[str, Weight] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            kind = onnx_ir.DataType(tensor.data_type).numpy()
            weights[tensor.name] = partial(
                _mapped, path.parent / info.location, int(info.offset or 0), kind, tuple(tensor.dims)
            )
            del tensor.external_data[:]
        elif size_of(tensor) > INLINE_BYTES:
            held = TensorProto()
            held.CopyFrom(tensor)
            weights[tensor.name] = partial(numpy_helper.to_array, held)
            tensor.CopyFrom(stub(tensor.name, tensor.data_type, tensor.dims))
    return OnnxGraph(proto, weights)


def _mapped(file: Path, offset: int, kind: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    return np.memmap(file, kind, "r", offset, shape)
