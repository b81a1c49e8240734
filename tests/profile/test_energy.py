"""Energy per inference: the arithmetic on an invented machine, and that there is no number without a counter."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from shipworthy.profile import energy as module
from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.energy import Energy, Schedule, Window, energy_per_inference, measure_energy
from shipworthy.profile.errors import BadPlan, ProfileError
from shipworthy.profile.plan import Plan
from shipworthy.profile.rapl import POWERCAP
from shipworthy.profile.runners import on_gpu, open_runner

SHORT = Schedule(warmup_s=0.0, rest_s=0.0, idle_s=0.02, window_s=0.02, windows=2)


class Machine:
    """A clock, a device with idle power, inferences that take energy, and a counter renewed at each tick."""

    name, includes = "invented", "this device alone"

    def __init__(self, idle_w: float = 10.0, joules: float = 0.5, tick_s: float = 1e-6, drift_w: float = 0.0) -> None:
        self.now, self.runs, self.closed = 0.0, 0, False
        self._idle_w, self._joules, self._tick_s, self._drift_w = idle_w, joules, tick_s, drift_w
        self._counted, self._shown, self._shown_at = 0.0, 0.0, 0

    def clock(self) -> float:
        """Return seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass with idle power alone; after the first run it is higher by the drift."""
        self.now += seconds
        self._counted += seconds * (self._idle_w + (self._drift_w if self.runs else 0.0))
        if int(self.now / self._tick_s) > self._shown_at:
            self._shown, self._shown_at = self._counted, int(self.now / self._tick_s)

    def run(self) -> None:
        """Do one inference of 10 ms."""
        self._counted += self._joules
        self.sleep(0.01)
        self.runs += 1

    def read_joules(self) -> float:
        """Return the counter."""
        return self._shown

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


def measured(machine: Machine, schedule: Schedule | None = None) -> Energy:
    """Measure the energy of the invented inference."""
    return measure_energy(machine.run, machine, schedule or Schedule(), machine.clock, machine.sleep)


def test_idle_power_is_subtracted() -> None:
    """What remains is the inference's own energy; with the idle power in, it is what the device took."""
    found = measured(Machine())
    assert found.joules == pytest.approx(0.5)
    assert found.gross_joules == pytest.approx(0.6)
    assert found.idle_w == pytest.approx(10.0)
    assert found.drift_w == pytest.approx(0.0, abs=1e-6)
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)
    assert (found.source, found.includes, found.notes, found.absent) == ("invented", "this device alone", (), None)
    assert len(found.windows) == 24


def test_a_counter_that_is_renewed_rarely_costs_little() -> None:
    """Windows that begin and end where a counter of 100 ms moves are off by an inference at the most."""
    assert measured(Machine(tick_s=0.1)).joules == pytest.approx(0.5, rel=0.02)


def test_every_inference_is_counted() -> None:
    """The runs of all windows, of warm-up and of the first wait for the counter are all that there were."""
    machine = Machine(tick_s=0.1)
    found = measured(machine, Schedule(warmup_s=0.0))
    assert machine.runs - sum(one.inferences for one in found.windows) <= 10


def test_the_drift_of_the_idle_power_widens_the_interval() -> None:
    """2 W of drift leave the subtracted power uncertain by 1 W, in inferences of 10 ms by 10 mJ."""
    found = measured(Machine(drift_w=2.0))
    assert found.joules is not None
    assert found.low == pytest.approx(found.joules - 0.01, abs=1e-4)
    assert found.high == pytest.approx(found.joules + 0.01, abs=1e-4)
    assert found.notes == ("the idle power went from 10 to 12 W meanwhile",)


def test_few_windows_and_small_energies_are_noted() -> None:
    """Five windows have no interval; an interval that contains zero is told."""
    few = measured(Machine(), Schedule(windows=5))
    assert (few.low, few.high) == (None, None)
    assert few.notes == ("5 windows are too few for an interval, or depend on each other",)
    idle = Energy(tuple(Window(1.0, 10.0 + i % 2, 10) for i in range(12)), 10.0, 10.5)
    assert idle.notes == ("its interval reaches down to nothing: it cannot be told from the idle device",)


def test_a_counter_that_stands_still_gives_no_number() -> None:
    """Virtual machines show counters that never move."""
    found = measured(Machine(idle_w=0.0, joules=0.0))
    assert found.joules is None
    assert found.windows == ()
    assert "the counter invented did not move in" in (found.absent or "")


def test_it_is_plain_data() -> None:
    """The result survives JSON, with what is derived; without a counter every figure is null."""
    found = measured(Machine())
    told = json.loads(json.dumps(found.to_dict()))
    assert told["joules"] == found.joules
    assert told["windows"][0] == {"seconds": found.windows[0].seconds, "joules": found.windows[0].joules} | {
        "inferences": found.windows[0].inferences
    }
    absent = Energy(absent="no RAPL here").to_dict()
    derived = ("idle_w", "drift_w", "joules", "low", "high", "gross_joules")
    assert [absent[name] for name in derived] == [None] * len(derived)


def test_the_median_of_windows() -> None:
    """One disturbed window of seven does not move the result."""
    windows = [Window(1.0, 20.0, 10)] * 6 + [Window(1.0, 200.0, 10)]
    assert Energy(tuple(windows), 10.0, 10.0).joules == 1.0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("warmup_s", -1.0), ("rest_s", math.nan), ("idle_s", 0.0), ("window_s", math.inf), ("windows", 0)],
)
def test_a_schedule_out_of_range_is_refused(setting: str, value: Any) -> None:
    """Seconds are finite; what is divided by is above zero."""
    with pytest.raises(BadPlan, match=f"schedule.{setting}: got"):
        Schedule(**{setting: value})


def test_here_there_is_a_figure_or_a_reason() -> None:
    """Without a counter that can be read there is no number, and the reason names the folder."""
    with open_runner(lambda: sum(range(1000)), "callable", Plan()) as runner:
        found = energy_per_inference(runner, SHORT)
    if found.absent is None:
        assert found.gross_joules is not None
        assert found.gross_joules > 0
    else:
        assert (found.joules, found.windows) == (None, ())
        assert str(POWERCAP) in found.absent


def test_a_failing_inference_names_its_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter is closed, and the message says whose inference failed."""
    machine = Machine()
    monkeypatch.setattr(module, "open_counter", lambda device: machine)

    def broken() -> None:
        raise ValueError("shapes differ")

    with (
        open_runner(broken, "callable", Plan()) as runner,
        pytest.raises(ProfileError, match="broken: an inference failed while its energy was measured: shapes differ"),
    ):
        energy_per_inference(runner, SHORT)
    assert machine.closed


def test_the_device_is_that_of_the_runner() -> None:
    """A callable runs on the processor; a runtime or a module on a GPU has the GPU's counter."""
    with open_runner(len, "callable", Plan(), ((),)) as runner:
        assert not on_gpu(runner)
        runner.details["device"] = "cuda"
        assert on_gpu(runner)


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_a_gpu_counts_its_energy() -> None:
    """A large product on the GPU takes more than the idle GPU, and no more than a kilojoule."""
    import torch

    a = torch.ones(4096, 4096, device="cuda")

    def product() -> None:
        (a @ a).sum().item()

    with open_runner(product, "callable", Plan()) as runner:
        runner.details["device"] = "cuda"
        found = energy_per_inference(runner)
    assert found.absent is None or "counts no energy" in found.absent
    assert found.absent is not None or 0 < (found.joules or 0) < 1000
