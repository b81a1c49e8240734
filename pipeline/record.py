"""What one run found: plain data that becomes `report.json` and feeds every other report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .class_record import ClassScores

SCHEMA = 1
Outcome = Literal["met", "missed", "unclear"]


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % confidence interval, where one is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class StepRow:
    """The model after one step: `baseline` first, then each pass. Every figure is of that step's own ONNX file."""

    name: str
    settings: dict[str, Any]
    params: int
    macs: int
    file_bytes: int
    accuracy: Figure | None
    latency_p50_ms: Figure | None
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ParityRow:
    """How far a file's outputs are from the outputs of the torch graph it was made from, over `samples` inputs.

    Distances are infinite or not a number where the file gives such outputs; JSON has null there. `noise` is how far
    rounding alone moves the graph's outputs, `top1_agreement` of outputs that are scores.
    """

    output: str
    samples: int
    max_abs: float
    relative: float
    cosine: float
    top1_agreement: float | None
    tolerance: float
    passed: bool
    noise: float | None = None


@dataclass(frozen=True)
class ArtifactRow:
    """One file the run wrote. Accuracies are shares (0 to 1); the drop is in points, against the baseline file."""

    name: str
    file: str
    sha256: str
    bytes: int
    precision: str
    target: str
    parity: list[ParityRow] = field(default_factory=list)
    accuracy: Figure | None = None
    macro_recall: Figure | None = None
    agreement: Figure | None = None
    accuracy_drop: Figure | None = None
    ships: bool = False
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    classes: ClassScores | None = None


@dataclass(frozen=True)
class Percentile:
    """A latency percentile in milliseconds with its order-statistic interval."""

    q: float
    ms: float
    low_ms: float | None
    high_ms: float | None


@dataclass(frozen=True)
class LatencyRow:
    """Raw latencies of one file in one runtime; all rows of a run were sampled interleaved."""

    name: str
    runtime: str
    samples_ns: list[int]
    percentiles: list[Percentile]
    peak_memory_bytes: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ComparisonRow:
    """Paired latency ratio baseline / artifact (above 1 is faster) with its interval."""

    baseline: str
    artifact: str
    runtime: str
    speedup: Figure
    outcome: Literal["faster", "slower", "same", "unclear"]
    reason: str


@dataclass(frozen=True)
class ValueRow:
    """One number of a figure beside the warm latency, and what it is; without a number, why."""

    name: str
    figure: Figure | None
    unit: str
    what: str


@dataclass(frozen=True)
class FigureRow:
    """One of the recipe's `profile.figures`, of the file that ships, in one runtime.

    Attributes:
        name: as in the recipe.
        lines: what the profiler says of it.
        data: what the profiler found, without the raw samples: they are in the stage's folder.
        absent: why it could not be measured there.
    """

    name: str
    runtime: str
    values: list[ValueRow] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    absent: str | None = None


@dataclass(frozen=True)
class PaysRow:
    """Whether a pass that claims speed made the file faster, and what became of it.

    Attributes:
        name: the pass.
        against: the step whose file its own was compared with.
        runtime: where; None where nothing could be compared.
        outcome: of its file against that one.
        speedup: latency before over latency after.
        kept: False for a pass that was dropped: the model went on as it was before.
        line: all that in one line.
        reasons: why it is no faster.
    """

    name: str
    against: str
    runtime: str | None
    outcome: Literal["faster", "slower", "same", "unclear", "not compared"]
    speedup: Figure | None
    kept: bool
    line: str
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GoalRow:
    """One goal of the recipe and what became of it."""

    metric: str
    bound: str
    on: str | None
    outcome: Outcome
    figure: Figure | None
    unit: str
    margin: float | None
    reason: str


@dataclass(frozen=True)
class RunRecord:
    """Everything one `build` found. `report.json` is this, with `schema` first."""

    schema: int
    outcome: Outcome
    exit_code: int
    recipe: dict[str, Any]
    recipe_sha256: str
    model: dict[str, Any]
    data: dict[str, Any]
    steps: list[StepRow]
    artifacts: list[ArtifactRow]
    latency: list[LatencyRow]
    comparisons: list[ComparisonRow]
    goals: list[GoalRow]
    environment: dict[str, Any]
    seconds: dict[str, float]
    notes: list[str]
    workdir: str = "."
    finished_at: str = ""
    """When the verdict was reached, UTC, ISO 8601."""
    figures: list[FigureRow] = field(default_factory=list)
    pays: list[PaysRow] = field(default_factory=list)
    dropped: list[StepRow] = field(default_factory=list)
    """Passes that did not pay, with the figures of their own files, which do not ship."""
    integers: list[dict[str, Any]] = field(default_factory=list)
    """`IntegerShare` of the files that ship in integers, by runtime."""
    mixed_precision: list[dict[str, Any]] = field(default_factory=list)
    """`MixedPrecision` of each pass that searched for layers to keep in fp32, with its `name`, and whether it was
    `dropped`."""

    def to_json(self) -> str:
        """Return the record as JSON text, with the later lists where there is anything in them."""
        plain = asdict(self)
        for name in ("figures", "pays", "dropped", "integers", "mixed_precision"):
            if not plain[name]:
                del plain[name]
        for row in (row for artifact in plain["artifacts"] for row in artifact["parity"]):
            row.update({key: None for key, value in row.items() if isinstance(value, float) and not isfinite(value)})
        return json.dumps(plain, indent=1, allow_nan=False) + "\n"
