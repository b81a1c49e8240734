"""Static int8: calibrate a floating-point ONNX file and write Q/DQ pairs where its target wants them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from ..models.model import Quantization
from ..models.quiet import quiet
from .artifact import Target

CALIBRATION_BATCH = 64


def to_int8(proto: ModelProto, quantization: Quantization, target: Target) -> ModelProto:
    """Return the model with Q/DQ pairs: weights per channel, activations per tensor.

    - `cpu`: unsigned activations and signed weights (U8S8), which ONNX Runtime's kernels are made for. Weights use
      7 bits: without VNNI the 8-bit products of two neighbours overflow 16 bits, and the same file would be right on
      one CPU and wrong on another.
    - `tensorrt`: symmetric signed everything (S8S8), biases in floating point: it takes nothing else.

    Args:
        proto: a cleaned floating-point model.
        quantization: the scheme and the calibration examples.
        target: the family of runtimes.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    on_cpu = target == "cpu"
    names = [value.name for value in proto.graph.input]
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, made = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(proto, source)
        quantize_static(
            source, made, _Examples(names, quantization),
            quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=on_cpu,
            activation_type=QuantType.QUInt8 if on_cpu else QuantType.QInt8, weight_type=QuantType.QInt8,
            calibrate_method=methods[quantization.method], extra_options=_options(on_cpu),
        )  # fmt: skip
        return onnx.load(made)


def _options(on_cpu: bool) -> dict[str, Any]:
    if on_cpu:
        return {"ActivationSymmetric": False, "WeightSymmetric": True}
    return {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


class _Examples:
    """Feed calibration examples in small batches, so that memory does not grow with their number."""

    def __init__(self, names: list[str], quantization: Quantization) -> None:
        self._batches = self._read(names, quantization)

    @staticmethod
    def _read(names: list[str], quantization: Quantization) -> Iterator[dict[str, NDArray[Any]]]:
        arrays = [np.asarray(x) for x in quantization.calibration]
        for start in range(0, len(arrays[0]), CALIBRATION_BATCH):
            stop = start + CALIBRATION_BATCH
            yield {name: array[start:stop] for name, array in zip(names, arrays, strict=True)}

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch, or None at the end."""
        return next(self._batches, None)
