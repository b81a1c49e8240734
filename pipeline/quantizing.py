"""What the command `quantize` does beside writing the file: choose layers by accuracy, and see whether it pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.artifact import Target
from ..export.int8 import Int8Settings
from ..export.npz_stream import NpzStream
from ..export.onnx_read import read_onnx
from ..export.quant_layers import QuantLayers
from ..export.session import OnnxSession
from ..models.errors import BadInput
from ..profile.compare import Comparison, compare
from ..profile.integer_share import IntegerShare
from ..profile.not_faster import look_into
from ..profile.plan import Plan
from .layer_choice import MixedPrecision
from .layer_judge import Judging
from .mixed_precision import search

Array = NDArray[Any]

_BUDGET_S = 5.0
_SEARCH_S = 20.0


@dataclass(frozen=True)
class Paid:
    """Whether a quantized file is faster than the one that it was made of, on this machine's CPU.

    Attributes:
        comparison: of both, interleaved.
        share: of MACs that run in integers.
        reasons: why it is no faster; none where it is.
    """

    comparison: Comparison
    share: IntegerShare
    reasons: tuple[str, ...]

    @property
    def faster(self) -> bool:
        """Whether it is, or may be."""
        return self.comparison.outcome in ("faster", "unclear")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        found = self.comparison
        return {
            "runtime": "ort-cpu", "ratio": found.ratio, "low": found.low, "high": found.high, "outcome": found.outcome,
            "integer_share": self.share.to_dict(), "reasons": list(self.reasons),
        }  # fmt: skip


def pays(source: Path, made: Path, inputs: Mapping[str, Array] | None) -> Paid:
    """Compare a file's latency with its source's and see what runs in integers."""
    plan = Plan(budget_s=_BUDGET_S)
    found = compare(source, made, plan=plan, inputs=inputs)
    share, reasons = look_into(made, source, "ort-cpu", plan, inputs)
    return Paid(found, share, () if found.outcome == "faster" else reasons)


def one_example(given: NpzStream, source: Path) -> dict[str, Array]:
    """Return the first example, as latency is measured on it; so many as the file takes where it takes more at once."""
    count = OnnxSession(source).fixed_batch or 1
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in next(given()).items()}


def without_labels(given: NpzStream, name: str | None) -> tuple[NpzStream, Array | None]:
    """Take the labels out of calibration examples.

    Raises:
        BadInput: there is no such array, or it holds no whole numbers.
    """
    if name is None:
        return given, None
    if name not in given.shapes:
        raise BadInput(f"--labels: {name!r} is no array of {given.path}; it has {', '.join(given.shapes)}")
    if given.kinds[name].kind not in "iu" or len(given.shapes[name]) != 1:
        raise BadInput(f"--labels: {name!r} is {given.kinds[name]} {given.shapes[name]}, wanted one class number each")
    with np.load(given.path) as held:
        labels = held[name]
    return replace(given, shapes={key: shape for key, shape in given.shapes.items() if key != name}), labels


def choose_layers(
    source: Path, judging: Judging, target: Target, settings: Int8Settings, told: Callable[[str, float], object]
) -> tuple[Int8Settings, MixedPrecision]:
    """Find which layers must stay in fp32, see `mixed_precision.search`; gains are measured for CPUs alone.

    What calibrates is what it is judged on.
    """
    layers = QuantLayers(read_onnx(source, weights=True), judging.examples, target, settings)
    plan = Plan(budget_s=_SEARCH_S) if target == "cpu" else None
    found = search(layers, judging, plan, told)
    return layers.settings_with(found.keep), found
