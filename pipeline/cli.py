"""The command line's commands, listed by hand. Nothing here imports torch: `--help` answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .cli_build import build
from .cli_doctor import doctor
from .cli_engine import engine
from .cli_export import export
from .cli_inspect import inspect
from .cli_parity import parity
from .cli_profile import compare, profile
from .cli_quantize import quantize

app = typer.Typer(
    help="Make a trained PyTorch model smaller and faster, measure the file that ships, and get one verdict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _body in (build, inspect, export, quantize, engine, profile, compare, parity, doctor):
    app.command()(_body)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"shipworthy {version('shipworthy')}")
        raise typer.Exit


@app.callback(epilog="Exit codes: 0 met, 1 missed, 2 bad input, 3 unclear, 4 a tool or device failed.")
def start(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Make a trained PyTorch model smaller and faster, measure the file that ships, and get one verdict."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal or log without the multiplication sign gets a question mark, not a crash.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
