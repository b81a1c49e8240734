"""Post-training quantization: choose the calibration examples; the exporter writes the Q/DQ pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from annotated_types import Ge
from pydantic.dataclasses import dataclass

from .passes import SETTINGS, Context, Pass, need_data

if TYPE_CHECKING:
    from ..models.model import Model


@final
@dataclass(frozen=True, config=SETTINGS)
class Quantize(Pass):
    """Mark the model for static int8 with per-channel weights, and keep the examples that calibrate it.

    Where the integers go depends on the target, so the Q/DQ pairs are written by `to_onnx`, once per target.

    Attributes:
        scheme: `int8`: 8-bit weights and activations.
        calibration: training examples whose activations set the ranges.
        method: how a range is found from the activations.
        seed: picks the examples.
    """

    scheme: Literal["int8"] = "int8"
    calibration: Annotated[int, Ge(1)] = 512
    method: Literal["minmax", "percentile", "entropy"] = "minmax"
    seed: int = 0

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from ..models.model import Quantization

        data = need_data(context, "for calibration")
        indices = data.sample(self.calibration, self.seed)
        examples, _ = data.batch(data.train, indices)
        made = replace(model, quantization=Quantization(self.scheme, self.method, (examples,)))
        return made, {"scheme": self.scheme, "calibration_examples": len(examples), "method": self.method}
