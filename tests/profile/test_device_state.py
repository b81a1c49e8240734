"""What disturbs a window, on invented looks; and a few real looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from shipworthy.profile.device_state import (
    FOREIGN,
    SLOW,
    STOLEN,
    State,
    disturbed,
    foreign_cores,
    stolen_share,
    summary,
    wants_rest,
)
from shipworthy.profile.device_watch import Cores, DeviceWatch, busy_and_stolen, cpuinfo_mhz, open_watch
from shipworthy.profile.devices import cuda_absent

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of processors")

START = State(at_s=100.0, own_s=5.0, cores=4, busy_s=900.0, stolen_s=3.0)
GPU = State(at_s=1.0, own_s=1.0, sm_mhz=1980.0, rated_sm_mhz=1980.0, gpu_temperature_c=60.0, gpu_power_w=300.0)

STAT = """\
cpu  300 30 3 1000 7 6 5 44 2 1
cpu0 100 10 1 500 3 2 1 4 0 0
cpu1 200 20 2 500 4 4 4 40 2 1
cpu10 9 9 9 9 9 9 9 9 9 9
intr 1 2 3
"""
CPUINFO = "processor\t: 0\ncpu MHz\t\t: 800.0\nflags\t: a\n\nprocessor\t: 1\ncpu MHz\t\t: 3000.5\n\nprocessor\t: 2\n"


def later(seconds: float, own: float, foreign: float, stolen: float = 0.0) -> State:
    """Return the look after a window in which processors worked so many seconds."""
    gains = {"at_s": seconds, "own_s": own, "busy_s": own + foreign, "stolen_s": stolen}
    return replace(START, **{name: getattr(START, name) + gain for name, gain in gains.items()})


def test_a_machine_that_is_left_alone_is_not_disturbed() -> None:
    """Own work on all cores, and others on those that are not needed, disturb nothing."""
    assert disturbed(START, later(0.25, 1.0, 0.0), threads=4) is None
    assert disturbed(START, later(0.25, 0.25, 0.75), threads=1) is None
    assert disturbed(START, later(0.25, 0.5, 0.5), threads=2) is None


def test_others_disturb_when_they_leave_too_few_cores() -> None:
    """Two busy neighbours on four cores leave two: enough for two threads and not for three."""
    after = later(0.25, 0.5, 0.5)
    assert foreign_cores(START, after) == 2.0
    assert disturbed(START, after, threads=2) is None
    assert disturbed(START, after, threads=3) == FOREIGN


def test_more_threads_than_cores_are_no_disturbance_by_themselves() -> None:
    """With eight threads on four cores only what others take counts."""
    assert disturbed(START, later(0.25, 1.0, 0.0), threads=8) is None
    assert disturbed(START, later(0.25, 0.75, 0.25), threads=8) == FOREIGN


def test_stolen_time_disturbs_above_a_twentieth_of_what_was_asked_for() -> None:
    """Idle cores do not water the share down: what counts is time asked for."""
    assert stolen_share(START, later(1.0, 0.95, 0.0, stolen=0.05)) == pytest.approx(0.05)
    assert disturbed(START, later(1.0, 0.96, 0.0, stolen=0.04), threads=1) is None
    assert disturbed(START, later(1.0, 0.90, 0.0, stolen=0.10), threads=1) == STOLEN
    assert stolen_share(START, later(1.0, 0.0, 0.0)) == 0.0


def test_a_window_of_few_ticks_is_not_judged() -> None:
    """In 50 ms one tick of the kernel is a fifth of a core."""
    assert disturbed(START, later(0.05, 0.01, 0.19, stolen=0.01), threads=4) is None


def test_a_gpu_below_three_quarters_of_its_clock_disturbs_and_must_rest() -> None:
    """The clock after the window decides, unless it says nothing: no work at that moment, or a user's own setting."""
    slow = replace(GPU, sm_mhz=1400.0, throttle=("power cap",))
    assert (disturbed(GPU, slow, 1), wants_rest(slow)) == (SLOW, True)
    assert disturbed(GPU, replace(GPU, sm_mhz=1500.0), 1) is None
    assert disturbed(GPU, replace(slow, throttle=("idle",)), 1) is None
    assert disturbed(GPU, replace(slow, throttle=("clocks set by the user",)), 1) is None
    assert disturbed(GPU, replace(slow, throttle=("clocks set by the user", "power cap")), 1) == SLOW


def test_where_nothing_is_told_nothing_disturbs() -> None:
    """On other systems looks hold two clocks and no more."""
    before, after = State(1.0, 1.0), State(2.0, 1.5)
    assert (disturbed(before, after, 8), stolen_share(before, after), foreign_cores(before, after)) == (None,) * 3
    assert summary([(before, after)]) == {"looks": 1}
    assert summary([]) == {"looks": 0}


def test_the_summary_is_plain_data_of_all_windows() -> None:
    """Shares are of all windows together, whatever lay between them; extremes are of single ones."""
    first, second = later(1.0, 1.0, 2.0, stolen=1.0), later(3.0, 1.0, 0.0)
    spans = [(START, first), (START, second)]
    found = summary(spans)
    assert found == {"looks": 2, "stolen_share": 0.2, "foreign_cores": 0.5, "foreign_cores_max": 2.0}
    states = [replace(GPU, sm_mhz=mhz, gpu_temperature_c=c, throttle=why) for mhz, c, why in (
        (1980.0, 60.0, ()), (1700.0, 71.0, ("power cap",)), (1800.0, 70.0, ("power cap", "idle"))
    )]  # fmt: skip
    assert summary([(GPU, state) for state in states]) == {
        "looks": 3,
        "rated_sm_mhz": 1980.0,
        "sm_mhz_min": 1700.0,
        "sm_mhz": 1800.0,
        "gpu_temperature_c_max": 71.0,
        "gpu_power_w": 300.0,
        "throttle": ["idle", "power cap"],
    }
    assert json.loads(json.dumps(found)) == found


def test_ticks_of_chosen_cores() -> None:
    """Waiting for disks is idle time, guests are in user time already, and core 1 is not core 10."""
    assert busy_and_stolen(STAT, {0}) == (114, 4)
    assert busy_and_stolen(STAT, {0, 1}) == (114 + 230, 44)
    assert busy_and_stolen(STAT, {0, 7}) is None
    assert busy_and_stolen("", {0}) is None
    assert busy_and_stolen(STAT, set()) is None


def test_clocks_in_cpuinfo() -> None:
    """Those of chosen cores are read; a processor without one has none."""
    assert cpuinfo_mhz(CPUINFO, {0, 1, 2}) == [800.0, 3000.5]
    assert cpuinfo_mhz(CPUINFO, {0}) == [800.0]


def test_clock_and_governor_of_a_real_machine(tmp_path: Path) -> None:
    """Where the kernel governs clocks, that of the fastest watched core is taken, not the text of cpuinfo."""
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    for core, khz in ((0, 1_200_000), (1, 4_100_000)):
        folder = tmp_path / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
        (folder / "scaling_governor").write_text("powersave\n")
    found = Cores({0, 1}, tmp_path, tmp_path).look()
    assert (found["cores"], found["cpu_mhz"], found["governor"]) == (2, 4100.0, "powersave")
    assert Cores({0}, tmp_path, tmp_path).look()["cpu_mhz"] == 1200.0
    assert Cores({0}, tmp_path, tmp_path / "none").look()["cpu_mhz"] == 800.0
    assert Cores({0}, tmp_path / "none", tmp_path).look() == {}


@on_linux
def test_a_real_look_is_plain_and_possible() -> None:
    """All that Linux tells is there, survives JSON, and time does not go back."""
    with open_watch("cpu", threads=1) as watch:
        first, second = watch.look(), watch.look()
    assert json.loads(json.dumps(asdict(first)))["cores"] == len(os.sched_getaffinity(0))
    assert (first.busy_s or 0) > 0
    assert (first.busy_s or 0) <= (second.busy_s or 0)
    assert (first.stolen_s or 0) <= (second.stolen_s or 0)
    assert first.at_s < second.at_s
    assert first.own_s <= second.own_s
    assert first.cpu_mhz is None or first.cpu_mhz > 0
    assert first.sm_mhz is None


@on_linux
def test_a_busy_neighbour_is_seen() -> None:
    """A process that works on the watched core shows as foreign load; this process, which sleeps, does not."""
    core = min(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nprint('on', flush=True)\nwhile True: pass"
    with (
        DeviceWatch("cpu", 1, {core}) as watch,
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as neighbour,
    ):
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
        watch.begin()
        time.sleep(0.5)
        reason = watch.disturbance()
        neighbour.kill()
    assert (foreign_cores(*watch.spans[0]) or 0) > 0.2
    assert reason in (FOREIGN, STOLEN)


def test_after_a_disturbance_the_watch_waits_and_begins_anew() -> None:
    """Time spent at rest is in no window, and a GPU that must cool gets more of it than a neighbour."""
    slept: list[float] = []
    with DeviceWatch("cpu", 1, (), sleep=slept.append) as watch:
        watch.disturbance()
        watch.rest()
        watch.disturbance()
    assert slept == [0.25]
    assert len(watch.spans) == 2
    assert watch.spans[1][0].at_s > watch.spans[0][1].at_s


@pytest.mark.skipif(cuda_absent() is None, reason="there is a GPU")
def test_without_a_gpu_the_watch_says_why_and_goes_on() -> None:
    """The processor is still looked at."""
    with open_watch("cuda", threads=1) as watch:
        assert "NVIDIA driver" in (watch.absent or "")
        assert watch.look().sm_mhz is None
        watch.disturbance()


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_a_gpu_is_looked_at() -> None:
    """Clock, rated clock and temperature are told, and the summary has them."""
    with open_watch("cuda", threads=1) as watch:
        watch.disturbance()
    assert watch.absent is None
    assert {"sm_mhz", "rated_sm_mhz", "gpu_temperature_c_max"} <= set(summary(watch.spans))
