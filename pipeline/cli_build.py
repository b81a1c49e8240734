"""`shipworthy build`: from a recipe to a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_output import Answer, Debug, Json, columns, command

if TYPE_CHECKING:
    from .record import RunRecord

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Workdir = Annotated[Path, typer.Option("--workdir", "-w", help="Where reports, artifacts and finished stages go.")]


@command
def build(recipe: RecipeFile, workdir: Workdir = Path("out"), as_json: Json = False, debug: Debug = False) -> Answer:
    """Compress, export, measure and judge what a recipe describes.

    Exit code: 0 met, 1 missed, 2 bad input, 3 unclear, 4 a tool or device failed. Stages that an earlier run
    finished in the same folder are reused.
    """
    from .recipe import read_recipe

    # Read first: a faulty recipe is refused before torch is imported.
    checked = read_recipe(recipe)
    from .build import build as run
    from .cli_progress import showing
    from .crew import leading, serve, serves

    if serves():
        serve(checked.train.device)
        return Answer("", {}, 0)
    with showing() as progress, leading(checked.train.device):
        record = run(checked, workdir, progress)
    return Answer(verdict_text(record, workdir), record.to_json(), record.exit_code)


def verdict_text(record: RunRecord, workdir: Path) -> str:
    """Return what `build` prints: a row for each goal, what changed, and where the report is."""
    from .report_paying import paying_lines
    from .report_text import GOAL_COLUMNS, cautions, goal_lines, verdict_line

    lines = goal_lines(record)
    table = columns([GOAL_COLUMNS[:5], *(line[:5] for line in lines)]) if lines else "no goals set"
    reasons = [f"{line[0]} {line[1]}: {line[5]}" for line in lines if line[0] != "MET" and line[5]]
    parts = [
        table,
        "\n".join(reasons),
        columns(_changes(record)),
        "\n".join(paying_lines(record)),
        verdict_line(record),
    ]
    parts.append("\n".join(f"note: {caution}" for caution in cautions(record)))
    return "\n\n".join(filter(None, parts)) + f"\n\nreport: {workdir / 'report.html'}"


def _changes(record: RunRecord) -> list[tuple[str, ...]]:
    from .report_numbers import NONE, figure_text, percent, ratio_text, size
    from .report_text import baseline_of, latency_of, shipped, sizes

    ship, base, both = shipped(record), baseline_of(record), sizes(record)
    rows: list[tuple[str, ...]] = [("", "baseline", "artifact", "change")]
    if both:
        rows.append(("size", size(both[0]), size(both[1]), ratio_text(*both)))
    if ship and ship.accuracy:
        before = percent(base.accuracy) if base else NONE
        drop = figure_text(ship.accuracy_drop, "points") if ship.accuracy_drop else NONE
        rows.append(("accuracy", before, percent(ship.accuracy), f"drop {drop}"))
    for ratio in record.comparisons:
        old, new = (latency_of(record, name, ratio.runtime) for name in (ratio.baseline, ratio.artifact))
        if old and new and old.percentiles and new.percentiles:
            times = [f"{row.percentiles[0].ms:.3g} ms" for row in (old, new)]
            rows.append((f"latency on {ratio.runtime}", *times, f"speed-up {figure_text(ratio.speedup, 'x')}"))
    return rows
