"""Measure how fast the processor reads and writes memory, at each level of its caches. Imports nothing but numpy.

Kernels after McCalpin's STREAM ("Memory bandwidth and machine balance in current high performance computers", 1995),
counted as there: what a kernel names is moved once, and lines that are fetched only to be overwritten are not counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .inputs import Array

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL = {"L2": 1 << 20, "L3": 16 << 20}
_LEAST_PASS = 16 << 20  # bytes: a shorter pass would be one of starting and stopping
_FEWEST = 3

Span = tuple[int, int]
"""Nanoseconds of a begin and an end, on one clock."""

Work = tuple[Callable[[], Any], int]
"""One pass, and the bytes that it moves."""

Make = Callable[[int, int], Work]
"""Takes the bytes to work on and how often to pass over them."""


@dataclass(frozen=True)
class Level:
    """A level of memory: its name, what fits in it for the threads together (None: everything), and where to try."""

    name: str
    holds_bytes: int | None
    tries_bytes: tuple[int, ...]


def levels(caches: dict[str, int], threads: int, memory_bytes: int | None) -> list[Level]:
    """Return the levels from the smallest on, without L1: the cost of a call hides how fast that is.

    Args:
        caches: bytes of L2 and L3; L2 is each core's own, L3 is shared.
        threads: that work together.
        memory_bytes: of the machine; an eighth of it is used at the most.
    """
    made = []
    for name, size in sorted(caches.items()):
        holds = size * threads if name == "L2" else size
        made.append(Level(name, holds, (holds // 4, holds // 2)))
    largest = max((level.holds_bytes or 0 for level in made), default=0)
    beyond = max(256 << 20, 4 * largest)
    return [*made, Level("DRAM", None, (min(beyond, (memory_bytes or 8 << 30) // 8),))]


def cache_sizes(folder: Path = _CACHES) -> tuple[dict[str, int], bool]:
    """Return bytes of L2 and L3, and whether the system told them; usual sizes where it does not."""
    found = {}
    for entry in sorted(folder.glob("index*")):
        kind, level, size = (_text(entry / name) for name in ("type", "level", "size"))
        if kind in ("Data", "Unified") and level in ("2", "3") and size[:-1].isdigit():
            found[f"L{level}"] = int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
    return (found, True) if found else (dict(_USUAL), False)


def best_bandwidth(level: Level, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Try every kernel at every size of a level.

    Args:
        level: where.
        threads: each on a part of its own.
        seconds: for each try.

    Returns:
        One dict per try: the kernel, the bytes it works on, and the most bytes per second of all its passes.
    """
    return [
        {"level": level.name, "kernel": name, "bytes": size, "bytes_per_s": _best(make, size, threads, seconds)}
        for size in level.tries_bytes
        for name, make in KERNELS.items()
    ]


def _best(make: Make, size: int, threads: int, seconds: float) -> float:
    """Return the most bytes per second that all threads reached together in one pass."""
    team = _Team(threads, seconds)
    share = size // threads
    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(team.work, make, share, max(1, _LEAST_PASS // size)) for _ in range(threads)]
        members = [one.result() for one in done]
    shortest = min(_together(spans) for spans in zip(*(spans for spans, _ in members), strict=True))
    return sum(moved for _, moved in members) / shortest * 1e9


@final
class _Team:
    """Threads that start each pass together, until the time is over."""

    def __init__(self, threads: int, seconds: float) -> None:
        self._barrier = threading.Barrier(threads)
        self._until = time.perf_counter() + seconds
        self._more = True

    def work(self, make: Make, size: int, repeats: int) -> tuple[list[Span], int]:
        """Return when each pass began and ended, and the bytes that each moved."""
        spans: list[Span] = []
        try:
            run, moved = make(size, repeats)
            while self._more:
                self._barrier.wait()
                began = time.perf_counter_ns()
                run()
                spans.append((began, time.perf_counter_ns()))
                self._decide(len(spans))
        except BaseException:
            self._barrier.abort()
            raise
        return spans, moved

    def _decide(self, passes: int) -> None:
        """Let one thread decide for all, between two barriers, so that none waits for one that has left."""
        if self._barrier.wait() == 0:
            self._more = passes < _FEWEST or time.perf_counter() < self._until
        self._barrier.wait()


def _together(spans: Sequence[Span]) -> int:
    """Return the nanoseconds from the first begin to the last end."""
    return max(1, max(end for _, end in spans) - min(began for began, _ in spans))


def _again(array: Array, repeats: int) -> Array:
    """Show an array as one that repeats itself, so that one call passes over it many times."""
    return as_strided(array, (repeats, array.size), (0, array.itemsize))


def _add(size: int, repeats: int) -> Work:
    count = size // 12
    a, b, out = (_again(np.ones(count, np.float32), repeats) for _ in range(3))
    return lambda: np.add(a, b, out=out), 12 * count * repeats


def _largest(size: int, repeats: int) -> Work:
    count = size // 4
    a = _again(np.ones(count, np.float32), repeats)
    return lambda: np.maximum.reduce(a, axis=1), 4 * count * repeats


def _dot(size: int, repeats: int) -> Work:
    count = size // 8
    a, b = (np.ones(count, np.float32) for _ in range(2))

    def run() -> None:
        for _ in range(repeats):
            np.dot(a, b)

    return run, 8 * count * repeats


KERNELS = {"add: read two, write one": _add, "maximum: read one": _largest, "dot: read two": _dot}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
