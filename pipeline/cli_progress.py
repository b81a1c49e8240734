"""Progress on stderr: a bar with the time left on a terminal, one line a stage elsewhere (CI logs)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, final

from .progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


@contextmanager
def showing(stream: TextIO | None = None) -> Iterator[Progress]:
    """Give a progress that writes to `stream` (stderr by default) and cleans up after itself."""
    stream = stream or sys.stderr
    if not stream.isatty():
        lines = Lines(stream)
        yield lines
        lines.finish()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    with Bars(*columns, *left, console=Console(file=stream), transient=True) as bars:
        terminal = Terminal(bars)
        yield terminal
        terminal.finish()


@final
class Lines:
    """One line when a stage begins and one when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._name = ""
        self._began = 0.0

    def stage(self, name: str) -> None:
        """Write that a stage begins."""
        self.finish()
        self._name, self._began = name, time.perf_counter()
        self._write(f"{name} ...")

    def reused(self, name: str) -> None:
        """Write that a stage was done before."""
        self.finish()
        self._write(f"{name}: reused")

    def advance(self, done: int, total: int) -> None:
        """Write nothing: a log has no use for it."""

    def note(self, text: str) -> None:
        """Write a line."""
        self._write(f"  {text}")

    def finish(self) -> None:
        """Write how long the present stage took."""
        if self._name:
            self._write(f"{self._name}: {time.perf_counter() - self._began:.1f} s")
        self._name = ""

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


@final
class Terminal:
    """A live bar for the present stage; finished stages stay as lines above it."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._name = ""
        self._began = 0.0

    def stage(self, name: str) -> None:
        """Show a new bar."""
        self.finish()
        self._name, self._began = name, time.perf_counter()
        self._task = self._bars.add_task(_plain(name), total=None)

    def reused(self, name: str) -> None:
        """Leave a line: done before."""
        self.finish()
        self._bars.print(f"  {_plain(name)}: reused", highlight=False)

    def advance(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Leave a line above the bar."""
        self._bars.print(f"  {_plain(text)}", highlight=False)

    def finish(self) -> None:
        """Take the bar away and leave a line with the time it took."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            seconds = time.perf_counter() - self._began
            self._bars.print(f"  {_plain(self._name)}: {seconds:.1f} s", highlight=False)
        self._task = None


def _plain(text: str) -> str:
    """Keep brackets in text from being read as rich's markup."""
    from rich.markup import escape

    return escape(text)
