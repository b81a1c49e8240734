"""Watch a GPU's memory from outside, while another process works."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from typing import Self


class Gauge(Protocol):
    """Tells how much of a device's memory is taken."""

    def used_bytes(self) -> int | None:
        """Return what all processes hold together."""

    def process_bytes(self, pid: int) -> int | None:
        """Return what one process holds."""


@final
class DeviceMemory:
    """Looks at a gauge again and again in a thread of its own, from opening until the context ends.

    Attributes:
        added_bytes: the most that all processes held beyond what they held at the beginning; None where it is not told.
        process_bytes: the most that the process held; None where it is not told.
    """

    def __init__(self, gauge: Gauge, pause_s: float = 0.002) -> None:
        self._gauge, self._pause_s = gauge, pause_s
        self._pid = 0
        self.added_bytes: int | None = None
        self.process_bytes: int | None = None
        self._before = gauge.used_bytes()
        self._looks = 0
        self._began = time.perf_counter()
        self._last = self._began
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="device-memory", daemon=True)

    def follow(self, pid: int) -> None:
        """Look at this process from now on."""
        self._pid = pid

    @property
    def interval_ms(self) -> float | None:
        """The mean time between two looks in milliseconds."""
        return (self._last - self._began) / self._looks * 1e3 if self._looks else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._pause_s):
            self._look()

    def _look(self) -> None:
        used = self._gauge.used_bytes()
        if used is not None and self._before is not None:
            self.added_bytes = max(self.added_bytes or 0, used - self._before)
        own = self._gauge.process_bytes(self._pid) if self._pid else None
        if own is not None:
            self.process_bytes = max(self.process_bytes or 0, own)
        self._looks, self._last = self._looks + 1, time.perf_counter()
