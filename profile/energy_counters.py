"""Counters of the energy that a device takes, and how to open the one of a device."""

from __future__ import annotations

from typing import Protocol, final

from .errors import ProfileError, RuntimeAbsent
from .nvml import Gpu
from .rapl import Rapl


class Counter(Protocol):
    """Counts the energy that a device has taken.

    Attributes:
        name: of the counter.
        includes: what it counts beside the inference, and what it leaves out.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - described above
    @property
    def includes(self) -> str: ...  # noqa: D102 - described above

    def read_joules(self) -> float:
        """Return joules since some moment in the past; never less than the last time."""

    def close(self) -> None:
        """Let go of the counter."""


def open_counter(device: str) -> Counter:
    """Open the energy counter of a device.

    Args:
        device: "cpu" or "cuda".

    Raises:
        RuntimeAbsent: there is none that can be read; the message says why.
    """
    return GpuCounter() if device == "cuda" else Rapl()


@final
class GpuCounter:
    """The energy counter of the first GPU. Not run on a GPU yet.

    Raises:
        RuntimeAbsent: there is no GPU, or it has no such counter.
    """

    name = "NVML total energy"
    includes = "the whole GPU board, its memory and other processes on it too; not the processor"

    def __init__(self) -> None:
        self._gpu = Gpu()
        if self._gpu.energy_j() is None:
            self._gpu.close()
            raise RuntimeAbsent(f"energy: {self._gpu.name} counts no energy; NVIDIA's whole GPUs do from Volta on")

    def read_joules(self) -> float:
        """Return joules since the driver was loaded.

        Raises:
            ProfileError: NVML no longer tells.
        """
        joules = self._gpu.energy_j()
        if joules is None:
            raise ProfileError(f"energy: {self._gpu.name} no longer tells its energy; was the driver reset?")
        return joules

    def close(self) -> None:
        """Let go of NVML."""
        self._gpu.close()
