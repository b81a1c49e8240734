"""The task's metrics, computed through the exported file: what ships is what is scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.class_metrics import ClassMetrics, class_metrics
from ..models.confidence import are_probabilities, calibration_error, confidences
from ..models.data import Dataset, Split
from ..models.errors import BadInput
from ..models.metrics import Estimate, accuracy, macro_recall
from .as_written import as_written, holds_halves
from .onnx_read import openable, read_onnx
from .parity_taps import open_graph
from .session import OnnxSession, in_batches


@dataclass(frozen=True, eq=False)
class Score:
    """How well a file does on test examples, shares from 0 to 1 with their 95 % intervals.

    Attributes:
        accuracy: the share of examples that it recognises.
        macro_recall: the mean of that over the classes.
        predictions: class numbers `(examples,)`, for paired tests.
        labels: the true ones `(examples,)`.
        classes: recall, precision and F1 of each class, their means, and the confusion matrix.
        confidences: the probability of the predicted class, float32 `(examples,)`; None where scores are not finite.
        calibration_error: expected, of those; None where scores are not finite.
        probabilities: whether the file gives probabilities; otherwise they are the softmax of its scores.
    """

    accuracy: Estimate
    macro_recall: Estimate
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: ClassMetrics
    confidences: NDArray[np.float32] | None
    calibration_error: Estimate | None
    probabilities: bool


def score(artifact: str | PathLike[str], data: Dataset) -> Score:
    """Classify every test example with the file and compute what a `Score` tells.

    Scores that are not finite leave out what needs probabilities; such a file is still counted by its predictions.

    Raises:
        BadInput: the file does not take the data's inputs or does not give one score a class.
    """
    parts = list(_scores(artifact, data, data.test))
    labels = data.test.labels.numpy()
    predictions = np.concatenate([part.argmax(1).astype(np.int64) for part in parts])
    probabilities = all(are_probabilities(part) for part in parts)
    sure = _confidences(parts, probabilities)
    classes = len(data.classes)
    return Score(
        accuracy(predictions, labels),
        macro_recall(predictions, labels, classes),
        predictions,
        labels,
        class_metrics(predictions, labels, classes),
        sure,
        None if sure is None else calibration_error(sure, predictions == labels),
        probabilities,
    )


def _confidences(parts: list[NDArray[Any]], probabilities: bool) -> NDArray[np.float32] | None:
    if not all(np.isfinite(part.max(1)).all() for part in parts):
        return None
    return np.concatenate([confidences(part, probabilities) for part in parts]).astype(np.float32)


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
    return np.concatenate([scores.argmax(1).astype(np.int64) for scores in _scores(artifact, data, split)])


def _scores(artifact: str | PathLike[str], data: Dataset, split: Split) -> Iterator[NDArray[Any]]:
    """Yield the scores `(k, classes)` of the examples of a split, in parts.

    Raises:
        BadInput: the file does not take the data's inputs or does not give one score a class.
    """
    session = _open(artifact)
    names = _matched(artifact, session, data)
    for part in in_batches(len(split)):
        inputs = data.inputs(split, torch.arange(part.start, part.stop))
        scores = session.run({name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
        if scores.ndim != 2 or scores.shape[1] != len(data.classes):
            raise BadInput(
                f"{artifact}: gives {scores.shape}, wanted (batch, {len(data.classes)}) for the data's classes"
            )
        yield scores
