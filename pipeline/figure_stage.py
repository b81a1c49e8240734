"""The stage that takes the recipe's `profile.figures` of the file that ships in one runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..profile.environment import comparison_key, environment
from ..profile.errors import ProfileError, RuntimeAbsent
from ..profile.sampling import Report
from .figure_rows import TITLES, read_row, row_of
from .record import FigureRow
from .report_numbers import figure_text
from .store import Facts, Store
from .taking import TAKERS, Request

_TRIES = 20  # kernels and sizes of a roofline


def take_figures(
    store: Store, runtime: str, names: Sequence[str], request: Request, of: Mapping[str, Any]
) -> list[FigureRow]:
    """Take each figure once for the same file, plan, inputs and environment.

    One that cannot be taken there is a row with the reason.

    Args:
        store: of finished stages. Raw samples are in the stage's folder, one JSON file a figure.
        runtime: as the recipe names it.
        names: keys of `TAKERS`, in any order.
        request: what the profiler measures; its `report` is not used.
        of: hashes of the file and of the data that the inputs are of.
    """
    ordered = [name for name in TAKERS if name in names]

    def make(folder: Path) -> Facts:
        reports = [_share(store, place, len(ordered)) for place in range(len(ordered))]
        asked = [(name, replace(request, report=report)) for name, report in zip(ordered, reports, strict=True)]
        return {"figures": [asdict(_take(store, runtime, name, one, folder)) for name, one in asked]}

    given = {
        **of,
        "runtime": request.runtime,
        "plan": asdict(request.plan),
        "at": comparison_key(environment()),
        "names": ordered,
    }
    try:
        return list(map(read_row, store.run(f"figures-{runtime}", given, make).facts["figures"]))
    except RuntimeAbsent as fault:
        # No finished stage: the next run looks again.
        return [FigureRow(name, runtime, absent=str(fault)) for name in ordered]


def _share(store: Store, place: int, count: int) -> Report:
    """Tell the stage's progress of one figure's, the `place`-th of `count`."""

    def report(share: float, _text: str) -> None:
        store.progress.advance(round(1000 * (place + min(1.0, share)) / count), 1000)

    return report


def _take(store: Store, runtime: str, name: str, request: Request, folder: Path) -> FigureRow:
    """Take one figure, keep its raw data in the folder, and leave a line."""
    try:
        taken = TAKERS[name](request)
    except RuntimeAbsent:
        raise
    except ProfileError as fault:
        store.progress.note(f"{TITLES[name]}: not measured: {fault}")
        return FigureRow(name, runtime, absent=str(fault))
    (folder / f"{name}.json").write_text(json.dumps(taken.found.to_dict()), encoding="utf-8")
    row = row_of(name, runtime, taken)
    first = row.values[0]
    store.progress.note(f"{first.name}: {figure_text(first.figure, first.unit) if first.figure else first.what}")
    return row


def layers_within(request: Request, median_ms: float) -> Request:
    """Return the request with no more layer runs and tries than fit into the plan's budget, half of it for each.

    Args:
        request: with the plan.
        median_ms: of one inference.
    """
    half_s = request.plan.budget_s / 2
    # With and without the profiler, and each after runs that settle it.
    one_s = 2 * (1 + request.plan.settle_runs) * median_ms / 1e3
    return replace(
        request, runs=max(1, min(request.runs, int(half_s / one_s))), try_s=min(request.try_s, half_s / _TRIES)
    )
