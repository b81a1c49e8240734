"""Imitate a device with less memory, and tell an error for lack of memory from any other."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MB = 1_000_000
_STACK = 8 << 20

_LACK = re.compile(
    r"bad_?alloc|MemoryError|out of memory|OutOfMemory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|Failed to allocate memory|can't allocate memory|Cannot allocate memory|Unable to allocate"
    r"|Available memory of \d+ is smaller|not enough memory|pthread_create failed, error code: 12",
    re.IGNORECASE,
)


def lacks_memory(text: str) -> bool:
    """Tell whether an error's text speaks of memory that ran out, on the host or on a GPU."""
    return _LACK.search(text) is not None


@contextmanager
def limited(limit_bytes: int | None, resident_bytes: int, threads: int) -> Iterator[None]:
    """Let this process take so much more private memory that all it holds stays below a limit.

    The limit is `RLIMIT_DATA`: of all limits that need no privileges it alone follows what is used. `RLIMIT_AS` counts
    address space, of which every thread reserves 64 MiB that it does not touch; `RLIMIT_RSS` has no effect on Linux.
    On a model of 67 MB it stops allocations within 6 MB of the resident memory that they would reach.

    Args:
        limit_bytes: of the whole process; None for no limit. It has no effect outside Linux.
        resident_bytes: what the process holds now.
        threads: that may start inside; each further one reserves a stack that it hardly touches.

    Raises:
        MemoryError: the process holds more than the limit already.
    """
    if limit_bytes is None:
        yield
        return
    if resident_bytes > limit_bytes:
        raise MemoryError(f"the runtime alone holds {resident_bytes / MB:.1f} MB")
    if sys.platform != "linux":
        yield
        return
    resource: Any = importlib.import_module("resource")
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stacks = (threads - 1) * (stack if stack != resource.RLIM_INFINITY else _STACK)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = private_bytes() + limit_bytes - resident_bytes + stacks
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def private_bytes() -> int:
    """Return what Linux counts towards `RLIMIT_DATA` in this process."""
    return status_bytes("VmData") or 0


def status_bytes(key: str) -> int | None:
    """Return a size from `/proc/self/status`, None where there is no such file or line."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123 (costs least memory)
            lines = [line.split() for line in file]
    except OSError:
        return None
    return next((int(words[1]) * 1024 for words in lines if words and words[0] == f"{key}:"), None)
