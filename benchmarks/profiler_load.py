"""A background load that comes in bursts: on every core a process that is busy and idle for random lengths of time.

Lengths are drawn log-uniformly from 5 ms to 2 s, so that some bursts fall inside one inference's series and others
cover it wholly. The seed fixes the lengths; what they meet is chance.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

SHORTEST_S, LONGEST_S = 0.005, 2.0


class Bursts:
    """Loads the machine while its context is open; afterwards its processes are gone.

    Args:
        seed: of the lengths.
        processes: one per usable core if None.
    """

    def __init__(self, seed: int = 0, processes: int | None = None) -> None:
        self._count = usable_cores() if processes is None else processes
        self._seed = seed
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for index in range(self._count):
            command = [sys.executable, str(Path(__file__)), str(1000 * self._seed + index)]
            self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        return self

    def __exit__(self, *fault: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    @property
    def pids(self) -> list[int]:
        """Those of the processes."""
        return [process.pid for process in self._processes]

    def describe(self) -> str:
        """Say in words what loads the machine."""
        return (
            f"{self._count} processes, each busy and idle by turns for {1000 * SHORTEST_S:g} ms to {LONGEST_S:g} s, "
            f"log-uniformly at random (seed {self._seed})"
        )


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def lengths(seed: int) -> Iterator[float]:
    """Yield seconds without end: busy, idle, busy and so on."""
    chance = random.Random(seed)
    low, high = math.log(SHORTEST_S), math.log(LONGEST_S)
    while True:
        yield math.exp(chance.uniform(low, high))


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _work(seed: int) -> None:
    """Be busy and idle by turns until the parent is gone."""
    parent = os.getppid()
    for index, seconds in enumerate(lengths(seed)):
        if os.getppid() != parent:
            return
        (time.sleep if index % 2 else _spin)(seconds)


if __name__ == "__main__":
    _work(int(sys.argv[1]))
