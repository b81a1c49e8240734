"""The errors the product raises on purpose. Each carries the exit code that the command line ends with."""

from __future__ import annotations

from collections.abc import Sequence


class ShipworthyError(Exception):
    """An error with a message for the user: what, where, got, wanted, and the fix."""

    exit_code = 4


def first_few(names: Sequence[str], count: int = 8) -> str:
    """Return the first names of a list for a message, such as `conv1, fc, ...`."""
    return ", ".join(names[:count]) + (", ..." if names[count:] else "")


class BadInput(ShipworthyError):
    """What the user gave cannot be used: a recipe, a model source, data, a file or an option."""

    exit_code = 2


class MissingRuntime(BadInput):
    """A runtime or an optional dependency is not installed; the message names the extra to install."""


class ToolFailed(ShipworthyError):
    """A tool or device that should work has failed: an exporter, an engine builder, a child process."""
