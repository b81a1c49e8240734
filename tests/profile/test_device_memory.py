"""The thread that watches a GPU's memory, with an invented GPU."""

from __future__ import annotations

import threading

from shipworthy.profile.child import Ended
from shipworthy.profile.device_memory import DeviceMemory
from shipworthy.profile.memory import memory_of


class InventedGauge:
    """A device whose memory rises and falls while it is looked at."""

    def __init__(self, used: list[int | None], own: int | None) -> None:
        self.seen = threading.Event()
        self._used, self._own, self._looks, self._asked = used, own, 0, False

    def used_bytes(self) -> int | None:
        """Return the next figure, the last one from then on."""
        self._looks += 1
        if self._looks > len(self._used) and (self._asked or self._own is None):
            self.seen.set()
        return self._used[min(self._looks, len(self._used)) - 1]

    def process_bytes(self, pid: int) -> int | None:
        """Return the figure of the one process that is known."""
        self._asked = True
        return self._own if pid == 42 else None


def test_the_device_is_watched_from_a_thread() -> None:
    """The most beyond the first look is kept, and the process's own memory once its number is known."""
    gauge = InventedGauge([100, 150, 900, 120, 100], own=70)
    with DeviceMemory(gauge, pause_s=0.0) as device:
        device.follow(42)
        assert gauge.seen.wait(20)
    assert device.added_bytes == 800
    assert device.process_bytes == 70
    assert (device.interval_ms or 0) > 0
    found = memory_of(Ended({"device": "cuda"}, None, True), 7, device)
    assert (found.device_bytes, found.device_process_bytes) == (800, 70)


def test_a_device_that_tells_nothing_has_no_figures() -> None:
    """GPUs that share the processor's memory, and drivers in containers, answer neither question."""
    gauge = InventedGauge([None], own=None)
    with DeviceMemory(gauge, pause_s=0.0) as device:
        assert gauge.seen.wait(20)
    assert (device.added_bytes, device.process_bytes) == (None, None)
