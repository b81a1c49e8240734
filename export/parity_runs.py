"""Whatever gives outputs for inputs: captured models, ONNX files, callables; opened once, run in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper

from ..models.errors import BadInput
from ..models.model import Model
from .as_written import as_written, holds_halves, nodes_of
from .onnx_read import read_onnx
from .parity_rounding import rounded
from .parity_taps import Array, Call, Feeds, Open, open_graph, open_on_cpu
from .session import find_batch, in_batches
from .typed_nodes import LOW

_IN_INTEGERS = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"}
)
_FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4)

Spec = tuple[str, tuple[int | str | None, ...]]
Given = Callable[[Feeds], Sequence[Array]]
Runnable = Model | str | PathLike[str] | Given
"""A captured model, an ONNX file, or any callable that takes inputs by name `(examples, ...)` and returns outputs."""


@dataclass(frozen=True, eq=False)
class Opened:
    """Something ready to run.

    Attributes:
        call: takes inputs by name, returns the outputs in order.
        inputs: type and shape of each input by name; None of a callable, which takes what it is given.
        outputs: their names; None of a callable.
        source: the model, or the file's graph as it is computed; None of a callable.
        open_file: how parts of a file run.
    """

    call: Given
    inputs: Mapping[str, Spec] | None = None
    outputs: tuple[str, ...] | None = None
    source: Model | ModelProto | None = None
    open_file: Open = open_on_cpu

    @property
    def batch(self) -> int | None:
        """The only number of examples that it takes at once; None where it takes any."""
        return find_batch(self._shapes)[1]

    def axes(self, feeds: Feeds) -> dict[str, int | None]:
        """Return which dimension of each of its inputs holds the examples; None of one without, such as a scalar."""
        return dict.fromkeys(feeds, 0) if self.inputs is None else find_batch(self._shapes)[0]

    @property
    def _shapes(self) -> dict[str, tuple[Any, ...]]:
        return {name: shape for name, (_, shape) in (self.inputs or {}).items()}

    def named(self, feeds: Feeds) -> dict[str, Array]:
        """Return inputs under its own names: by name where these are the same, else in order.

        Raises:
            BadInput: there are more or fewer.
        """
        if self.inputs is None or set(self.inputs) == set(feeds):
            return dict(feeds)
        if len(self.inputs) != len(feeds):
            raise BadInput(f"the model takes {[*self.inputs]}, the samples give {[*feeds]}")
        return dict(zip(self.inputs, feeds.values(), strict=True))


def opened(target: Runnable, open_file: Open = open_on_cpu) -> Opened:
    """Open a target.

    A half-precision file on the CPU is computed as it is written, see `as_written`.

    Raises:
        BadInput: a file cannot be read.
    """
    if isinstance(target, Model):
        specs: dict[str, Spec] = {spec.name: (spec.dtype, spec.shape) for spec in target.inputs}
        return Opened(_calling(target), specs, tuple(spec.name for spec in target.outputs), target)
    if callable(target):
        return Opened(target)
    path = Path(fspath(target))
    proto = read_onnx(path, weights=True)
    graph = as_written(proto) if open_file is open_on_cpu else proto
    call = open_file(path) if graph is proto else open_graph(graph, open_file)
    weights = {i.name for i in proto.graph.initializer}
    declared = {v.name: (_kind(v), _shape(v)) for v in graph.graph.input if v.name not in weights}
    if graph is not proto:
        call = _rounding(call, {v.name: v.type.tensor_type.elem_type for v in proto.graph.input})
    return Opened(call, declared, tuple(v.name for v in graph.graph.output), graph, open_file)


def _rounding(call: Call, kinds: Mapping[str, int]) -> Call:
    """Return a call that rounds what goes into half-precision inputs, and takes it in any floating type."""
    formats = {kind: name for name, kind in LOW.items()}
    low = {name: formats[kind] for name, kind in kinds.items() if kind in formats}
    return lambda feeds: call({n: rounded(a.astype(np.float32), low[n]) if n in low else a for n, a in feeds.items()})


def run_all(target: Opened, feeds: Feeds) -> list[Array]:
    """Return every output for all examples, in batches; for what takes one size alone the last is filled up."""
    own = target.named(feeds)
    axes, size, count = target.axes(own), target.batch, examples(target, own)
    if count is None or set(axes.values()) - {0, None}:  # where the outputs hold the examples is not known
        return [np.asarray(array) for array in target.call(own)]
    parts = []
    for part in in_batches(count, size or 256):
        places = np.minimum(np.arange(part.start, part.start + size if size else part.stop), count - 1)
        parts.append([np.asarray(array) for array in target.call(pick(target, own, places))])
    if len(parts) == 1 and count == (size or count):
        return parts[0]
    if any(array.ndim == 0 for array in parts[0]):
        raise BadInput(
            f"an output is one number whatever the examples, and not {count} are taken at once; give {size or 256}"
        )
    return [np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True)]


def examples(target: Opened, feeds: Feeds) -> int | None:
    """Return how many examples inputs hold, None where no input holds any.

    Raises:
        BadInput: they hold unequally many, or none.
    """
    own = target.named(feeds)
    axes = target.axes(own)
    counts = {name: (array.shape[axis] if array.ndim > axis else 0) for name, array in own.items() if (axis := axes[name]) is not None}  # fmt: skip # noqa: E501
    if own and not counts:
        return None
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise BadInput(f"the samples must hold equally many examples of every input, at least one; got {counts}")
    return next(iter(counts.values()))


def pick(target: Opened, feeds: Feeds, places: Array) -> dict[str, Array]:
    """Return some of the examples of inputs under the target's own names."""
    axes = target.axes(feeds)
    return {name: array if (axis := axes[name]) is None else np.take(array, places, axis) for name, array in feeds.items()}  # fmt: skip # noqa: E501


def precision_of(path: str | PathLike[str]) -> str:
    """Return the precision that an ONNX file computes in: that of its integers where it has some, else of its weights.

    Integers are seen by `QuantizeLinear` or what computes in them; a file of `DequantizeLinear` alone has only weights.
    """
    proto = read_onnx(path)
    operators = {node.op_type for node in nodes_of(proto.graph)}
    if operators & _IN_INTEGERS:
        return "int8"
    if "DequantizeLinear" in operators:
        return "int4-weights" if any(one.data_type in _FOUR_BITS for one in proto.graph.initializer) else "int8-weights"
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    kinds |= {a.i for node in nodes_of(proto.graph) if node.op_type == "Cast" for a in node.attribute}
    kinds |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    if not holds_halves(proto):
        return "fp32"
    return "bf16" if TensorProto.BFLOAT16 in kinds else "fp16"


def _calling(model: Model) -> Given:
    def call(feeds: Feeds) -> list[Array]:
        arrays = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in model.inputs]
        try:
            with torch.inference_mode():
                found = model.module(*arrays)
        except (RuntimeError, TypeError) as fault:
            wanted = [(spec.dtype, spec.shape) for spec in model.inputs]
            raise BadInput(f"the samples do not fit the model's inputs {wanted}: {str(fault).splitlines()[0]}") from fault  # fmt: skip # noqa: E501
        return [_array(x) for x in torch.utils._pytree.tree_leaves(found) if isinstance(x, torch.Tensor)]

    return call


def _array(value: torch.Tensor) -> Array:
    return np.asarray(value.float() if value.dtype == torch.bfloat16 else value)


def _kind(value: onnx.ValueInfoProto) -> str:
    name = helper.tensor_dtype_to_string(value.type.tensor_type.elem_type)
    return f"tensor({name.removeprefix('TensorProto.').lower()})"


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)
