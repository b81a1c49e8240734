"""Look at the machine between windows of samples: the watch that a sampling loop asks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from .affinity import usable_cores
from .device_state import SLOW, TICK_S, Span, State, disturbed
from .errors import RuntimeAbsent
from .nvml import Gpu

if TYPE_CHECKING:
    from typing import Self

PROC, CPUS = Path("/proc"), Path("/sys/devices/system/cpu")

_REST_S, _COOL_S = 0.25, 2.0
_MOST_CLOCKS = 8


def open_watch(device: str, threads: int, affinity: Collection[int] = ()) -> DeviceWatch:
    """Open a watch on a device. Use it as a context manager.

    Args:
        device: "cpu", or "cuda" to look at the first GPU too.
        threads: that the measured call uses.
        affinity: the cores that it is bound to; those that this process may run on if empty.
    """
    return DeviceWatch(device, threads, affinity)


@final
class DeviceWatch:
    """Takes a look when asked, and says what disturbed the machine between two looks.

    A look takes 0.15 ms of a processor's time on two cores; on other systems than Linux it sees no disturbance.

    Attributes:
        spans: the looks before and after each window, in order.
        absent: why the GPU cannot be looked at, or None.
    """

    def __init__(
        self,
        device: str,
        threads: int,
        affinity: Collection[int] = (),
        *,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self.spans: list[Span] = []
        self.absent: str | None = None
        self._threads, self._sleep = threads, sleep
        self._owned = ExitStack()
        self._cores = Cores(affinity or usable_cores())
        self._gpu = self._open_gpu() if device == "cuda" else None
        self._before = self.look()
        self._reason: str | None = None

    def look(self) -> State:
        """Return the state of the device now."""
        return State(at_s=time.perf_counter(), own_s=own_seconds(), **self._cores.look(), **self._look_at_gpu())

    def begin(self) -> None:
        """Let the next window begin now."""
        self._before = self.look()

    def disturbance(self) -> str | None:
        """Say what disturbed the window that began with the last call, at opening or with `begin`, or None."""
        after = self.look()
        self.spans.append((self._before, after))
        self._reason = disturbed(self._before, after, self._threads)
        self._before = after
        return self._reason

    def rest(self) -> None:
        """Wait a moment after a disturbed window, longer where a GPU must cool down; the next one begins then."""
        self._sleep(_COOL_S if self._reason == SLOW else _REST_S)
        self.begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self._owned.close()

    def _open_gpu(self) -> Gpu | None:
        try:
            return self._owned.enter_context(Gpu())
        except RuntimeAbsent as fault:
            self.absent = str(fault)
            return None

    def _look_at_gpu(self) -> dict[str, Any]:
        gpu = self._gpu
        if gpu is None:
            return {}
        return {
            "sm_mhz": gpu.sm_mhz(),
            "rated_sm_mhz": gpu.rated_sm_mhz,
            "gpu_temperature_c": gpu.temperature_c(),
            "gpu_power_w": gpu.power_w(),
            "throttle": gpu.throttle(),
        }


def own_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


@final
class Cores:
    """Some of the machine's cores, as Linux tells of them.

    Args:
        cores: their numbers.
        proc: where the kernel's `/proc` is.
        cpus: where its folder of processors is.
    """

    def __init__(self, cores: Collection[int], proc: Path = PROC, cpus: Path = CPUS) -> None:
        self._cores = frozenset(cores)
        self._proc = proc
        clocks = [cpus / f"cpu{core}" / "cpufreq" for core in sorted(cores)]
        self._clocks = [folder / "scaling_cur_freq" for folder in clocks[:_MOST_CLOCKS] if folder.is_dir()]
        self._governor = _text(clocks[0] / "scaling_governor").strip() or None if clocks else None

    def look(self) -> dict[str, Any]:
        """Return what `State` has about processors, by name; empty where the system does not tell."""
        ticks = busy_and_stolen(_text(self._proc / "stat"), self._cores)
        if ticks is None:
            return {}
        return {
            "cores": len(self._cores),
            "busy_s": ticks[0] * TICK_S,
            "stolen_s": ticks[1] * TICK_S,
            "cpu_mhz": self._mhz(),
            "governor": self._governor,
        }

    def _mhz(self) -> float | None:
        if self._clocks:
            khz = [_text(path).strip() for path in self._clocks]
            return max((int(one) / 1e3 for one in khz if one.isdigit()), default=None)
        return max(cpuinfo_mhz(_text(self._proc / "cpuinfo"), self._cores), default=None)


def busy_and_stolen(stat: str, cores: Collection[int]) -> tuple[int, int] | None:
    """Read the ticks for which cores were busy and stolen since boot out of the text of `/proc/stat`.

    Args:
        stat: the text.
        cores: the numbers of those to add up.

    Returns:
        None where one of them is missing.
    """
    wanted = {f"cpu{core}" for core in cores}
    rows = [words for words in (line.split() for line in stat.splitlines()) if words and words[0] in wanted]
    if not wanted or len(rows) < len(wanted) or any(len(row) < 9 for row in rows):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; the time of guests is already in user's.
    busy = sum(int(row[i]) for row in rows for i in (1, 2, 3, 6, 7))
    return busy, sum(int(row[8]) for row in rows)


def cpuinfo_mhz(cpuinfo: str, cores: Collection[int]) -> list[float]:
    """Read the clocks of cores out of the text of `/proc/cpuinfo`; Arm's has none."""
    found, core = [], -1
    for name, _, value in (line.partition(":") for line in cpuinfo.splitlines()):
        if name.strip() == "processor":
            core = int(value)
        elif name.strip() == "cpu MHz" and core in cores:
            found.append(float(value))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
