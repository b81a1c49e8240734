"""Bind this process to the cores that a plan names, while it measures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import BadPlan
from .plan import Plan


@contextmanager
def bound(plan: Plan) -> Iterator[None]:
    """Bind every thread of the process to `plan.affinity`; afterwards each has its own cores back.

    Enter it before runners are opened: threads that start inside inherit the cores, and so do child processes.
    Without an affinity it does nothing.

    Raises:
        BadPlan: a core does not exist or is not allowed, or the system is not Linux.
    """
    if not plan.affinity:
        yield
        return
    before = _check(plan.affinity)
    threads = {thread: _cores_of(thread) for thread in _threads()}
    _bind(threads, set(plan.affinity))
    try:
        yield
    finally:
        _restore(threads, before)


def usable_cores() -> set[int]:
    """Return the cores that the calling thread may run on; empty where the system does not tell."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set()


def _check(wanted: Iterable[int]) -> set[int]:
    if sys.platform != "linux":
        raise BadPlan(f"plan.affinity: got {sorted(wanted)} on {sys.platform}; binding to cores works on Linux alone")
    usable = usable_cores()
    beyond = sorted(set(wanted) - usable)
    if beyond:
        raise BadPlan(f"plan.affinity: cores {beyond} cannot be used here, wanted some of {sorted(usable)}")
    return usable


def _threads() -> list[int]:
    """List the process's threads: pools that a runtime made before would otherwise stay where they were."""
    return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]


def _cores_of(thread: int) -> set[int]:
    try:
        return os.sched_getaffinity(thread)
    except ProcessLookupError:
        return set()


def _bind(threads: Iterable[int], cores: set[int]) -> None:
    for thread in threads:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cores)


def _restore(threads: dict[int, set[int]], otherwise: set[int]) -> None:
    """Give each thread its cores back; threads that started meanwhile get those of the thread that measured."""
    for thread in _threads():
        _bind([thread], threads.get(thread) or otherwise)
