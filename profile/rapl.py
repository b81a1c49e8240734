"""The energy counters of processors (RAPL), as Linux shows them under `/sys/class/powercap`; AMD's are there too."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from .errors import ProfileError, RuntimeAbsent

POWERCAP = Path("/sys/class/powercap")


@dataclass
class _Zone:
    """One counter of microjoules that starts anew beyond `range_uj`."""

    path: Path
    name: str
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def read(self) -> int:
        """Return the microjoules since the zone was opened; it must be read at least once per turn of the counter."""
        now = int((self.path / "energy_uj").read_text(encoding="ascii"))
        # The largest value is itself reached, so that a turn has one step more.
        self.total_uj += now - self.last_uj + (self.range_uj + 1 if now < self.last_uj else 0)
        self.last_uj = now
        return self.total_uj


@final
class Rapl:
    """The processor packages of this machine, and the memory beside them where it is counted.

    Args:
        root: the kernel's folder.

    Raises:
        RuntimeAbsent: nothing can be read here; the message says why.
    """

    name = "RAPL"

    def __init__(self, root: Path = POWERCAP) -> None:
        if sys.platform != "linux":
            raise RuntimeAbsent(f"energy: processors' counters (RAPL) are read on Linux alone, not on {sys.platform}")
        if not root.is_dir():
            why = "virtual machines hide it; elsewhere the kernel lacks its driver: modprobe intel_rapl_msr"
            raise RuntimeAbsent(f"energy: no RAPL here, {root} does not exist ({why})")
        folders = _counted(root)
        if not folders:
            raise RuntimeAbsent(f"energy: no RAPL here, {root} lists no processor package; modprobe intel_rapl_msr")
        self._zones = [_open(folder, name) for folder, name in folders]
        self.includes = (
            f"{', '.join(sorted(zone.name for zone in self._zones))}: everything that ran there, other processes too; "
            "not the disks, fans, power supply or GPU"
        )

    def read_joules(self) -> float:
        """Return the joules since this was opened.

        Raises:
            ProfileError: a counter can no longer be read.
        """
        try:
            return sum(zone.read() for zone in self._zones) / 1e6
        except (OSError, ValueError) as fault:
            raise ProfileError(f"energy: RAPL can no longer be read: {fault}") from fault

    def close(self) -> None:
        """Hold nothing open."""


def _counted(root: Path) -> list[tuple[Path, str]]:
    """List the packages and the memory beside them, each once.

    Cores and graphics are inside their package, `psys` contains all packages, and laptops show a package a second
    time through memory-mapped registers.
    """
    found: dict[str, Path] = {}
    for folder in sorted(root.iterdir(), key=lambda one: ("mmio" in one.name, one.name)):
        name = _text(folder / "name")
        package = _text(folder.parent / folder.name.rpartition(":")[0] / "name")
        label = f"{name} of {package}" if name == "dram" and package else name
        if name.startswith("package-") or name == "dram":
            found.setdefault(label, folder)
    return [(folder, label) for label, folder in found.items()]


def _open(folder: Path, label: str) -> _Zone:
    try:
        numbers: Iterable[str] = (_read(folder / name) for name in ("max_energy_range_uj", "energy_uj"))
        return _Zone(folder, label, *map(int, numbers))
    except PermissionError as fault:
        path = fault.filename
        raise RuntimeAbsent(
            f"energy: RAPL is not readable without root: {path}; run as root, or let root do: chmod a+r {path}"
        ) from fault
    except (OSError, ValueError) as fault:
        raise RuntimeAbsent(f"energy: RAPL is there and does not work: {folder}: {fault}") from fault


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _text(path: Path) -> str:
    try:
        return _read(path)
    except OSError:
        return ""
