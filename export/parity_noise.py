"""How much rounding alone moves a model's outputs, and what may differ on its account.

Rounding weights and inputs to fp16 or bf16 and computing in fp32 predicts what the format costs; for fp32 itself, a
torch model is computed in fp64, and a file with all weights and inputs changed by one unit in the last place. What
files really differ by, in units of that noise, is in `benchmarks/results/parity_noise.md`: 0.7 to 2.1 on 13
architectures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from torch.fx import GraphModule

from ..models.errors import BadInput
from ..models.graph import copy_graph
from ..models.model import Model
from .parity_rounding import rounded
from .parity_runs import Opened, opened, run_all
from .parity_taps import Feeds, OnnxTaps, open_graph, open_on_cpu
from .parity_torch import TorchTaps, in_precision

Array = NDArray[Any]

TOLERANCE = {
    "fp32": 1e-3, "tf32": 5e-2, "fp16": 0.1, "mixed": 0.1, "bf16": 0.3,
    "int8": 0.5, "int8-weights": 0.5, "int4-weights": 0.5,
}  # fmt: skip
"""The most that may differ, relative to the largest value of the reference's output, however large the noise is.
Integers lose far more than rounding tells, so for them this only guards against broken files: what they cost is judged
by the paired accuracy drop."""

MULTIPLE = {"fp32": 8.0, "tf32": 6.0, "fp16": 6.0, "mixed": 6.0, "bf16": 6.0}
"""What may differ, in units of the noise: the largest that was measured is 2.1; other machines add in other orders."""

_FLOOR = {"fp32": 2.0**-20, "tf32": 2.0**-9, "fp16": 2.0**-9, "mixed": 2.0**-9, "bf16": 2.0**-6}
"""A few units in the last place: what no noise explains is still rounding."""


def tolerance(precision: str, noise: float | None) -> float:
    """Return the largest relative difference that passes; without a known noise, the most of all."""
    most = TOLERANCE[precision]
    if noise is None or precision not in MULTIPLE or not np.isfinite(noise):
        return most
    return min(max(MULTIPLE[precision] * noise, _FLOOR[precision]), most)


def rounded_feeds(feeds: Feeds, precision: str) -> dict[str, Array]:
    """Return inputs in a format."""
    return {name: rounded(array, precision) for name, array in feeds.items()}


def rounded_graph(module: GraphModule, precision: str) -> GraphModule:
    """Return a copy of a graph whose weights are as a format holds them."""
    made = copy_graph(module)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dtype == torch.float32:
                weight.copy_(torch.from_numpy(rounded(weight.detach().numpy(), precision)))
    return made


def rounded_file(proto: ModelProto, precision: str) -> ModelProto:
    """Return a copy of a graph whose fp32 weights are as a format holds them."""
    made = ModelProto()
    made.CopyFrom(proto)
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(rounded(numpy_helper.to_array(tensor), precision), tensor.name))
    return made


def output_noises(reference: Opened, feeds: Feeds, right: Sequence[Array], precision: str) -> list[float | None]:
    """Return how far rounding moves each output, relative to its size; None where that cannot be known.

    Args:
        reference: what is right.
        feeds: the samples.
        right: its outputs of them.
        precision: a key of `TOLERANCE`.
    """
    if reference.source is None or precision not in MULTIPLE:
        return [None] * len(right)
    return [distance(a, b) for a, b in zip(right, _rounded_outputs(reference, feeds, precision), strict=True)]


def _rounded_outputs(reference: Opened, feeds: Feeds, precision: str) -> list[Array]:
    source, near = reference.source, rounded_feeds(reference.named(feeds), precision)
    if not isinstance(source, Model):
        made = open_graph(rounded_file(source, precision), open_on_cpu)  # type: ignore[arg-type]  # it is not None here
        return run_all(replace(reference, call=made), near)
    if precision == "fp32":
        # What has types of its own in its code cannot always be computed in fp64.
        with suppress(BadInput):
            exact = opened(replace(source, module=in_precision(source.module, torch.float64)))
            return run_all(exact, {name: _in_fp64(array) for name, array in reference.named(feeds).items()})
    return run_all(opened(replace(source, module=rounded_graph(source.module, precision))), near)


def _in_fp64(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


class NoisyTaps:
    """A reference in another rounding, in the same names: what it differs by is noise."""

    def __init__(self, source: GraphModule | ModelProto, precision: str) -> None:
        self._source, self._precision = source, precision if precision in MULTIPLE else "fp32"
        self._exact = isinstance(source, GraphModule) and self._precision == "fp32"
        self._taps = self._made()

    def take(self, names: Sequence[str], feeds: Feeds) -> dict[str, Array]:
        """Compute tensors from inputs."""
        if self._exact:
            try:
                return self._taps.take(names, feeds)
            except RuntimeError:  # types of its own in its code
                self._exact = False
                self._taps = self._made()
        return self._taps.take(names, rounded_feeds(feeds, self._precision))

    def _made(self) -> TorchTaps | OnnxTaps:
        if not isinstance(self._source, GraphModule):
            return OnnxTaps(rounded_file(self._source, self._precision))
        if self._exact:
            return TorchTaps(in_precision(self._source, torch.float64), torch.float64)
        return TorchTaps(rounded_graph(self._source, self._precision))


def distance(reference: Array, other: Array) -> float:
    """Return the largest difference relative to the largest finite magnitude of the reference.

    Where both have the same infinity, or both are no number, they do not differ. Infinite where only one has one.
    """
    a, b = reference.astype(np.float64), other.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if a.shape != b.shape or not (np.isfinite(a) & np.isfinite(b) | same).all():
        return float("inf")
    scale = float(np.abs(a, where=np.isfinite(a), out=np.zeros_like(a)).max(initial=0.0)) or 1.0
    return float(np.abs(np.subtract(a, b, where=~same, out=np.zeros_like(a))).max(initial=0.0)) / scale


__all__ = ["MULTIPLE", "TOLERANCE", "NoisyTaps", "distance", "output_noises", "tolerance"]
