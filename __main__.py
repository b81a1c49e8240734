"""The command line: `shipworthy`, and `python -m shipworthy`."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with its code."""
    from .pipeline.cli import app

    app(prog_name="shipworthy")


if __name__ == "__main__":
    main()
