"""Run an ONNX file over many examples in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from ..models.errors import BadInput
from .onnx_read import openable

Array = NDArray[Any]

FATAL_OPTIMIZERS = ["MatmulTransposeFusion"]
"""What ONNX Runtime up to 1.32 may die of on an x86 CPU, in half precision (microsoft/onnxruntime, issue 28392)."""


class OnnxSession:
    """An open ONNX file on the CPU provider, for scores and parity; latency is measured elsewhere.

    Attributes:
        inputs: by name the type, such as `tensor(float)`, and the shape: a number, a name, or None.
        outputs: names, in the file's order.
        batch_axes: by input the dimension that is the batch, or None for an input without one, such as a scalar.
        fixed_batch: the batch, where the file has it as a number; None where it is dynamic.
    """

    def __init__(self, file: str | PathLike[str], threads: int = 0) -> None:
        """Check and open `file`; `threads` 0 takes all cores.

        Raises:
            BadInput: the file is missing, is no ONNX file that can be opened safely, or ONNX Runtime cannot read it.
        """
        import onnxruntime

        path = Path(fspath(file))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if _is_for_tensorrt(openable(path)):
            # Without VNNI the integer kernels of a CPU saturate on signed activations, and TensorRT does not: Q/DQ
            # pairs are computed as they are written.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], disabled_optimizers=FATAL_OPTIMIZERS
            )
        except Exception as fault:
            raise BadInput(f"{path}: ONNX Runtime cannot load it: {str(fault).splitlines()[0]}") from fault
        self.inputs = {i.name: (i.type, tuple(i.shape)) for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]
        shapes = {name: shape for name, (_, shape) in self.inputs.items()}
        self.batch_axes, self.fixed_batch = find_batch(shapes)
        batch = _first(shapes, self.batch_axes)
        self._output_axes = {o.name: _axis_of(tuple(o.shape), batch) for o in self._session.get_outputs()}

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return every output for one batch; a file of one batch size runs in parts of it, the last one filled up.

        Raises:
            BadInput: the inputs' names, types or shapes do not fit, or an output has no batch to be put together by.
        """
        size = self.fixed_batch
        count = max((array.shape[axis] for array, axis in self._cut(feeds)), default=0)
        if size is None or count in (size, 0):
            return self._run(feeds)
        parts = [self._run(self._part(feeds, start, size)) for start in range(0, count, size)]
        return [self._joined(name, outputs, count) for name, outputs in zip(self.outputs, zip(*parts, strict=True), strict=True)]  # fmt: skip # noqa: E501

    def _joined(self, name: str, outputs: Sequence[Array], count: int) -> Array:
        """Put the parts of an output together along its batch: where it declares it, else where its size is found."""
        axis = self._output_axes[name]
        shape = outputs[0].shape
        if axis is None or axis >= len(shape):
            if self.fixed_batch not in shape:
                raise BadInput(
                    f"output {name!r} of shape {shape} has no batch, and the file takes {self.fixed_batch} examples at "
                    f"once; got {count}, give so many"
                )
            axis = shape.index(self.fixed_batch)
        return np.take(np.concatenate(outputs, axis), np.arange(count), axis)

    def _cut(self, feeds: Mapping[str, Array]) -> Iterator[tuple[Array, int]]:
        """Yield the arrays that have a batch, with its dimension."""
        for name, array in feeds.items():
            axis = self.batch_axes.get(name)
            if axis is not None and array.ndim > axis:
                yield array, axis

    def _part(self, feeds: Mapping[str, Array], start: int, size: int) -> dict[str, Array]:
        parts = {}
        for name, array in feeds.items():
            axis = self.batch_axes.get(name)
            parts[name] = array if axis is None or array.ndim <= axis else _filled(array, axis, start, size)
        return parts

    def _run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            found = self._session.run(None, dict(feeds))
        except Exception as fault:
            raise BadInput(f"the samples do not fit the model's inputs {self.inputs}: {str(fault).splitlines()[0]}") from fault  # fmt: skip # noqa: E501
        for name, value in zip(self.outputs, found, strict=True):
            if isinstance(value, list | dict) or value is None:
                raise BadInput(
                    f"output {name!r} is a {_kind(value)}, and only tensors can be compared; leave it out of the file"
                )
        return [np.asarray(value) for value in found]


def find_batch(shapes: Mapping[str, Sequence[Any]]) -> tuple[dict[str, int | None], int | None]:
    """Find which dimension of each input is the batch.

    It is the one named after a batch, or the first one of the first input with a shape; others have it where the same
    name stands, or the same number. State of the shape `(layers, batch, width)` so has it in the second place.

    Returns:
        The dimension by input, and its size where it is a number.
    """
    named = (size for shape in shapes.values() for size in shape if isinstance(size, str) and "batch" in size.lower())
    first = next((tuple(shape) for shape in shapes.values() if shape), ())
    batch = next(named, first[0] if first else None)
    axes = {name: _axis_of(shape, batch) for name, shape in shapes.items()}
    return axes, batch if isinstance(batch, int) and batch > 0 else None


def _axis_of(shape: Sequence[Any], batch: Any) -> int | None:
    """Return where a shape has the batch: by its name or number, or first where it has neither."""
    if batch is None or not shape:
        return 0 if shape and shape[0] is None else None
    return list(shape).index(batch) if batch in shape else None


def _first(shapes: Mapping[str, Sequence[Any]], axes: Mapping[str, int | None]) -> Any:
    return next((shapes[name][axis] for name, axis in axes.items() if axis is not None), None)


def _filled(array: Array, axis: int, start: int, size: int) -> Array:
    """Return `size` examples from `start` on, the last one repeated where there are fewer."""
    places = np.minimum(np.arange(start, start + size), array.shape[axis] - 1)
    filled: Array = np.take(array, places, axis)
    return filled


def _kind(value: object) -> str:
    return "sequence" if isinstance(value, list) else "map" if isinstance(value, dict) else "value that is left out"


def _is_for_tensorrt(model: ModelProto) -> bool:
    """Whether activations are quantized to signed integers, as in int8 files for TensorRT."""
    graph = model.graph
    signed = {one.name for one in graph.initializer if one.data_type == TensorProto.INT8}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return any(len(node.input) > 2 and node.input[2] in signed for node in quantizers)


def in_batches(count: int, size: int = 256) -> Iterator[slice]:
    """Yield slices that cover `count` examples."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
