"""Cold start: what the first result costs in a process that does not exist yet. A figure apart from the warm one."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from .affinity import bound
from .child import MODULE_FLAGS, REPLY, run_to_end
from .device_state import summary
from .device_watch import open_watch
from .environment import busy_note, environment
from .errors import BadPlan, ProfileError
from .memory import INPUTS, REQUEST
from .opening import sha256_of, target_file
from .plan import Plan
from .runners import Inputs, Target, opener
from .sampling import Report
from .stats import Estimate, in_ms, percentile
from .weights import read_weights

SCHEMA = 1
RUNTIMES = ("ort-cpu", "ort-cuda", "ort-tensorrt")
STAGES = {
    "process": "starting Python",
    "import": "importing the runtime",
    "open": "opening the file",
    "first": "the first inference",
    "second": "the second inference",
}
"""The stages in order, and their names in words. The first result is there after the fourth."""

WARM, EVICTED = "warm page cache", "file evicted from the page cache before each start"

_Started = tuple["Start", str | None]


@dataclass(frozen=True)
class Start:
    """Nanoseconds of one fresh process; None for what it did not reach.

    Attributes:
        process_ns: from the parent's call that starts it until Python is ready to import the runtime.
        import_ns: importing the runtime, with all that it needs; for a GPU loading its libraries too.
        open_ns: opening the file: reading, optimizing, and on a GPU moving weights.
        first_ns: the first inference, from numpy arrays to numpy arrays.
        second_ns: the one after it.
        own_ns: the profiler's own work in between, such as making inputs. It is in no other figure.
        cached_share: of the file in the page cache right before, 0 to 1; None where the system does not tell.
    """

    process_ns: int | None = None
    import_ns: int | None = None
    open_ns: int | None = None
    first_ns: int | None = None
    second_ns: int | None = None
    own_ns: int | None = None
    cached_share: float | None = None

    @property
    def total_ns(self) -> int | None:
        """From the start of the process to the first result, without the profiler's own work."""
        parts = (self.process_ns, self.import_ns, self.open_ns, self.first_ns)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


@dataclass(frozen=True)
class ColdStart:
    """Fresh processes that opened and ran one file, and how they were started.

    Attributes:
        starts: in order, the failed one included.
        page_cache: whether the file was in it. Python's and the runtime's own files are, after the first start.
        inputs: "random" or "given".
        failed: why the last start ended early, or None.
    """

    name: str
    runtime: str
    file: str
    sha256: str
    plan: Plan
    environment: dict[str, Any]
    starts: tuple[Start, ...]
    page_cache: str
    inputs: str
    stop_reason: Literal["repeats", "budget", "failed"]
    failed: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def total_ns(self) -> Estimate | None:
        """The median from process start to first result in nanoseconds; None where no start got there."""
        return _median(start.total_ns for start in self.starts)

    def stage_ns(self, stage: str) -> Estimate | None:
        """Return the median of one of `STAGES` in nanoseconds; None where no start got there."""
        return _median(getattr(start, f"{stage}_ns") for start in self.starts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the schema version and the medians."""
        medians = {"total": self.total_ns} | {stage: self.stage_ns(stage) for stage in STAGES}
        plain = {f"{name}_ns": None if found is None else asdict(found) for name, found in medians.items()}
        starts = [asdict(start) | {"total_ns": start.total_ns} for start in self.starts]
        return {"schema": SCHEMA, **asdict(self), "starts": starts, "medians": plain}


def cold_start(  # noqa: PLR0913 (what is started, how, and how often: each is a choice of the caller's)
    target: Target,
    runtime: str = "ort-cpu",
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    repeats: int = 10,
    budget_s: float = 60.0,
    timeout_s: float = 120.0,
    report: Report | None = None,
    *,
    drop_cache: bool = False,
) -> ColdStart:
    """Start a fresh process again and again that opens a file and runs it twice, and time each stage.

    A process that dies or takes too long is a result: see `ColdStart.failed`. Not run on a GPU yet.

    Args:
        target: a path to an ONNX file.
        runtime: one of `RUNTIMES`.
        plan: batch, threads, affinity and seed; `Plan()` if None.
        inputs: arrays by name; random if None.
        repeats: processes at the most.
        budget_s: seconds after which no further process is started. One always is.
        timeout_s: seconds for one process.
        report: called after each process with the share done and a text.
        drop_cache: evict the file from the page cache before each start, on Linux alone; else it is read before.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: settings out of range, or a file, runtime or inputs that a child process cannot open.
    """
    plan = plan or Plan()
    path = _check(target, runtime, inputs)
    _check_settings(repeats, budget_s, timeout_s, drop_cache)
    with (
        bound(plan),
        open_watch("cpu", plan.threads, plan.affinity) as watch,
        tempfile.TemporaryDirectory(prefix="cold-start-") as name,
    ):
        where, folder = environment(), Path(name)
        request = {"target": str(path.absolute()), "runtime": runtime, "plan": asdict(plan)}
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        if inputs is not None:
            np.savez(folder / INPUTS, **dict(inputs))
        seen = _starts(partial(_start, files_of(path), folder, timeout_s, drop_cache), repeats, budget_s, report)
        watch.disturbance()
    failed = seen[-1][1]
    found = ColdStart(
        name=path.name,
        runtime=runtime,
        file=str(path),
        sha256=sha256_of(path),
        plan=plan,
        environment=where,
        starts=tuple(start for start, _ in seen),
        page_cache=EVICTED if drop_cache else WARM,
        inputs="random" if inputs is None else "given",
        stop_reason="failed" if failed else "repeats" if len(seen) == repeats else "budget",
        failed=failed,
    )
    return replace(found, notes=_notes(found, repeats, budget_s, summary(watch.spans).get("foreign_cores")))


def first_is_slow(totals_ns: Sequence[int]) -> bool:
    """Tell whether the first of at least three starts took half as long again as the median of the others."""
    return len(totals_ns) >= 3 and totals_ns[0] > 1.5 * median(totals_ns[1:])


def lines(found: ColdStart) -> list[str]:
    """Say how long a cold start takes and what of it goes where."""
    known = ((words, found.stage_ns(stage)) for stage, words in STAGES.items())
    told = ", ".join(f"{words} {one.value / 1e6:.4g} ms" for words, one in known if one is not None)
    total = "no result" if found.total_ns is None else f"{in_ms(found.total_ns)} to the first result"
    return [
        f"{found.name} on {found.runtime}, cold start: {total}, {len(found.starts)} start(s), {found.page_cache}",
        *([told] if told else []),
        *([f"failed: {found.failed}"] if found.failed else []),
        *(f"note: {note}" for note in found.notes),
    ]


def files_of(path: Path) -> tuple[Path, ...]:
    """Return a file and those beside it that keep its weights."""
    weights = read_weights(path)
    beside = (path.parent / name for name in (weights.beside if weights else ()))
    return path, *(other for other in beside if other.is_file())


def evict(path: Path) -> None:
    """Ask Linux to drop a file from its page cache. It keeps what another process has mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not yet on the disk is not dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(paths: Iterable[Path]) -> float | None:
    """Return the share of files that is in the page cache; None where Linux is not the system or does not tell."""
    flags = [_cached(path) for path in paths if path.stat().st_size] if sys.platform == "linux" else []
    count = sum(map(len, flags))
    return sum(map(sum, flags)) / count if count and all(flags) else None


def _cached(path: Path) -> list[int]:
    """Return 1 for each page that is in the page cache and 0 for the others, by mincore(2); empty where it fails."""
    flags = (ctypes.c_ubyte * -(-path.stat().st_size // mmap.PAGESIZE))()
    # A private copy is writable, which ctypes wants, and its untouched pages are those of the page cache.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        view = ctypes.c_char.from_buffer(pages)
        code = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(len(pages)), flags)
        del view  # else the mapping cannot be closed
    return [] if code else [flag & 1 for flag in flags]


def _starts(start: Callable[[], _Started], repeats: int, budget_s: float, report: Report | None) -> list[_Started]:
    found: list[_Started] = []
    end = time.monotonic() + budget_s
    while not found or (found[-1][1] is None and len(found) < repeats and time.monotonic() < end):
        found.append(start())
        if report is not None:
            report(len(found) / repeats, f"start {len(found)} of {repeats}")
    return found


def _start(files: Sequence[Path], folder: Path, timeout_s: float, drop_cache: bool) -> _Started:
    """Start one process; return what it reached, and why it ended early or None."""
    for file in files:
        (evict if drop_cache else sha256_of)(file)
    share = cached_share(files)
    (folder / REPLY).unlink(missing_ok=True)
    command = [sys.executable, *MODULE_FLAGS, f"{__package__}.cold_child", str(folder)]
    # On Linux this clock is CLOCK_MONOTONIC, which all processes share; on Windows and macOS it counts for all too.
    began = time.perf_counter_ns()
    ended = run_to_end(command, folder, timeout_s)
    return start_of(ended.reply, began, share), ended.failed


def start_of(told: Mapping[str, Any], began_ns: int, share: float | None) -> Start:
    """Make a start of what a child told, by the parent's reading of the clock right before.

    Raises:
        ProfileError: the child was ready before it began: the system has no clock that processes share.
    """
    process_ns = None if "ready_at_ns" not in told else told["ready_at_ns"] - began_ns
    if process_ns is not None and process_ns < 0:
        raise ProfileError("cold_start: the child's clock is behind the parent's; processes share no clock here")
    names = ("import_ns", "open_ns", "first_ns", "second_ns", "own_ns")
    return Start(process_ns, **{name: told.get(name) for name in names}, cached_share=share)


def _check(target: Target, runtime: str, inputs: Inputs | None) -> Path:
    opener(runtime)
    if runtime not in RUNTIMES:
        raise BadPlan(f"cold start in runtime {runtime!r} cannot be measured, wanted one of {', '.join(RUNTIMES)}")
    path = target_file(target, runtime, "an ONNX file")
    if inputs is not None and not isinstance(inputs, Mapping):
        raise BadPlan(f"{path}: got inputs as a {type(inputs).__name__}, wanted a dict of numpy arrays by input name")
    return path


def _check_settings(repeats: int, budget_s: float, timeout_s: float, drop_cache: bool) -> None:
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise BadPlan(f"cold_start: got repeats {repeats!r}, wanted a whole number of at least 1")
    if not (budget_s >= 0 and timeout_s > 0):
        raise BadPlan(f"cold_start: got budget_s {budget_s!r} and timeout_s {timeout_s!r}, wanted seconds above 0")
    if drop_cache and sys.platform != "linux":
        raise BadPlan(f"cold_start: got drop_cache on {sys.platform}; files can be evicted on Linux alone")


def _notes(found: ColdStart, repeats: int, budget_s: float, foreign: float | None) -> tuple[str, ...]:
    totals = [start.total_ns for start in found.starts if start.total_ns is not None]
    left, count = max(start.cached_share or 0.0 for start in found.starts), len(found.starts)
    slow = "the first start took far longer than the others: libraries may not have been in the page cache then"
    notes = {
        f"the budget of {budget_s:g} s ended it after {count} of {repeats} starts": found.stop_reason == "budget",
        **busy_note(foreign, found.environment),
        slow: first_is_slow(totals),
        f"up to {left:.0%} of the file was in the page cache all the same": found.page_cache == EVICTED and left > 0,
        "Python and the runtime's libraries were in the page cache, as after any earlier start": True,
    }
    return tuple(text for text, holds in notes.items() if holds)


def _median(values: Iterable[int | None]) -> Estimate | None:
    return percentile([value for value in values if value is not None], 50, independent=True)
