"""Latency after pauses: on a clock that only moves when something runs or sleeps, and on a real file."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shipworthy.profile.errors import BadPlan, ProfileError
from shipworthy.profile.gaps import GapLatency, draw_gaps, effect, gap_latency, lines
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner
from shipworthy.profile.stats import Estimate, in_ms

MS = 1_000_000
PLAN = Plan(warmup_s=0.0, warmup_cap_s=0.5)


class Stage:
    """A clock, a sleep that costs no time, and a call that takes 3 ms right after a sleep and else 1 ms."""

    def __init__(self) -> None:
        self.now, self.cold, self.runs, self.breaks_at = 0, False, 0, 0

    def clock(self) -> int:
        """Return nanoseconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pass the time."""
        self.now += round(seconds * 1e9)
        self.cold = True

    def run(self) -> None:
        """Do one inference."""
        self.now += 3 * MS if self.cold else 1 * MS
        self.cold, self.runs = False, self.runs + 1
        if self.runs == self.breaks_at:
            raise RuntimeError("device lost")

    def measure(self, samples: int = 40, budget_s: float = 1e9) -> GapLatency:
        """Measure this call's latency after pauses."""
        with open_runner(self.run, "callable", PLAN) as runner:
            return gap_latency(runner, (0.1, 1.0), samples, budget_s, seed=3, clock=self.clock, sleep=self.sleep)


def test_pauses_and_warm_runs_are_told_apart_exactly() -> None:
    """Each pair has the pause drawn and the cold latency; its warm run has the warm one; the ratio is 3."""
    found = Stage().measure()
    drawn = draw_gaps((0.1, 1.0), 40, 3)
    assert [gap for gap, _ in found.pairs_ns] == [round(gap * 1e9) for gap in drawn]
    assert set(found.latencies_ns) == {3 * MS}
    assert set(found.warm_ns) == {1 * MS}
    assert found.ratio == Estimate(3.0, 3.0, 3.0)
    assert (found.p50_ns.value, found.warm_p50_ns.value, found.p90_ns) == (3 * MS, MS, None)
    assert (found.stop_reason, found.notes) == ("samples", ())


def test_a_warm_run_ends_a_burst_of_50_ms() -> None:
    """Between a pause and its warm sample the model runs for 50 ms, so that clocks and caches have come back."""
    few, many = Stage(), Stage()
    few.measure(samples=10)
    many.measure(samples=11)
    assert many.runs - few.runs == 1 + 50 + 1


def test_a_disturbed_machine_is_noted(quick: Plan) -> None:
    """What a watch saw before does not count; what it saw meanwhile is a note."""
    seen = iter(("before", "other processes took the cores"))

    class Watch:
        def begin(self) -> None:
            """Nothing is to be begun."""

        def disturbance(self) -> str | None:
            return next(seen)

        def rest(self) -> None:
            raise AssertionError

    with open_runner(lambda: None, "callable", quick) as runner:
        found = gap_latency(runner, (0.001, 0.001), 1, watch=Watch())
    assert found.notes[-1] == "while it measured, other processes took the cores"


def test_p90_appears_with_64_pauses() -> None:
    """The 90th percentile needs as many samples as elsewhere."""
    found = Stage().measure(samples=64)
    assert found.p90_ns == Estimate(3.0 * MS, 3.0 * MS, 3.0 * MS)
    assert "p90 3 ms" in lines(found)[0]


def test_the_budget_ends_it_and_says_so() -> None:
    """No further pause begins after the budget; one is always taken."""
    found = Stage().measure(budget_s=3.0)
    assert 3 <= len(found.pairs_ns) < 40
    assert found.stop_reason == "budget"
    assert found.notes == (f"the budget of 3 s ended sampling after {len(found.pairs_ns)} of 40 pauses",)
    assert len(Stage().measure(budget_s=0.0).pairs_ns) == 1


def test_a_clock_that_stands_still_does_not_hang_it() -> None:
    """The burst is bounded by runs as well as by time."""
    with open_runner(lambda: None, "callable", Plan(max_rounds=200)) as runner:
        found = gap_latency(runner, samples=2, clock=lambda: 0, sleep=lambda seconds: None)
    assert found.pairs_ns == ((0, 0), (0, 0))


def test_pauses_are_spread_evenly_over_orders_of_magnitude() -> None:
    """A tenth of a second to ten: half of the pauses are shorter than one second, none is out of range."""
    drawn = draw_gaps((0.1, 10.0), 4000, seed=1)
    assert 0.1 <= min(drawn) < max(drawn) <= 10.0
    assert np.mean([gap < 1.0 for gap in drawn]) == pytest.approx(0.5, abs=0.03)
    assert drawn == draw_gaps((0.1, 10.0), 4000, seed=1) != draw_gaps((0.1, 10.0), 4000, seed=2)
    assert draw_gaps((0.5, 0.5), 3, seed=0) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("gaps_s", [(0.0, 1.0), (2.0, 1.0), (0.1, float("inf")), (float("nan"), 1.0)])
def test_gaps_out_of_range_are_refused(gaps_s: tuple[float, float]) -> None:
    """Pauses are positive, finite, and the shorter comes first."""
    with pytest.raises(BadPlan, match=r"gap_latency: got gaps of .* wanted two numbers above 0, the shorter first"):
        draw_gaps(gaps_s, 5, 0)


def test_samples_and_budget_out_of_range_are_refused() -> None:
    """At least one pause, and a budget that is a number."""
    with pytest.raises(BadPlan, match="got 0 samples, wanted at least 1"):
        Stage().measure(samples=0)
    with pytest.raises(BadPlan, match=r"got a budget of nan s, wanted at least 0"):
        Stage().measure(budget_s=float("nan"))


def test_an_inference_that_fails_names_the_runner() -> None:
    """A fault between pauses is a ProfileError chained to its cause."""
    stage = Stage()
    stage.breaks_at = 600
    with pytest.raises(ProfileError, match=r"run: an inference failed between pauses: device lost") as caught:
        stage.measure()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_effect_in_words() -> None:
    """An interval beyond 1 shows an effect, one that contains 1 shows none, and none at all says too few."""
    assert effect(Estimate(2.0, 1.8, 2.3)) == (
        "after a pause an inference takes 2 times as long as a warm one (1.8 to 2.3)"
    )
    assert effect(Estimate(1.1, 0.9, 1.3)).startswith("no effect of a pause is shown")
    assert effect(Estimate(2.0)).endswith("2 times as long as a warm one; too few for an interval")
    assert in_ms(Estimate(2.5e6, 2e6, 3e6)) == "2.5 ms (2 to 3)"
    assert in_ms(Estimate(2.5e6)) == "2.5 ms (too few for an interval)"


def test_a_file_is_measured_after_real_pauses(model: Path, quick: Plan) -> None:
    """With the real clock and sleep every pause is at least what was drawn, and the result is plain JSON."""
    shares: list[float] = []
    with open_runner(model, "ort-cpu", quick) as runner:
        found = gap_latency(runner, (0.001, 0.01), samples=8, report=lambda share, text: shares.append(share))
    assert all(gap >= 1_000_000 for gap, _ in found.pairs_ns)
    assert all(latency > 0 for latency in (*found.latencies_ns, *found.warm_ns))
    assert (found.file, found.runtime, found.inputs) == (str(model), "ort-cpu", "random")
    assert shares[-1] == 1.0
    assert all(before < after for before, after in pairwise(shares))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["schema"], len(data["pairs_ns"]), data["p90_ns"]) == (1, 8, None)
    assert data["ratio"]["value"] == found.ratio.value
    text = lines(found)
    assert re.search(
        r"chain1\.onnx on ort-cpu after pauses of 0\.001 to 0\.01 s: p50 .* ms .*; warm p50 .* ms", text[0]
    )
    assert text[1].endswith("by 8 pairs")
