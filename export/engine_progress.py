"""How far a build is, from the phases that TensorRT reports.

Runs in the child process of a build; the module of TensorRT comes as a parameter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

Tell = Callable[[int], None]
"""Called with how much is done, of `TOTAL`."""

TOTAL = 1000
"""A whole build in steps of progress."""


class Phases:
    """The phases that are open, outermost first, and how much of the build they say is done."""

    def __init__(self, tell: Tell) -> None:
        """Tell `tell` whenever more is done."""
        self._tell = tell
        self._open: dict[str, tuple[int, int]] = {}
        self._told = -1
        # TensorRT calls from threads of its own.
        self._lock = threading.Lock()

    def start(self, name: str, steps: int) -> None:
        """A phase of so many steps begins, inside those that are open."""
        with self._lock:
            self._open[name] = (0, max(1, steps))
            self._report()

    def step(self, name: str, index: int) -> None:
        """A phase has done its step number `index`, from 0."""
        with self._lock:
            if name in self._open:
                self._open[name] = (index + 1, self._open[name][1])
                self._report()

    def finish(self, name: str) -> None:
        """A phase is over; where it was the outermost, so is the build."""
        with self._lock:
            outermost = next(iter(self._open), None) == name
            self._open.pop(name, None)
            if outermost:
                self._told = max(self._told, TOTAL)
                self._tell(TOTAL)

    def _report(self) -> None:
        share, width = 0.0, 1.0
        for done, steps in self._open.values():
            share += width * done / steps
            width /= steps
        # A phase may be begun again; what was done is not undone.
        now = int(TOTAL * min(share, 1.0))
        if now > self._told:
            self._told = now
            self._tell(now)


def monitor(trt: Any, tell: Tell) -> Any:
    """Return an `IProgressMonitor` that tells how far a build is.

    Args:
        trt: the module.
        tell: called whenever more is done.
    """
    phases = Phases(tell)

    def begun(self: Any) -> None:
        trt.IProgressMonitor.__init__(self)

    def phase_start(self: Any, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        phases.start(phase_name, num_steps)

    def phase_finish(self: Any, phase_name: str) -> None:
        phases.finish(phase_name)

    def step_complete(self: Any, phase_name: str, step: int) -> bool:
        phases.step(phase_name, step)
        return True

    methods = {"phase_start": phase_start, "phase_finish": phase_finish, "step_complete": step_complete}
    return type("Monitor", (trt.IProgressMonitor,), {"__init__": begun, **methods})()
