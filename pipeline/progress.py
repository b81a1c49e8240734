"""How long work tells what it is doing. The library calls it; only the command line shows it."""

from __future__ import annotations

from typing import Protocol, final


class Progress(Protocol):
    """What a run reports to."""

    def stage(self, name: str) -> None:
        """A stage begins, and the one before it is over."""

    def reused(self, name: str) -> None:
        """A stage was finished by an earlier run and is not done again."""

    def advance(self, done: int, total: int) -> None:
        """The present stage has done so much of its work."""

    def note(self, text: str) -> None:
        """Say something worth a line."""


@final
class Silent:
    """A `Progress` that shows nothing."""

    def stage(self, name: str) -> None:
        """Do nothing."""

    def reused(self, name: str) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
