"""Models as chains of named tensors, any of which can be read or put in: what layers are compared by."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from ..models.errors import BadInput
from .onnx_clean import MODULE
from .session import FATAL_OPTIMIZERS, OnnxSession
from .typed_nodes import HALVES

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Call = Callable[[Feeds], list[Array]]
Open = Callable[[Path], Call]
T = TypeVar("T")

_LARGEST = 2**30
"""Bytes of a file that is written in one piece."""


@dataclass(frozen=True)
class Tensor:
    """One result of a graph.

    Attributes:
        name: in its graph.
        operator: what computes it.
        layer: the path of the user's module, or the operator's own name where that is unknown.
        reads: what it is computed from, weights and inputs among them.
        valued: whether it holds numbers of the model; shapes, indices and masks are not compared.
    """

    name: str
    operator: str
    layer: str
    reads: tuple[str, ...]
    valued: bool


class Taps(Protocol):
    """A model whose tensors can be read and replaced.

    Attributes:
        inputs: names of what goes in, in order.
        outputs: names of what comes out, in order.
        tensors: every result, each after those that it reads.
    """

    @property
    def inputs(self) -> tuple[str, ...]: ...  # noqa: D102 - described above
    @property
    def outputs(self) -> tuple[str, ...]: ...  # noqa: D102 - described above
    @property
    def tensors(self) -> tuple[Tensor, ...]: ...  # noqa: D102 - described above

    def take(self, names: Sequence[str], given: Feeds) -> dict[str, Array]:
        """Compute some tensors from given ones: inputs, or whatever lies before them; what is given is not computed."""


def open_on_cpu(path: Path) -> Call:
    """Open an ONNX file in ONNX Runtime on the CPU."""
    return OnnxSession(path).run


def open_part(path: Path) -> Call:
    """Open a part of a file, whose inputs have no declared shapes; Q/DQ pairs are computed as they are written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=FATAL_OPTIMIZERS
    )
    return lambda feeds: [np.asarray(value) for value in session.run(None, dict(feeds))]


class OnnxTaps:
    """The tensors of an ONNX graph. Parts of it are written as files of their own and run by `open_file`."""

    def __init__(self, proto: ModelProto, open_file: Open = open_on_cpu) -> None:
        self._proto = proto
        self._open = open_part if open_file is open_on_cpu else open_file
        self._kinds = _kinds(proto)
        known = {i.name for i in proto.graph.initializer}
        self.inputs = tuple(value.name for value in proto.graph.input if value.name not in known)
        self.outputs = tuple(value.name for value in proto.graph.output)
        self._nodes = [(node, _reads(node)) for node in proto.graph.node]

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every result that depends on the inputs, in the file's order."""
        found: list[Tensor] = []
        known = set(self.inputs)
        for node, reads in self._nodes:
            if known.isdisjoint(reads):
                continue  # constants
            known.update(node.output)
            layer = _layer(node)
            found.extend(Tensor(name, node.op_type, layer, tuple(reads), self._kinds.get(name) not in _COUNTS) for name in node.output if name)  # fmt: skip # noqa: E501
        return tuple(found)

    def take(self, names: Sequence[str], given: Feeds) -> dict[str, Array]:
        """Compute tensors by running the part of the graph between them and what is given."""
        wanted = list(dict.fromkeys(name for name in names if name not in given))
        found = {name: given[name] for name in names if name in given}
        if not wanted:
            return found
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "part.onnx")
            part = self._part(wanted, given)
            save(part, path)
            feeds = {
                v.name: given[v.name.removesuffix("/given")].astype(_numpy(v), copy=False) for v in part.graph.input
            }
            values = self._open(path)(feeds)
        return found | dict(zip(wanted, values, strict=True))

    def _part(self, wanted: list[str], given: Feeds) -> ModelProto:
        """Return a model of the nodes between; half-precision borders are fp32 outside, as numpy has no bf16."""
        nodes, needed = self._between(wanted, given)
        borders = [name for name in given if name in needed]
        halves = {name for name in (*borders, *wanted) if self._kinds.get(name) in HALVES}
        starts = [helper.make_node("Cast", [f"{n}/given"], [n], to=self._kinds[n]) for n in borders if n in halves]
        ends = [helper.make_node("Cast", [n], [f"{n}/taken"], to=TensorProto.FLOAT) for n in wanted if n in halves]
        inputs = [self._value(f"{n}/given" if n in halves else n, TensorProto.FLOAT if n in halves else self._kind_of(n, given)) for n in borders]  # fmt: skip # noqa: E501
        outputs = [onnx.ValueInfoProto(name=f"{n}/taken" if n in halves else n) for n in wanted]
        weights = [i for i in self._proto.graph.initializer if i.name in needed and i.name not in given]
        graph = helper.make_graph([*starts, *nodes, *ends], "part", inputs, outputs, weights)
        made = helper.make_model(graph, opset_imports=self._proto.opset_import, functions=self._proto.functions)
        made.ir_version = self._proto.ir_version
        return made

    def _between(self, wanted: list[str], given: Feeds) -> tuple[list[NodeProto], set[str]]:
        needed, nodes = set(wanted), []
        for node, reads in reversed(self._nodes):
            if any(name in needed and name not in given for name in node.output):
                nodes.append(node)
                needed.update(reads)
        return nodes[::-1], needed

    def _kind_of(self, name: str, given: Feeds) -> int:
        return self._kinds.get(name) or helper.np_dtype_to_tensor_dtype(given[name].dtype)

    @staticmethod
    def _value(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, None)


_COUNTS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


def _kinds(proto: ModelProto) -> dict[str, int]:
    """Return the type of every value that shape inference knows."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception as fault:
        raise BadInput(f"its layers cannot be compared: shape inference fails: {str(fault).splitlines()[0]}") from fault
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    return values | {i.name: i.data_type for i in graph.initializer}


def _reads(node: NodeProto) -> list[str]:
    """Return what a node reads, the graphs inside it included."""
    inner = [name for a in node.attribute if a.type == AttributeProto.GRAPH for name in _free(a.g)]
    return [name for name in (*node.input, *inner) if name]


def _free(graph: GraphProto) -> Iterator[str]:
    own = {value.name for value in graph.input} | {i.name for i in graph.initializer}
    for node in graph.node:
        yield from (name for name in _reads(node) if name not in own)
        own.update(node.output)


def _layer(node: NodeProto) -> str:
    """Return the module's path by a weight's name (`layer1.0.conv1.weight`) or the node's property, else its name."""
    dotted = [name for name in node.input[1:] if "." in name and not name.startswith("/")]
    paths = [name.rpartition(".")[0] for name in dotted]
    told = [entry.value for entry in node.metadata_props if entry.key == MODULE]
    return next((path for path in (*paths, *told) if path), node.name or f"{node.op_type} of {node.output[0]}")


def save(proto: ModelProto, path: Path) -> None:
    """Write a graph, its weights beside it where they are large."""
    large = proto.ByteSize() > _LARGEST
    onnx.save(proto, path, save_as_external_data=large)


def open_graph(proto: ModelProto, open_file: Callable[[Path], T]) -> T:
    """Open a graph that is not on disk."""
    with tempfile.TemporaryDirectory() as folder:
        save(proto, Path(folder, "graph.onnx"))
        return open_file(Path(folder, "graph.onnx"))


def _numpy(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
