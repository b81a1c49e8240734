"""On a machine that is loaded on purpose: is a small slowdown found?

A runner is compared with itself and a wait: after each inference it spins for a share of what that inference took. A
wait of fixed length would be another share of the median whenever the load changes; this one stays what is planted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, final

from shipworthy.benchmarks.common import table
from shipworthy.benchmarks.profiler_bare import model_file
from shipworthy.benchmarks.profiler_common import Row, Settings, Work, goal, share
from shipworthy.benchmarks.profiler_live import Try, counts, facts_of, in_words, plan_of, spread, surroundings
from shipworthy.benchmarks.profiler_load import Bursts, load_average

if TYPE_CHECKING:
    from shipworthy.profile.plan import Plan
    from shipworthy.profile.runners import Runner

FOUND_GOAL, FOUND_WITHIN_S = 0.95, 30.0
FULL, QUICK = {"budget_s": 24.0, "warmup_cap_s": 5.0, "same_margin": 0.02}, {"budget_s": 1.0, "warmup_cap_s": 0.5}


@final
class Slowed:
    """A runner that waits after each inference, spinning, for a share of what the inference took."""

    def __init__(self, runner: Runner, slowdown: float, name: str) -> None:
        self._run, self._factor = runner.run, 1 + slowdown
        self.name, self.runtime, self.plan = name, runner.runtime, runner.plan
        self.file, self.sha256, self.inputs = runner.file, runner.sha256, runner.inputs
        self.details = runner.details | {"slowdown": slowdown}

    def run(self) -> None:
        """Do one inference and wait."""
        began = time.perf_counter_ns()
        self._run()
        end = began + self._factor * (time.perf_counter_ns() - began)
        while time.perf_counter_ns() < end:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        """Release nothing: the runner belongs to the caller."""


def power_units(settings: Settings) -> dict[str, Try]:
    """Return all tries."""
    words = in_words(plan_of(FULL, QUICK, settings))
    tries = [Try(model, "ort-cpu", n) for model in settings.models for n in range(settings.power_tries)]
    return {
        f"power {one.model} {settings.slowdown:g} {words} seed {settings.seed} try {one.number}": one for one in tries
    }


@contextmanager
def power_workshop(settings: Settings) -> Iterator[Work]:
    """Load the machine and give the work of one try."""
    before = load_average()
    with Bursts(settings.seed) as load:

        def work(one: Try) -> Row:
            path = model_file(one.model, settings.folder)
            plan = replace(plan_of(FULL, QUICK, settings), seed=one.number)
            found = planted(path, settings.slowdown, plan)
            surroundings = {"load_before": before, "load": load_average(), "by": load.describe()}
            return {**one._asdict(), "experiment": "power", "slowdown": settings.slowdown, **found, **surroundings}

        yield work


def planted(path: Path, slowdown: float, plan: Plan) -> Row:
    """Compare a file with itself and a wait; the seconds leave out opening the two."""
    from shipworthy.profile.compare import compare_measurements
    from shipworthy.profile.measure import interleave
    from shipworthy.profile.runners import open_runner

    with ExitStack() as stack:
        a, b = (stack.enter_context(open_runner(path, "ort-cpu", plan)) for _ in range(2))
        began = time.perf_counter()
        first, second = interleave([Slowed(a, 0.0, "model"), Slowed(b, slowdown, "slowed model")], plan)
        found = compare_measurements(first, second, plan.same_margin)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "plan": in_words(replace(plan, seed=0)), **facts_of(found)}


def power_report(rows: Sequence[Row]) -> str:
    """Return how often the slowdown was found, and how long that took."""
    text, lines = "", []
    for model, slowdown in dict.fromkeys((row["model"], row["slowdown"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["slowdown"]) == (model, slowdown)]
        found = sum(row["outcome"] == "slower" and row["seconds"] <= FOUND_WITHIN_S for row in mine)
        lines.append((
            f"{model}, {slowdown:.0%} slower", share(found, len(mine)), counts(mine, "outcome"),
            counts(mine, "stop_reason"), spread(mine, "rounds"), spread(mine, "seconds"),
            spread([{"slower": 100 / row["ratio"] - 100} for row in mine], "slower"),
        ))  # fmt: skip
        text += goal(
            f"a slowdown of {slowdown:.0%} is found within {FOUND_WITHIN_S:g} s in at least {FOUND_GOAL:.0%} of tries "
            f"({model})", found >= FOUND_GOAL * len(mine),
        )  # fmt: skip
    head = ("planted", "found", "answers", "ended by", "rounds", "seconds", "slower by %")
    return (
        f"`interleave` and `compare_measurements` with {rows[0]['plan']}. {surroundings(rows)}\n"
        "The second runner spins after each inference for that share of what the inference took. A try is right where\n"
        "the answer is slower. Rounds, seconds and the slowdown seen: least, median, most.\n\n"
        f"{table(head, lines)}\n{text}"
    )
