"""Quantization: choose the calibration examples, train if asked to; the exporter writes the Q/DQ pairs."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from annotated_types import Ge, Gt, Le
from pydantic.dataclasses import dataclass

from ..models.schemes import Scheme, useless
from .passes import SETTINGS, Context, Pass, need_data

if TYPE_CHECKING:
    from ..models.model import Model

CARRIED_OUT_BY_EXPORT = ("keep_float", "equalize", "correct_bias", "smooth", "weight_bits")
"""Settings that go to the exporter by name, where they are not the defaults."""


@final
@dataclass(frozen=True, config=SETTINGS)
class Quantize(Pass):
    """Mark the model for integers, and keep the examples that calibrate it where the scheme needs any.

    Where the integers go depends on the target, so they are written by `to_onnx`, once per target. With
    `steps` the model first learns under the rounding of its file, and the file gets the scales that it learnt with.

    Attributes:
        scheme: `int8`: 8-bit weights and activations, calibrated; `dynamic`: ranges of activations are found when the
            file runs, on CPUs only; `int8-weights`, `int4-weights`: large weights of linear layers alone. All but
            `int8` need no data, and take of the settings below `keep_float` alone, `dynamic` also `weight_bits`.
        calibration: training examples whose activations set the ranges; in training, where they start.
        method: how a range is found from the activations.
        keep_float: patterns of layers that stay in floating point.
        equalize: even out the weights' ranges between layers.
        correct_bias: make good in the biases what rounding moves the means by.
        smooth: move so much of the activations' outliers into the weights, in 0 to 1.
        max_drop: points of accuracy that integers may cost on training examples; layers go back to fp32, those first
            that cost most for the time they spare, until it holds. None: all layers stay integers.
        weight_bits: of weights, sign included; None: 7 for CPUs, and in training, and 8 for TensorRT.
        steps: training steps; 0: none.
        learn_steps: learn the steps of the grids (Esser et al. 2020); otherwise ranges follow a moving average, which
            stands still for the second half, and gradients pass straight through.
        learning_rate: the peak of a one-cycle schedule; lower than in `Distill`, as no batch norm is left.
        batch: examples a step.
        distance: between the teacher's outputs and the model's, as in `Distill`.
        temperature: softens the teacher's outputs; without a teacher the labels alone count.
        alpha: the weight of the teacher against the labels, in 0 to 1.
        weight_decay: on weights of two and more dimensions.
        reuse: steps for each batch that the teacher judges.
        flip: mirror half of the images; wrong for text and digits. None: on for images.
        shift: move images by up to so many pixels. None: 2 for images, else 0.
        mixup: blend pairs of examples; the Beta distribution's parameter; 0 is off. None: 1 for images, else 0.
        seed: picks the examples; order and augmentation in training.
    """

    scheme: Scheme = "int8"
    calibration: Annotated[int, Ge(1)] = 512
    method: Literal["minmax", "percentile", "entropy", "mse"] = "minmax"
    keep_float: tuple[str, ...] = ()
    equalize: bool = False
    correct_bias: bool = False
    smooth: Annotated[float, Ge(0), Le(1)] | None = None
    max_drop: Annotated[float, Ge(0)] | None = None
    weight_bits: Literal[7, 8] | None = None
    steps: Annotated[int, Ge(0)] = 0
    learn_steps: bool = True
    learning_rate: Annotated[float, Gt(0)] = 0.005
    batch: Annotated[int, Ge(2)] = 128
    distance: Literal["kl", "js", "mse", "dkd", "dist"] = "kl"
    temperature: Annotated[float, Gt(0)] = 4.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    reuse: Annotated[int, Ge(1)] = 3
    flip: bool | None = None
    shift: Annotated[int, Ge(0)] | None = None
    mixup: Annotated[float, Ge(0)] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what a scheme has no use for, and what would change weights after training for their grids."""
        if odd := useless(self.scheme, self._given() - {"seed"}):
            raise ValueError(odd)
        late = [name for name in ("equalize", "correct_bias", "smooth") if getattr(self, name) not in (False, None)]
        if self.steps and late:
            raise ValueError(f"{', '.join(late)}: for quantization after training; with steps, training does that")

    def _apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        from ..models.model import Quantization

        if self.scheme != "int8":
            marked = Quantization(self.scheme, self.method, (), self._options())
            return replace(model, quantization=marked), {"scheme": self.scheme}
        data = need_data(context, "for calibration")
        indices = data.sample(self.calibration, self.seed)
        examples = data.inputs(data.train, indices)
        facts: dict[str, Any] = {
            "scheme": self.scheme, "calibration_examples": len(examples[0]), "method": self.method,
        }  # fmt: skip
        if self.steps:
            from .qat import train_quantized

            model, learnt = train_quantized(self, model, context, data, examples)
            facts |= learnt
        marked = Quantization(self.scheme, self.method, examples, self._options())
        return replace(model, quantization=marked), facts

    def _given(self) -> set[str]:
        """Return the names of the settings that are not the defaults."""
        return {one.name for one in fields(self) if getattr(self, one.name) != one.default}

    def _options(self) -> dict[str, Any]:
        """Return what the exporter carries out, where it is not the default."""
        return {name: getattr(self, name) for name in CARRIED_OUT_BY_EXPORT if name in self._given()}
