"""The reports of a run: one record in, four files out, all saying the same."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..models.files import write_text
from .record import RunRecord
from .report_junit import junit_text
from .report_markdown import markdown_text
from .report_numbers import clean
from .report_text import goal_lines, verdict_line
from .report_view import view

__all__ = ["goal_lines", "html_text", "junit_text", "markdown_text", "verdict_line", "write_reports"]

_TEMPLATES = Path(__file__).parent / "templates"


def html_text(record: RunRecord) -> str:
    """Return the HTML report: one page with its style and charts inside, without scripts or outside addresses."""
    pages = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return clean(pages.get_template("report.html.j2").render(view(record)))


def write_reports(record: RunRecord, folder: Path) -> dict[str, Path]:
    """Write `report.html`, `report.md`, `report.json` and `junit.xml` into `folder`, each whole or not at all.

    Args:
        record: what the run found. Its texts may hold anything; each format escapes them.
        folder: made if it is missing.

    Returns:
        The path of each report by its file name.

    Raises:
        BadInput: the folder cannot be written.
        ValueError: the record holds a number that JSON has not, such as NaN; nothing is written then.
    """
    texts = {
        "report.json": record.to_json(),
        "report.html": html_text(record),
        "report.md": markdown_text(record),
        "junit.xml": junit_text(record),
    }
    paths = {name: folder / name for name in texts}
    for name, path in paths.items():
        write_text(path, texts[name])
    return paths
