"""Binding to cores, on the real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from shipworthy.profile.affinity import bound, usable_cores
from shipworthy.profile.errors import BadPlan
from shipworthy.profile.plan import Plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="binding to cores is Linux's")

ONE = Plan(affinity=(min(usable_cores(), default=0),))
CORES = set(ONE.affinity)


@pytest.fixture
def start() -> Iterator[Callable[[], threading.Thread]]:
    """Start threads that wait until the test is over, such as those of a runtime's pool."""
    done = threading.Event()
    threads: list[threading.Thread] = []

    def started() -> threading.Thread:
        threads.append(threading.Thread(target=done.wait))
        threads[-1].start()
        return threads[-1]

    yield started
    done.set()
    for thread in threads:
        thread.join()


def cores(thread: threading.Thread | None = None) -> set[int]:
    """Return the cores of a thread, by default of this one."""
    return os.sched_getaffinity(0 if thread is None else thread.native_id or 0)


def test_every_thread_is_bound_and_gets_its_cores_back(start: Callable[[], threading.Thread]) -> None:
    """Threads that were there, threads that start and child processes are bound; afterwards nothing is."""
    before, code = usable_cores(), "import os; print(sorted(os.sched_getaffinity(0)))"
    waiting = start()
    with bound(ONE):
        started = start()
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (cores(), cores(waiting), cores(started)) == (CORES, CORES, CORES)
        assert child.stdout.strip() == str(sorted(CORES))
    assert (cores(), cores(waiting), cores(started)) == (before, before, before)


def test_a_fault_leaves_nothing_bound() -> None:
    """An exception inside does not leave the process on fewer cores."""
    before = usable_cores()
    with pytest.raises(KeyError), bound(ONE):
        raise KeyError
    assert cores() == before


def test_without_an_affinity_nothing_changes() -> None:
    """The default plan leaves the cores as they are, a list of all cores too."""
    before = usable_cores()
    with bound(Plan()):
        assert cores() == before
    with bound(Plan(affinity=tuple(before))):
        assert cores() == before


def test_cores_that_cannot_be_used_are_refused() -> None:
    """The message names the cores that are not there and those that are."""
    words = f"plan.affinity: cores [4095] cannot be used here, wanted some of {sorted(usable_cores())}"
    with pytest.raises(BadPlan, match=re.escape(words)), bound(Plan(affinity=(*ONE.affinity, 4095))):
        pass
    with bound(ONE), pytest.raises(BadPlan, match=re.escape(f"wanted some of {sorted(CORES)}")):  # noqa: SIM117 - the inner one is the test
        with bound(Plan(affinity=(4095,))):
            pass


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes cannot be bound, a plan that asks for it is refused rather than ignored."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BadPlan, match="got \\[0\\] on darwin; binding to cores works on Linux alone"), bound(Plan(affinity=(0,))):  # fmt: skip # noqa: E501
        pass
