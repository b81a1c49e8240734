"""Processors' energy counters, read from folders laid out as the kernel lays them out."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shipworthy.profile.errors import ProfileError, RuntimeAbsent
from shipworthy.profile.rapl import POWERCAP, Rapl

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RAPL is read on Linux")

RANGE = 262_143_328_850
NOBODY = 65534


def zone(root: Path, folder: str, name: str, energy: int) -> Path:
    """Write one counter."""
    made = root / folder
    made.mkdir()
    (made / "name").write_text(f"{name}\n")
    (made / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (made / "energy_uj").write_text(f"{energy}\n")
    return made / "energy_uj"


@pytest.fixture
def counters(tmp_path: Path) -> dict[str, Path]:
    """Two packages, one with memory and cores beside it, one shown twice, and the whole system."""
    (tmp_path / "intel-rapl").mkdir()
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    return {folder: zone(tmp_path, folder, name, 1_000_000 * i) for i, (folder, name) in enumerate(names.items())}


def test_packages_and_memory_count_once(tmp_path: Path, counters: dict[str, Path]) -> None:
    """Joules are those since opening; cores, the whole system and a package's second view are in no sum."""
    rapl = Rapl(tmp_path)
    assert rapl.read_joules() == 0.0
    for folder, path in counters.items():
        gained = {"intel-rapl:0": 5, "intel-rapl:0:1": 2, "intel-rapl:1": 3}.get(folder, 100)
        path.write_text(str(int(path.read_text()) + gained * 1_000_000))
    assert rapl.read_joules() == 10.0
    assert rapl.includes.startswith("dram of package-0, package-0, package-1: everything that ran there")


def test_a_counter_that_starts_anew_goes_on(tmp_path: Path) -> None:
    """What was left up to the largest value is added to what came after it, turn by turn."""
    path = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    rapl = Rapl(tmp_path)
    path.write_text("1999999")
    assert rapl.read_joules() == 3.0
    path.write_text("999999")
    assert rapl.read_joules() == pytest.approx(3.0 + (RANGE + 1) / 1e6 - 1.0)


@contextmanager
def as_nobody(path: Path) -> Iterator[None]:
    """Take away the right to read a file; root gives up being root meanwhile, since it reads everything."""
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_counter_for_root_alone_says_so() -> None:
    """The message names the file and what root can do about it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = zone(Path(name), "intel-rapl:0", "package-0", 1)
        words = f"RAPL is not readable without root: {path}; run as root, or let root do: chmod a+r {path}"
        with as_nobody(path), pytest.raises(RuntimeAbsent, match=re.escape(words)):
            Rapl(Path(name))


def test_where_there_is_none_the_reason_is_given(tmp_path: Path) -> None:
    """No folder, a folder without packages, and a counter that is no number are three reasons."""
    with pytest.raises(RuntimeAbsent, match=r"does not exist \(virtual machines hide it"):
        Rapl(tmp_path / "powercap")
    with pytest.raises(RuntimeAbsent, match="lists no processor package"):
        Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 1).write_text("nothing")
    with pytest.raises(RuntimeAbsent, match="RAPL is there and does not work"):
        Rapl(tmp_path)


def test_a_counter_that_vanishes_is_a_fault(tmp_path: Path) -> None:
    """A driver that is taken out meanwhile leaves no number behind."""
    path = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    rapl = Rapl(tmp_path)
    path.unlink()
    with pytest.raises(ProfileError, match="RAPL can no longer be read"):
        rapl.read_joules()


def test_this_machine_has_a_counter_or_a_reason() -> None:
    """The real folder is read, or the reason names it."""
    if not list(POWERCAP.glob("*:0/energy_uj")):
        with pytest.raises(RuntimeAbsent, match=f"no RAPL here, {POWERCAP}"):
            Rapl()
    elif os.geteuid() == 0:
        rapl = Rapl()
        assert rapl.read_joules() <= rapl.read_joules()
