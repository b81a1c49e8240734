"""The loop, with a clock that only moves when something runs."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from itertools import islice

import pytest

from shipworthy.profile.errors import ProfileError
from shipworthy.profile.plan import Plan
from shipworthy.profile.sampling import Turn, collector_off, orders, sample
from shipworthy.profile.stopping import ended, sampling_done

SECOND = 1_000_000_000


class Stage:
    """A clock and calls that take exactly as long as they say, and a record of who ran."""

    def __init__(self) -> None:
        self.now = 0
        self.ran: list[str] = []

    def clock(self) -> int:
        """Return nanoseconds."""
        return self.now

    def turn(self, name: str, takes_ns: int) -> Turn:
        """Make a call that takes so long."""

        def run() -> None:
            self.now += takes_ns
            self.ran.append(name)

        return Turn(name, run)


def never(series: Sequence[Sequence[int]], elapsed_s: float, plan: Plan) -> str | None:
    """Never end."""
    return None


def test_every_runner_runs_once_a_round_and_is_timed_exactly() -> None:
    """A sample is the duration of one run, one per runner and round, with none of the untimed runs in it."""
    stage = Stage()
    plan = Plan(min_rounds=1, max_rounds=7, settle_runs=2)
    seen = sample([stage.turn("a", 30), stage.turn("b", 50)], plan, never, stage.clock)
    assert [list(one) for one in seen.series] == [[30] * 7, [50] * 7]
    assert stage.ran.count("a") == stage.ran.count("b") == 7 * 3


def test_it_ends_even_if_the_rule_never_does() -> None:
    """`max_rounds` holds whatever the rule says."""
    stage = Stage()
    seen = sample([stage.turn("a", 1)], Plan(min_rounds=1, max_rounds=5), never, stage.clock)
    assert (len(seen.series[0]), seen.reason) == (5, "max_rounds")


def test_a_slow_runner_ends_by_the_budget_after_whole_rounds() -> None:
    """The budget may end sampling before `min_rounds`, but never inside a round."""
    stage = Stage()
    turns = [stage.turn("a", 3 * SECOND), stage.turn("b", SECOND)]
    seen = sample(turns, Plan(budget_s=20.0, settle_runs=0), sampling_done, stage.clock)
    assert (len(seen.series[0]), len(seen.series[1]), seen.reason) == (5, 5, "budget")


def test_steady_runners_end_by_precision_at_the_first_checkpoint() -> None:
    """Runs that all take the same time need no more than `min_rounds`."""
    stage = Stage()
    seen = sample(
        [stage.turn("a", 1000), stage.turn("b", 500)], Plan(min_rounds=40, least_s=0), sampling_done, stage.clock
    )
    assert (len(seen.series[0]), seen.reason) == (40, "precision")


def test_orders_are_mirrored_in_pairs_and_fair() -> None:
    """Each order is followed by its mirror image; every runner is first equally often, in no fixed pattern."""
    drawn = list(islice(orders(3, seed=4), 600))
    assert all(there == back[::-1] for there, back in zip(drawn[::2], drawn[1::2], strict=True))
    assert all(sorted(order) == [0, 1, 2] for order in drawn)
    firsts = [order[0] for order in drawn]
    assert all(150 <= firsts.count(i) <= 250 for i in range(3))
    assert drawn == list(islice(orders(3, seed=4), 600)) != list(islice(orders(3, seed=5), 600))


def test_progress_is_reported_between_rounds_and_grows() -> None:
    """The report gets shares that grow from 0 to at most 1, not more often than four times a second."""
    stage = Stage()
    seen: list[float] = []
    plan = Plan(budget_s=4.0, settle_runs=0)
    sample([stage.turn("a", SECOND // 10)], plan, sampling_done, stage.clock, lambda share, text: seen.append(share))
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] <= 1
    assert len(seen) <= 16


def test_a_run_that_fails_names_the_runner_and_keeps_the_cause() -> None:
    """An exception inside a run becomes a ProfileError with the runner's name, chained to its cause."""

    def broken() -> None:
        raise RuntimeError("index out of bounds")

    with pytest.raises(ProfileError, match=r"net\.onnx: an inference failed .* index out of bounds") as caught:
        sample([Turn("net.onnx", broken)], Plan(), never, lambda: 0)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_collector_is_off_inside_and_back_on_after_a_fault() -> None:
    """Garbage collection pauses while sampling, and an exception does not leave it off."""

    def fail() -> None:
        with collector_off():
            assert not gc.isenabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()


class Disturbed:
    """A watch that finds the machine disturbed in windows of these numbers."""

    def __init__(self, windows: set[int]) -> None:
        self.windows, self.seen, self.rested = windows, 0, 0

    def begin(self) -> None:
        """Nothing is to be begun."""

    def disturbance(self) -> str | None:
        """Tell of one window after the other."""
        self.seen += 1
        return "a neighbour" if self.seen in self.windows else None

    def rest(self) -> None:
        """Count."""
        self.rested += 1


def test_a_disturbed_window_is_set_aside_and_taken_again() -> None:
    """What was sampled while the machine was disturbed is kept apart, with its cause, and replaced."""
    stage, watch = Stage(), Disturbed({2})
    plan = Plan(budget_s=100.0, settle_runs=0, min_rounds=1, max_rounds=20)
    seen = sample([stage.turn("a", SECOND // 10), stage.turn("b", 1)], plan, never, stage.clock, None, watch)
    assert (len(seen.series[0]), len(seen.aside[0]), len(seen.aside[1])) == (20, 3, 3)
    assert (seen.disturbances, seen.endured, watch.rested) == ({"a neighbour": 1}, 0, 1)


def test_a_machine_that_is_always_disturbed_is_endured() -> None:
    """After a quarter of the budget disturbed windows are kept, so that there is a result, and counted."""
    stage, watch = Stage(), Disturbed(set(range(1, 1000)))
    plan = Plan(budget_s=10.0, settle_runs=0)
    seen = sample([stage.turn("a", SECOND // 10)], plan, sampling_done, stage.clock, None, watch)
    assert seen.reason == "budget"
    assert 20 <= len(seen.aside[0]) <= 28
    assert len(seen.series[0]) + len(seen.aside[0]) == 100
    assert seen.endured > 0


def test_a_disturbed_last_window_does_not_end_sampling() -> None:
    """A rule that would end sampling on rounds that are then set aside is asked again on those that replace them."""
    stage, watch = Stage(), Disturbed({1})
    plan = Plan(min_rounds=40, least_s=0, settle_runs=0)
    seen = sample([stage.turn("a", SECOND // 250)], plan, sampling_done, stage.clock, None, watch)
    assert (len(seen.series[0]), len(seen.aside[0]), seen.reason) == (40, 40, "precision")


def test_resting_costs_the_allowance_and_samples_remain() -> None:
    """A watch that rests two seconds after each window cannot use up the budget: something is always kept."""
    stage = Stage()

    class Hot(Disturbed):
        def rest(self) -> None:
            stage.now += 2 * SECOND

    plan = Plan(budget_s=20.0, settle_runs=0)
    seen = sample([stage.turn("a", SECOND // 100)], plan, ended, stage.clock, None, Hot(set(range(10_000))))
    assert len(seen.series[0]) > 1000
    assert len(seen.aside[0]) < 100
    assert seen.endured > 0


def test_a_window_too_short_to_be_judged_does_not_end_sampling() -> None:
    """Runs of a microsecond go on until the machine can be looked at, and as long again after a disturbance."""
    stage, watch = Stage(), Disturbed({1})
    plan = Plan(min_rounds=40, least_s=0, settle_runs=0)
    seen = sample([stage.turn("a", 1_000_000)], plan, sampling_done, stage.clock, None, watch)
    assert len(seen.aside[0]) * 1_000_000 >= SECOND // 8
    assert len(seen.series[0]) * 1_000_000 >= SECOND // 8
