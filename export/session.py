"""Run an ONNX file over many examples in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
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
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as fault:
            raise BadInput(f"{path}: ONNX Runtime cannot load it: {str(fault).splitlines()[0]}") from fault
        self.inputs = {i.name: (i.type, tuple(i.shape)) for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return every output for one batch.

        Raises:
            BadInput: the inputs' names, types or shapes do not fit.
        """
        try:
            return [np.asarray(value) for value in self._session.run(None, dict(feeds))]
        except Exception as fault:
            raise BadInput(f"the samples do not fit the model's inputs {self.inputs}: {str(fault).splitlines()[0]}") from fault  # fmt: skip # noqa: E501


def in_batches(count: int, size: int = 256) -> Iterator[slice]:
    """Yield slices that cover `count` examples."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
