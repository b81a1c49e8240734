"""What a run found about each class, as the record has it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .record import Figure


@dataclass(frozen=True)
class ClassRow:
    """One class: shares (0 to 1), and their paired changes against the baseline file in points (below zero is worse).

    Attributes:
        name: of the class.
        examples: of it among the test examples.
        predicted: how many test examples were taken for it.
        recall: the share of its examples that is recognised.
        precision: the share of what is taken for it that is right; None where it is never predicted.
        f1: the harmonic mean of the two.
        recall_change: None of the baseline.
        precision_change: None of the baseline, and where it or the baseline never predicts the class.
        f1_change: None of the baseline.
    """

    name: str
    examples: int
    predicted: int
    recall: Figure | None
    precision: Figure | None
    f1: Figure | None
    recall_change: Figure | None = None
    precision_change: Figure | None = None
    f1_change: Figure | None = None


@dataclass(frozen=True)
class ClassScores:
    """How well one file tells the classes apart.

    Attributes:
        rows: one a class, in the data's order.
        macro_recall: mean of the classes' recall (0 to 1).
        macro_precision: mean of their precision; 0 counts for a class that is never predicted.
        macro_f1: mean of their F1.
        lowest_recall: of the class that is recognised worst.
        calibration_error: expected, of the predicted class (0 to 1); None where scores are not finite.
        changes: of the means and of the calibration error, in points against the baseline file; none of the baseline.
        confusion: (true class, predicted class, examples) of every cell that is not empty; classes by place in `rows`.
        probabilities: whether the file gives probabilities; otherwise they are the softmax of its scores.
    """

    rows: list[ClassRow]
    macro_recall: Figure
    macro_precision: Figure
    macro_f1: Figure
    lowest_recall: Figure
    calibration_error: Figure | None
    changes: dict[str, Figure] = field(default_factory=dict)
    confusion: list[tuple[int, int, int]] = field(default_factory=list)
    probabilities: bool = False
