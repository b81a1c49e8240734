"""Scores between stages and record: what a check keeps of them, and how two files of one build differ by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..export.score import Score
from ..models.class_metrics import ClassMetrics, class_metrics
from ..models.confidence import calibration_change
from ..models.data import Dataset
from ..models.metrics import Estimate
from ..models.paired_metrics import paired_changes
from .class_record import ClassRow, ClassScores
from .record import Figure
from .store import Facts, Stage, Store

if TYPE_CHECKING:
    from .stages import Exported

_CHANGES = ("macro_recall", "macro_precision", "macro_f1", "calibration_error")
PREDICTIONS, CONFIDENCES = "predictions.npy", "confidences.npy"


def keep_scores(scored: Score, folder: Path) -> Facts:
    """Write the class of every test example and its probability into a stage's folder; return the figures of all.

    What tells classes apart follows from the predictions, so that facts stay short however many classes there are.
    """
    np.save(folder / PREDICTIONS, scored.predictions)
    if scored.confidences is not None:
        np.save(folder / CONFIDENCES, scored.confidences)
    classes, error = scored.classes, scored.calibration_error
    return {
        "accuracy": asdict(scored.accuracy),
        "macro_recall": asdict(scored.macro_recall),
        "macro_precision": asdict(classes.macro_precision),
        "macro_f1": asdict(classes.macro_f1),
        "lowest_recall": asdict(classes.lowest_recall),
        "calibration_error": asdict(error) if error else None,
        "probabilities": scored.probabilities,
    }


def predictions_of(checked: Stage) -> NDArray[np.int64]:
    """Return the class of every test example `(examples,)` as a checked file sees it."""
    found: NDArray[np.int64] = np.load(checked.folder / PREDICTIONS)
    return found


def confidences_of(checked: Stage) -> NDArray[np.float32] | None:
    """Return the probability of each predicted class `(examples,)`; None where scores were not finite."""
    path = checked.folder / CONFIDENCES
    found: NDArray[np.float32] | None = np.load(path) if path.exists() else None
    return found


def changes_stage(store: Store, baseline: Exported, file: Exported, data: Dataset) -> Stage:
    """Tell by how many points a file that ships differs from the baseline, on each class and on their means."""
    labels, before, after = data.test.labels.numpy(), baseline.checked, file.checked

    def make(folder: Path) -> Facts:
        first, second = predictions_of(before), predictions_of(after)
        facts: dict[str, Any] = asdict(paired_changes(first, second, labels, len(data.classes)))
        sure = confidences_of(before), confidences_of(after)
        if sure[0] is not None and sure[1] is not None:
            change = calibration_change(sure[0], first == labels, sure[1], second == labels)
            facts["calibration_error"] = asdict(change)
        return facts

    name = file.checked.name.replace("check", "change", 1)
    return store.run(name, {"before": before.key, "after": after.key}, make)


def class_scores(
    file: Exported, labels: NDArray[np.int64], names: Sequence[str], changes: Facts | None = None
) -> ClassScores:
    """Return what the record says of one file's classes.

    Args:
        file: checked, with data.
        labels: the true classes `(examples,)`.
        names: of the classes.
        changes: of `changes_stage`; None of the baseline.
    """
    predictions, facts = file.predictions(), file.checked.facts
    found = class_metrics(predictions, labels, len(names))
    error, changes = facts.get("calibration_error"), changes or {}
    true, taken = np.nonzero(found.confusion)
    cells = zip(true.tolist(), taken.tolist(), found.confusion[true, taken].tolist(), strict=True)
    return ClassScores(
        rows=[_row(found, changes, place, name) for place, name in enumerate(names)],
        macro_recall=_plain(found.macro_recall),
        macro_precision=_plain(found.macro_precision),
        macro_f1=_plain(found.macro_f1),
        lowest_recall=_plain(found.lowest_recall),
        calibration_error=Figure(**error) if error else None,
        changes={name: Figure(**changes[name]) for name in _CHANGES if name in changes},
        confusion=list(cells),
        probabilities=bool(facts.get("probabilities")),
    )


def _row(found: ClassMetrics, changes: Mapping[str, Any], place: int, name: str) -> ClassRow:
    kinds = ("recall", "precision", "f1")
    shares = {kind: _figure(getattr(found, kind)[place]) for kind in kinds}
    moved = {f"{kind}_change": Figure(**one) for kind in kinds if kind in changes and (one := changes[kind][place])}
    examples, predicted = int(found.confusion[place].sum()), int(found.confusion[:, place].sum())
    return ClassRow(name, examples, predicted, **shares, **moved)


def _plain(one: Estimate) -> Figure:
    return Figure(one.value, one.low, one.high)


def _figure(one: Estimate | None) -> Figure | None:
    return _plain(one) if one else None
