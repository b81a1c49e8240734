"""Whether data and a model go together, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .preprocessing import TextPreprocessing

if TYPE_CHECKING:
    from .data import Dataset
    from .model import Model, TensorSpec

Shape = tuple[int | str, ...]


def misfit(model: Model, data: Dataset) -> str | None:
    """Return what of a model's inputs the data cannot give, and what to change; None where they go together."""
    names = [spec.name for spec in model.inputs]
    if isinstance(data.preprocessing, TextPreprocessing):
        if names != list(data.input_names):
            return f"it takes the inputs {', '.join(names)}, {data.name} gives {', '.join(data.input_names)}; {_named(names)}"  # fmt: skip # noqa: E501
    elif len(names) != 1:
        return f"it takes the inputs {', '.join(names)}, {data.name} gives one; choose other data"
    for spec, shape in zip(model.inputs, data.input_shapes, strict=True):
        if not fits(shape, spec.shape[1:]):
            return f"it takes inputs of shape {_shape(spec.shape[1:])}, {data.name} gives {_shape(shape)}; {_longer(spec, data)}"  # fmt: skip # noqa: E501
    return None


def fits(given: Shape, wanted: Shape) -> bool:
    """Whether inputs of a shape go into one that may vary where it has names; both without the batch."""
    return len(given) == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(given, wanted, strict=True)
    )


def _shape(shape: Shape) -> str:
    return str(shape) if all(isinstance(size, int) for size in shape) else f"({', '.join(map(str, shape))})"


def _named(names: list[str]) -> str:
    from .preprocessing import TOKEN_INPUTS

    if set(names) <= set(TOKEN_INPUTS):
        return f"set data.inputs to [{', '.join(names)}]"
    return f"call them {', '.join(TOKEN_INPUTS)} in the model's forward, or wrap it"


def _longer(spec: TensorSpec, data: Dataset) -> str:
    """Return what makes the lengths of data and model one."""
    length = spec.shape[1] if len(spec.shape) == 2 else None
    if isinstance(data.preprocessing, TextPreprocessing) and isinstance(length, int):
        return f"set data.fixed_length and data.max_length: {length}, or capture the model with a dimension that varies"
    if data.task == "audio-classification" and isinstance(length, int):
        return f"set data.seconds and data.sample_rate so that a recording has {length} samples"
    return "choose other data, or set model.input where the source lets you"
