"""Curves for TensorBoard: loss, rate and validation of each training, and the model's size after each pass."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ..models.errors import BadInput

EVERY = 10
"""Steps between two points; judgements are all there."""

FOLDER = "tensorboard"
"""In the work folder."""


class Curves:
    """Writes one training's curves; one that goes on writes over what was after the step where it goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step, where it is one that is shown."""
        if step % EVERY and "score" not in values and step != 1:
            return
        if self._writer is None:
            self._writer = open_writer(self._folder, step)
        for name, value in values.items():
            self._writer.add_scalar(_NAMES.get(name, name), value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


_NAMES = {"score": "validation_accuracy"}


def write_sizes(folder: Path, place: int, params: int, macs: int) -> None:
    """Write what a model has after the pass at a place; 0 is the model before all passes."""
    writer = open_writer(folder / "model", place)
    writer.add_scalar("parameters", params, place)
    writer.add_scalar("macs", macs, place)
    writer.close()


def open_writer(folder: Path, first_step: int) -> Any:
    """Return a writer; what an earlier one wrote of `first_step` and later is not shown.

    Raises:
        BadInput: TensorBoard is not installed.
    """
    try:
        library: Any = importlib.import_module("torch.utils.tensorboard")
    except ImportError as fault:
        raise BadInput("train.tensorboard: needs TensorBoard, which is not installed: pip install 'shipworthy[train]'") from fault  # fmt: skip # noqa: E501
    return library.SummaryWriter(str(folder), purge_step=first_step)


__all__ = ["Curves", "open_writer", "write_sizes"]
