"""Run an ONNX file over many examples in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..models.errors import BadInput

Array = NDArray[Any]


class OnnxSession:
    """An open ONNX file on the CPU provider, for scores and parity; latency is measured elsewhere."""

    def __init__(self, file: str | PathLike[str], threads: int = 0) -> None:
        """Open `file`; `threads` 0 takes all cores.

        Raises:
            BadInput: the file is missing or ONNX Runtime cannot read it.
        """
        import onnxruntime

        path = Path(fspath(file))
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if _is_for_tensorrt(path):
            # Without VNNI the integer kernels of a CPU saturate on signed activations, and TensorRT does not: Q/DQ
            # pairs are computed as they are written.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as fault:
            raise BadInput(f"{path}: ONNX Runtime cannot load it: {str(fault).splitlines()[0]}") from fault
        self.inputs = {i.name: (i.type, tuple(i.shape)) for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]
        sizes = {shape[0] for _, shape in self.inputs.values() if shape}
        only = sizes.pop() if len(sizes) == 1 else None
        self._batch = only if isinstance(only, int) else None

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return every output for one batch; a file of one batch size runs in parts of it, the last one filled up.

        Raises:
            BadInput: the inputs' names, types or shapes do not fit.
        """
        count = max((len(array) for array in feeds.values() if array.ndim), default=0)
        if self._batch is None or count == self._batch:
            return self._run(feeds)
        parts = [self._run(_part(feeds, start, self._batch)) for start in range(0, count, self._batch)]
        return [np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True)]

    def _run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            return [np.asarray(value) for value in self._session.run(None, dict(feeds))]
        except Exception as fault:
            raise BadInput(f"the samples do not fit the model's inputs {self.inputs}: {str(fault).splitlines()[0]}") from fault  # fmt: skip # noqa: E501


def _is_for_tensorrt(path: Path) -> bool:
    """Whether activations are quantized to signed integers, as in int8 files for TensorRT."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # ONNX Runtime says better what is wrong with the file
        return False
    signed = {one.name for one in graph.initializer if one.data_type == onnx.TensorProto.INT8}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return any(len(node.input) > 2 and node.input[2] in signed for node in quantizers)


def _part(feeds: Mapping[str, Array], start: int, size: int) -> dict[str, Array]:
    parts = {name: array[start : start + size] for name, array in feeds.items()}
    return {name: np.concatenate([part, *[part[-1:]] * (size - len(part))]) for name, part in parts.items()}


def in_batches(count: int, size: int = 256) -> Iterator[slice]:
    """Yield slices that cover `count` examples."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
