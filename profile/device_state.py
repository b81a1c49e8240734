"""The state of the machine between windows of samples: clocks, temperature, stolen time, other processes.

Looks are taken between windows, never inside a sample, and samples are never looked at. All here is pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .nvml import IDLE, USER_CLOCKS

STOLEN = "the hypervisor gave processor time to others"
FOREIGN = "other processes took the cores"
SLOW = "the GPU ran below 75 % of its rated clock"

TICK_S = 0.01
"""The step in which Linux counts processor time for other programs to read, whatever its own timer is."""

_MOST_STOLEN = 0.05
_TOLERATED_CORES = 0.1
_LEAST_CLOCK = 0.75
_LEAST_TICKS = 10


@dataclass(frozen=True)
class State:
    """One look at the device. What the system does not tell is None, on other systems than Linux nearly everything.

    Attributes:
        at_s: when, by a clock that never goes back.
        own_s: processor seconds of this process so far.
        cores: how many are looked at: those that the process may run on.
        busy_s: processor seconds of all processes on these cores so far.
        stolen_s: seconds for which the hypervisor withheld one of them from a process that wanted it.
        cpu_mhz: the present clock of the fastest of them; as the hypervisor says it in a virtual machine.
        governor: of the first of them.
        sm_mhz: the present clock of the GPU's multiprocessors.
        rated_sm_mhz: their highest clock.
        gpu_temperature_c: of the chip.
        gpu_power_w: of the board.
        throttle: what holds the GPU's clocks down, in words.
    """

    at_s: float
    own_s: float
    cores: int | None = None
    busy_s: float | None = None
    stolen_s: float | None = None
    cpu_mhz: float | None = None
    governor: str | None = None
    sm_mhz: float | None = None
    rated_sm_mhz: float | None = None
    gpu_temperature_c: float | None = None
    gpu_power_w: float | None = None
    throttle: tuple[str, ...] = ()


Span = tuple[State, State]
"""The looks before and after one window."""


def stolen_share(before: State, after: State) -> float | None:
    """Return the share of the processor time asked for that the hypervisor withheld; None where that is not told."""
    if None in (before.busy_s, before.stolen_s, after.busy_s, after.stolen_s):
        return None
    busy, stolen = (after.busy_s or 0) - (before.busy_s or 0), (after.stolen_s or 0) - (before.stolen_s or 0)
    return stolen / (busy + stolen) if busy + stolen > 0 else 0.0


def foreign_cores(before: State, after: State) -> float | None:
    """Return how many cores other processes kept busy in the mean; None where that is not told."""
    seconds = after.at_s - before.at_s
    if before.busy_s is None or after.busy_s is None or seconds <= 0:
        return None
    own = after.own_s - before.own_s
    return max(0.0, after.busy_s - before.busy_s - own) / seconds


def clock_share(state: State) -> float | None:
    """Return the GPU's clock as a share of its rated one; None where it says nothing.

    That is where the GPU had nothing to do at that moment, or where a user's setting alone holds its clocks down.
    """
    if not state.sm_mhz or not state.rated_sm_mhz or IDLE in state.throttle or state.throttle == (USER_CLOCKS,):
        return None
    return state.sm_mhz / state.rated_sm_mhz


def disturbed(before: State, after: State, threads: int) -> str | None:
    """Say why a window should be set aside and taken again, or None.

    Args:
        before: the look right before the window.
        after: the look right after it.
        threads: that the measured call uses; others may take the cores beyond them.
    """
    # Shorter windows hold too few ticks of the kernel to tell anything about the processor.
    if after.at_s - before.at_s >= _LEAST_TICKS * TICK_S:
        if (stolen_share(before, after) or 0.0) > _MOST_STOLEN:
            return STOLEN
        if _crowded(before, after, threads):
            return FOREIGN
    return SLOW if wants_rest(after) else None


def wants_rest(state: State) -> bool:
    """Tell whether the GPU's clock is so low that it should cool down first."""
    share = clock_share(state)
    return share is not None and share < _LEAST_CLOCK


def _crowded(before: State, after: State, threads: int) -> bool:
    foreign = foreign_cores(before, after)
    if foreign is None or not after.cores:
        return False
    tolerated = _TOLERATED_CORES + 2 * TICK_S / (after.at_s - before.at_s)
    return after.cores - foreign < min(threads, after.cores) - tolerated


def summary(spans: Sequence[Span]) -> dict[str, Any]:
    """Sum up all windows as plain data; what was never told is left out.

    Returns:
        `looks`; `stolen_share` and `foreign_cores` of all windows together, `foreign_cores_max` of one window;
        `cpu_mhz_min`, `cpu_mhz` (median), `governor`; `sm_mhz_min`, `sm_mhz` (median), `rated_sm_mhz`,
        `gpu_temperature_c_max`, `gpu_power_w` (median) and `throttle`, the reasons seen.
    """
    states = [after for _, after in spans]
    if not states:
        return {"looks": 0}
    last = states[-1]
    found = {
        "looks": len(states),
        "governor": last.governor,
        "rated_sm_mhz": last.rated_sm_mhz,
        "throttle": sorted({words for state in states for words in state.throttle}) or None,
        **_load(spans),
        **_middle("cpu_mhz", [state.cpu_mhz for state in states]),
        **_middle("sm_mhz", [state.sm_mhz for state in states]),
        "gpu_temperature_c_max": max(_known(state.gpu_temperature_c for state in states), default=None),
        "gpu_power_w": _median(_known(state.gpu_power_w for state in states)),
    }
    return {name: value for name, value in found.items() if value is not None}


def _load(spans: Sequence[Span]) -> dict[str, float | None]:
    told = [span for span in spans if foreign_cores(*span) is not None]
    whole = _joined(told) if told else (State(0.0, 0.0), State(0.0, 0.0))
    return {
        "stolen_share": stolen_share(*whole),
        "foreign_cores": foreign_cores(*whole),
        "foreign_cores_max": max(_known(foreign_cores(*span) for span in told), default=None),
    }


def _joined(spans: Sequence[Span]) -> Span:
    """Put windows together as if nothing had been between them."""
    names = ("at_s", "own_s", "busy_s", "stolen_s")
    gains = {name: sum(getattr(after, name) - getattr(before, name) for before, after in spans) for name in names}
    return State(0.0, 0.0, busy_s=0.0, stolen_s=0.0), State(**gains)


def _middle(name: str, values: Iterable[float | None]) -> dict[str, float | None]:
    known = _known(values)
    return {f"{name}_min": min(known, default=None), name: _median(known)}


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
