"""Several callers at once: rates on invented windows, and real threads with real files."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shipworthy.profile.concurrency import (
    WINDOWS,
    Concurrency,
    Level,
    Window,
    concurrency,
    in_order,
    lines,
    window_rate,
)
from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, ProfileError
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner

MS = 1_000_000
PLAN = Plan(warmup_s=0.03)


def steady(callers: int, latency_ns: int, windows: int = 8, length_ns: int = 100 * MS) -> Level:
    """Make windows in which each caller takes equally long for every call."""
    calls = (latency_ns,) * -(-length_ns // latency_ns)
    return Level(callers, (Window(length_ns, (0,) * callers, (calls,) * callers),) * windows)


def invented(*levels: Level) -> Concurrency:
    """Make a result of given levels."""
    return Concurrency("m", "callable", None, None, Plan(), {}, levels, "given", (), {})


def refused(words: str) -> Any:
    """Expect BadPlan with these words."""
    return pytest.raises(BadPlan, match=re.escape(words))


def test_a_rate_counts_the_share_of_a_call_inside_its_window() -> None:
    """In 100 ms, 40 ms calls are two and a half, whenever the first began and the last ends."""
    calls = (40 * MS,) * 4
    assert window_rate(Window(100 * MS, (0,), (calls,))) == pytest.approx(25.0)
    assert window_rate(Window(100 * MS, (-10 * MS,), (calls,))) == pytest.approx(25.0)
    assert window_rate(Window(100 * MS, (-50 * MS,), (calls,))) == pytest.approx(25.0)
    assert window_rate(Window(100 * MS, (0, -100 * MS), (calls, (400 * MS,)))) == pytest.approx(27.5)
    assert window_rate(Window(100 * MS, (-20 * MS,), ((0, 60 * MS, 60 * MS),))) == pytest.approx(2 / 3 * 10 + 10)


def test_a_rate_is_unbiased_whatever_the_length_of_a_call() -> None:
    """One caller without pauses has one call per latency, even where few calls fit into a window."""
    for latency_ns in (3 * MS, 7 * MS, 33 * MS, 99 * MS, 250 * MS):
        assert steady(1, latency_ns).inferences_per_s.value == pytest.approx(1e9 / latency_ns)


def test_latencies_of_callers_are_merged_by_when_they_began() -> None:
    """Order matters to intervals: a disturbance hits all callers at the same time."""
    window = Window(10, (-1, 0), ((4, 5), (2, 3, 9)))
    assert in_order(window).tolist() == [4, 2, 3, 5, 9]


def test_scaling_is_paired_by_round() -> None:
    """Two callers at twice the rate scale by 2, even where a drift halves both; perfect pairs have no width."""
    one = Level(1, tuple(steady(1, latency * MS, 1).windows[0] for latency in (10, 12, 14, 16, 18, 20, 30)))
    two = Level(2, tuple(replace(w, offsets_ns=(0, 0), latencies_ns=w.latencies_ns * 2) for w in one.windows))
    found = invented(one, two)
    assert found.scaling(two).value == pytest.approx(2.0)
    assert found.scaling(two).relative_half_width < 1e-6
    assert found.scaling(one).value == 1.0
    slow, twice = steady(1, 4000 * MS), steady(2, 4000 * MS)
    assert invented(slow, twice).scaling(twice).value == pytest.approx(2.0)


def test_percentiles_appear_with_enough_calls() -> None:
    """p90 needs 64 calls of all callers together, p99 662."""
    few, some, many = (list(steady(2, 10 * MS, count).percentiles_ns()) for count in (1, 4, 34))
    assert (few, some, many) == ([50], [50, 90], [50, 90, 99])
    assert steady(2, 10 * MS).percentiles_ns()[50].value == 10 * MS


def test_lines_name_rate_scaling_and_latency() -> None:
    """One line per level, without a scaling for the lone caller."""
    text = lines(invented(steady(1, 10 * MS), steady(2, 10 * MS)))
    assert text[0] == "m on callable: callers at once, batch 1, 1 thread(s) each, 20 windows per level"
    assert text[1] == "1 caller(s): 100 inferences/s (100 to 100); p50 10 ms (10 to 10), p90 10 ms (10 to 10)"
    assert text[2].startswith("2 caller(s): 200 inferences/s (200 to 200), 2 times one caller; p50 10 ms")


def test_calls_that_wait_outside_the_lock_scale() -> None:
    """Sleeping calls of four callers overlap: all are inside at once, and the rate is about four times one caller's."""
    inside, most, lock = [0], [0], threading.Lock()

    def request() -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.004)
        with lock:
            inside[0] -= 1

    found = concurrency(request, "callable", (1, 4), PLAN, seconds_per_level=0.6)
    assert most[0] == 4
    assert found.scaling(found.levels[1]).value > 1.5
    assert any("Python's lock" in note for note in found.notes)


def test_files_run_at_once_with_a_runner_each(model: Path) -> None:
    """Every caller calls back to back through every window; the result is plain JSON with all latencies."""
    shares: list[float] = []
    plan = replace(PLAN, batch=4)
    found = concurrency(
        model, levels=(2, 1), plan=plan, seconds_per_level=0.2, report=lambda share, text: shares.append(share)
    )
    assert [level.callers for level in found.levels] == [1, 2]
    for level in found.levels:
        assert len(level.windows) == WINDOWS
        for window in level.windows:
            assert len(window.latencies_ns) == len(window.offsets_ns) == level.callers
            for offset, calls in zip(window.offsets_ns, window.latencies_ns, strict=True):
                assert all(call > 0 for call in calls)
                assert offset + sum(calls) >= window.length_ns
            assert max(window.offsets_ns) == 0
        assert level.inferences_per_s.value > 0
    assert (found.file, found.plan, found.inputs) == (str(model), plan, "random")
    assert shares == [pytest.approx((i + 1) / WINDOWS) for i in range(WINDOWS)]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["schema"], [level["callers"] for level in data["levels"]]) == (1, [1, 2])
    assert data["levels"][1]["percentiles_ns"][0]["q"] == 50
    assert data["levels"][1]["scaling"]["value"] == found.scaling(found.levels[1]).value


def test_each_runner_knows_how_many_streams_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level of n callers opens n runners with `plan.streams` n."""
    streams: list[int] = []

    def noted(target: Any, runtime: str, plan: Plan, inputs: Any) -> Any:
        streams.append(plan.streams)
        return open_runner(target, runtime, plan, inputs)

    monkeypatch.setattr("shipworthy.profile.concurrency.open_runner", noted)
    concurrency(lambda: None, "callable", (1, 3), PLAN, seconds_per_level=0.02)
    assert streams == [1, 3, 3, 3]


def test_torch_modules_run_at_once_with_the_plans_threads() -> None:
    """Threads of torch's own follow the plan in every caller's thread, without gradients."""
    seen: set[tuple[int, bool]] = set()

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.add((torch.get_num_threads(), torch.is_grad_enabled()))
            return x * 2

    before = torch.get_num_threads()
    plan = replace(PLAN, threads=before + 1)
    found = concurrency(Net().eval(), "torch", (1, 2), plan, (torch.ones(2),), seconds_per_level=0.05)
    assert seen == {(before + 1, False)}
    assert torch.get_num_threads() == before
    assert any("Python's lock" in note for note in found.notes)
    assert any("usable cores" in note for note in found.notes)


def test_slow_calls_are_noted() -> None:
    """Windows of a few calls are short for what they measure."""
    found = concurrency(lambda: time.sleep(0.01), "callable", (1,), PLAN, seconds_per_level=0.1)
    assert any(note.endswith("call(s) of a caller: raise the seconds per level") for note in found.notes)


@pytest.mark.parametrize("fails_at", [1, 40])
def test_a_caller_that_fails_ends_it_with_its_level(fails_at: int) -> None:
    """Whether before the common start or within a window, the others do not wait for it, and the cause is kept."""
    count, lock = [0], threading.Lock()

    def request() -> None:
        time.sleep(0.0005)
        if threading.active_count() > before + 1:
            with lock:
                count[0] += 1
                if count[0] == fails_at:
                    raise SystemExit("device lost")

    before = threading.active_count()
    message = r"concurrency, 3 caller\(s\) of .*request: an inference failed: device lost"
    with pytest.raises(ProfileError, match=message) as caught:
        concurrency(request, "callable", (1, 3), PLAN, seconds_per_level=0.5, timeout_s=5.0)
    assert threading.active_count() == before
    assert isinstance(caught.value.__cause__, SystemExit)


def test_a_caller_that_hangs_ends_it_with_its_level() -> None:
    """Whoever does not come back is left behind after the timeout; those who wait for it go home."""
    release, before = threading.Event(), threading.active_count()

    def request() -> None:
        if threading.active_count() > before + 1:
            release.wait(30)

    with pytest.raises(ProfileError, match=r"2 caller\(s\) of .* did not end within 0\.2 s after its window"):
        concurrency(request, "callable", (1, 2), PLAN, seconds_per_level=0.01, timeout_s=0.2)
    release.set()
    for _ in range(200):
        if threading.active_count() == before:
            break
        time.sleep(0.02)
    assert threading.active_count() == before


@pytest.mark.parametrize("levels", [(), (2, 4), (1, 1), (0, 1), (1, 2.5), (True, 2)])
def test_levels_out_of_range_are_refused(levels: Any) -> None:
    """Different whole numbers, and the lone caller that others are compared with."""
    with refused("wanted different whole numbers above 0, 1 among them"):
        concurrency(len, "callable", levels)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_seconds_out_of_range_are_refused(seconds: float) -> None:
    """A level takes some time."""
    with refused("seconds per level, wanted at least 0.001"):
        concurrency(len, "callable", seconds_per_level=seconds)


def test_given_inputs_are_checked(model: Path) -> None:
    """What cannot be opened is refused as elsewhere."""
    with refused("got shape (1, 3)"):
        concurrency(model, inputs={"x": np.ones((1, 3), np.float32)})


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_files_run_at_once_on_the_gpu(model: Path) -> None:
    """With a GPU several sessions take calls from several threads."""
    found = concurrency(model, "ort-cuda", (1, 2), PLAN, seconds_per_level=0.5)
    assert all(level.inferences_per_s.value > 0 for level in found.levels)
