"""The task's metrics, computed through the exported file: what ships is what is scored."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.data import Dataset, Split
from ..models.errors import BadInput
from ..models.metrics import Estimate, accuracy, macro_recall
from .as_written import as_written, holds_halves
from .onnx_read import openable, read_onnx
from .parity_taps import open_graph
from .session import OnnxSession, in_batches


@dataclass(frozen=True, eq=False)
class Score:
    """How well a file does on test examples. `predictions` `(examples,)` are class numbers, for paired tests."""

    accuracy: Estimate
    macro_recall: Estimate
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]


def score(artifact: str | PathLike[str], data: Dataset) -> Score:
    """Classify every test example with the file and compute accuracy and macro recall with 95 % intervals.

    Raises:
        BadInput: the file does not take the data's inputs or does not give one score a class.
    """
    predictions = predict(artifact, data, data.test)
    labels = data.test.labels.numpy()
    return Score(
        accuracy(predictions, labels), macro_recall(predictions, labels, len(data.classes)), predictions, labels
    )


def _open(artifact: str | PathLike[str]) -> OnnxSession:
    """Open a file; half precision is computed as it is written, since a CPU would not overflow where a GPU does."""
    path = Path(fspath(artifact))
    if not holds_halves(openable(path)):
        return OnnxSession(path)
    return open_graph(as_written(read_onnx(path, weights=True)), OnnxSession)


def _matched(artifact: str | PathLike[str], session: OnnxSession, data: Dataset) -> list[str]:
    """Return the file's inputs in the order of the data's: by name, or by place where there is one."""
    held, wanted = list(session.inputs), list(data.input_names)
    if set(held) == set(wanted):
        return wanted
    if len(held) == len(wanted) == 1:
        return held
    raise BadInput(f"{artifact}: takes the inputs {', '.join(held)}, {data.name} gives {', '.join(wanted)}; choose data that fit the file")  # fmt: skip # noqa: E501


def predict(artifact: str | PathLike[str], data: Dataset, split: Split) -> NDArray[np.int64]:
    """Return the class number of every example of a split, `(examples,)`."""
    session = _open(artifact)
    names = _matched(artifact, session, data)
    found = []
    for part in in_batches(len(split)):
        inputs = data.inputs(split, torch.arange(part.start, part.stop))
        scores = session.run({name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
        if scores.ndim != 2 or scores.shape[1] != len(data.classes):
            raise BadInput(
                f"{artifact}: gives {scores.shape}, wanted (batch, {len(data.classes)}) for the data's classes"
            )
        found.append(scores.argmax(1).astype(np.int64))
    return np.concatenate(found)
