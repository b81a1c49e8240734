"""What the experiments on the profiler share: their settings, their rows, and the words for a goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipworthy.benchmarks import common

Row = dict[str, Any]
Work = Callable[[Any], Row]


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        quick: a smoke run.
        device: cpu or cuda.
        folder: of model files.
        models: of `profiler_bare.MODELS`, for tries on a loaded machine.
        aa_tries: how often a model is compared with itself.
        power_tries: how often a planted slowdown is looked for.
        slowdown: that is planted, as a share.
        seed: of the load, of orders and of invented series.
    """

    quick: bool
    device: str
    folder: Path
    models: tuple[str, ...]
    aa_tries: int
    power_tries: int
    slowdown: float
    seed: int = 0


@dataclass(frozen=True)
class Experiment:
    """One question to the profiler.

    Attributes:
        title: of its part of the report.
        units: by its key, what one row is made of; the key says all that the row depends on.
        workshop: a context that gives the work which makes a row of a unit; entered only where rows are missing.
        report: the Markdown of all rows.
    """

    title: str
    units: Callable[[Settings], Mapping[str, Any]]
    workshop: Callable[[Settings], AbstractContextManager[Work]]
    report: Callable[[Sequence[Row]], str]


@contextmanager
def plainly(work: Work) -> Iterator[Work]:
    """Give the work as it is: it needs no surroundings."""
    yield work


def read_rows(file: Path | None) -> dict[str, Row]:
    """Return the rows of a file by their key."""
    return {row["key"]: row for row in common.read_rows(file)}


def add_row(file: Path | None, row: Row) -> None:
    """Append a row to a file; a figure that is no number is refused."""
    common.add_row(file, row, allow_nan=False)


def goal(text: str, reached: bool) -> str:
    """Return a line that states a goal and whether it is reached."""
    return f"Goal: {text}: **{'met' if reached else 'missed'}**.\n"


def share(count: int, of: int) -> str:
    """Return a count as text, such as `3 of 40 (7.5 %)`."""
    return f"{count} of {of} ({100 * count / of:.1f} %)" if of else "0 of 0"
