"""On invented series, whose truth is known: do intervals hold what they state, also for who looks again and again?

`coverage` draws series and asks how often the stated 95 % intervals contain the true percentile. `peeking` lets the
rule that ends sampling at a decision look at series whose median lies exactly on a goal's bound, where every decision
is wrong, and tells how many rounds real differences take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from shipworthy.benchmarks.common import table
from shipworthy.benchmarks.profiler_common import Row, Settings, goal, share

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shipworthy.profile.plan import Plan
    from shipworthy.profile.sequential import Question

    Series = NDArray[np.float64]
    Draw = Callable[[np.random.Generator, int], Series]

NORMAL = NormalDist()
QUANTILES = (50.0, 90.0, 99.0)
LENGTHS = (662, 2000, 8000)
COVERAGE_GOAL, WRONG_GOAL = (0.93, 0.97), 0.05
JUDGED = 0.5
"""The share of series that must have an interval: those few that do elsewhere are not drawn by chance alone."""
SIGMA = 0.1
ENTER, LEAVE, BUSY = 0.02, 0.08, 1.5
"""The two-state mixture: chances to become busy and idle again from round to round, and how much slower busy is."""


# --- series, in milliseconds, of median 1 but for the mixture


def autoregressive(phi: float, sigma: float, generator: np.random.Generator, length: int) -> Series:
    """Return lognormal times whose logarithms depend on their predecessor by `phi`; independent for 0."""
    import numpy as np

    noise = generator.standard_normal(length)
    if phi:
        scale = math.sqrt(1 - phi**2)
        for i in range(1, length):
            noise[i] = phi * noise[i - 1] + scale * noise[i]
    return np.exp(sigma * noise)


def bursty(generator: np.random.Generator, length: int) -> Series:
    """Return lognormal times on a machine that is idle or busy, and stays so for a while (a Markov chain).

    It is busy for a fifth of the time, 12.5 rounds on end in the mean, and forgets as fast as `autoregressive(0.9)`.
    """
    import numpy as np

    busy = np.empty(length, dtype=bool)
    busy[0] = generator.random() < ENTER / (ENTER + LEAVE)
    chances = generator.random(length)
    for i in range(1, length):
        busy[i] = chances[i] >= LEAVE if busy[i - 1] else chances[i] < ENTER
    times: Series = np.where(busy, BUSY, 1.0) * np.exp(SIGMA * generator.standard_normal(length))
    return times


def lognormal_quantile(share: float) -> float:
    """Return the true quantile of `autoregressive` with `SIGMA`."""
    return math.exp(SIGMA * NORMAL.inv_cdf(share))


def bursty_quantile(share: float) -> float:
    """Return the true quantile of `bursty`, by halving."""
    weight = ENTER / (ENTER + LEAVE)

    def below(x: float) -> float:
        idle, busy = (NORMAL.cdf(math.log(x / level) / SIGMA) for level in (1.0, BUSY))
        return (1 - weight) * idle + weight * busy

    low, high = 0.1, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < share else (low, middle)
    return (low + high) / 2


LAWS: Mapping[str, tuple[Draw, Callable[[float], float]]] = {
    "independent lognormal": (partial(autoregressive, 0.0, SIGMA), lognormal_quantile),
    "AR(1), phi 0.5": (partial(autoregressive, 0.5, SIGMA), lognormal_quantile),
    "AR(1), phi 0.9": (partial(autoregressive, 0.9, SIGMA), lognormal_quantile),
    "bursty, two states": (bursty, bursty_quantile),
}


# --- coverage


class Cell(NamedTuple):
    """Series of one law and length."""

    law: str
    length: int
    series: int
    seed: int


def coverage_units(settings: Settings) -> dict[str, Cell]:
    """Return every law at every length."""
    count, lengths = (10, LENGTHS[:1]) if settings.quick else (1000, LENGTHS)
    cells = [Cell(law, length, count, settings.seed) for law in LAWS for length in lengths]
    return {f"coverage {one.law} {one.length} series {one.series} seed {one.seed}": one for one in cells}


def covered(cell: Cell) -> Row:
    """Count for each percentile how many intervals hold the truth, lie above or below it, or are not stated."""
    import numpy as np

    from shipworthy.profile.stats import percentile

    draw, quantile = LAWS[cell.law]
    generator = np.random.default_rng((cell.seed, cell.length, list(LAWS).index(cell.law)))
    counts = {q: {"holds": 0, "above": 0, "below": 0, "unstated": 0} for q in QUANTILES}
    for _ in range(cell.series):
        series = draw(generator, cell.length)
        for q in QUANTILES:
            found = percentile(series, q)
            ends = (None, None) if found is None else (found.low, found.high)
            counts[q][_place(*ends, quantile(q / 100))] += 1
    return {"experiment": "coverage", **cell._asdict(), "counts": {f"p{q:g}": counts[q] for q in QUANTILES}}


def _place(low: float | None, high: float | None, truth: float) -> str:
    """Tell where an interval lies. One with a single end is not stated: it bounds nothing."""
    if low is None or high is None:
        return "unstated"
    return "above" if low > truth else "below" if high < truth else "holds"


def coverage_report(rows: Sequence[Row]) -> str:
    """Return the shares of stated intervals that hold the truth."""
    least, most = COVERAGE_GOAL
    lines, outside, wrong, rare = [], [], [], []
    for row in rows:
        for name, counts in row["counts"].items():
            lines.append(_coverage_line(row, name, counts))
            stated = row["series"] - counts["unstated"]
            where = f"{row['law']}, {row['length']}, {name}"
            if stated < JUDGED * row["series"]:
                rare.append(where)
                continue
            held = counts["holds"] / stated
            chance = 1.96 * math.sqrt(held * (1 - held) / stated)
            if not least <= held <= most:
                outside.append(f"{where} ({100 * held:.1f} %)")
                wrong += [outside[-1]] if held + chance < least or held - chance > most else []
    head = ("law", "length", "percentile", "holds the truth %", "too high %", "too low %", "no interval %")
    text = (
        f"{rows[0]['series']:,} series of each kind, sigma {SIGMA:g}; shares of the intervals that are stated, and of\n"
        "the series without one. A share of 95 % has itself a standard error of 0.7 at 1,000 intervals.\n\n"
        f"{table(head, lines)}\n{goal(f'{least:.0%} to {most:.0%} of intervals hold, but for chance', not wrong)}"
    )
    text += f"\nNot judged, since under half of the series have an interval: {'; '.join(rare)}.\n" if rare else ""
    text += f"\nOutside by more than their own 95 % interval: {'; '.join(wrong)}.\n" if wrong else ""
    near = [one for one in outside if one not in wrong]
    return text + (f"\nOutside, but not by more than chance: {'; '.join(near)}.\n" if near else "")


def _coverage_line(row: Row, name: str, counts: Mapping[str, int]) -> tuple[str, ...]:
    stated = row["series"] - counts["unstated"]
    shares = (f"{100 * counts[key] / stated:.1f}" if stated else "-" for key in ("holds", "above", "below"))
    return (row["law"], str(row["length"]), name, *shares, f"{100 * counts['unstated'] / row['series']:.1f}")


# --- peeking


class Peek(NamedTuple):
    """Series to be judged while they grow: `effect` is how far the truth lies below the bound, as a share."""

    question: str
    phi: float
    sigma: float
    effect: float
    series: int
    seed: int


def peeking_units(settings: Settings) -> dict[str, Peek]:
    """Return goals that lie on the bound, and such that lie apart from it."""
    wrong, right = (5, 2) if settings.quick else (1000, 200)
    peeks = [Peek("p50", phi, 0.1, 0.0, wrong, settings.seed) for phi in (0.0, 0.5, 0.9)]
    peeks += [Peek("p99", 0.0, 0.1, 0.0, wrong, settings.seed), Peek("ratio", 0.5, 0.1, 0.0, wrong, settings.seed)]
    peeks += [Peek("p50", phi, 0.05, e, right, settings.seed) for phi in (0.0, 0.5) for e in (0.01, 0.02, 0.05, 0.1)]
    return {f"peeking {' '.join(map(str, one))}{' quick' if settings.quick else ''}": one for one in peeks}


def peeked(quick: bool, peek: Peek) -> Row:
    """Let the rule look at growing series, and beside it plain 95 % intervals at the same looks."""
    import numpy as np

    from shipworthy.profile.plan import Plan
    from shipworthy.profile.sequential import looks, looks_tail
    from shipworthy.profile.stats import TAIL

    plan = Plan(max_rounds=2000) if quick else Plan()
    question = _question(peek)
    generator = np.random.default_rng((peek.seed, round(1000 * peek.phi), round(1000 * peek.effect)))
    guarded, plain, rounds, undecided = 0, 0, [], 0
    wanted = "met" if peek.effect else "unclear"
    for _ in range(peek.series):
        series = _drawn(peek, generator, plan.max_rounds)
        count, outcome = _by_rule(question, series, plan)
        guarded += outcome not in (wanted, "unclear")
        undecided += outcome == "unclear"
        rounds.append(count)
        plain += not peek.effect and _by_looking(question, series, plan, TAIL)
    return {
        "experiment": "peeking", **peek._asdict(), "wrong": guarded, "wrong_plain": plain, "undecided": undecided,
        "mean_rounds": fmean(rounds), "looks": looks(plan), "tail": looks_tail(looks(plan)),
        "rounds": [plan.min_rounds, plan.max_rounds],
    }  # fmt: skip


def _question(peek: Peek) -> Question:
    """Return a goal on whose bound the truth lies where there is no effect."""
    from shipworthy.profile.goals import Goal
    from shipworthy.profile.sequential import Question

    if peek.question == "ratio":
        return Question(Goal("speedup", min=1.0), runner=1, against=0)
    quantile = float(peek.question[1:])
    bound = math.exp(peek.sigma * NORMAL.inv_cdf(quantile / 100))
    return Question(Goal(f"latency_{peek.question}_ms", max=bound), quantile=quantile)


def _drawn(peek: Peek, generator: np.random.Generator, length: int) -> list[Series]:
    """Return nanoseconds per runner: two for a ratio."""
    count = 2 if peek.question == "ratio" else 1
    return [1e6 * (1 - peek.effect) * autoregressive(peek.phi, peek.sigma, generator, length) for _ in range(count)]


def _by_rule(question: Question, series: Sequence[Series], plan: Plan) -> tuple[int, str]:
    """Return after how many rounds the rule ends sampling, and how the goal is judged then."""
    from shipworthy.profile.sequential import looks, looks_tail, until_decided

    rule, tail = until_decided([question]), looks_tail(looks(plan))
    for count in _looks(plan):
        seen: Any = [one[:count] for one in series]
        if rule(seen, plan.least_s, plan) is not None:
            return count, str(question.outcome(seen, tail))
    raise AssertionError("the plan's rounds never end")


def _by_looking(question: Question, series: Sequence[Series], plan: Plan, tail: float) -> bool:
    """Tell whether some look at fixed intervals decides."""
    outcomes = (question.outcome([one[:count] for one in series], tail) for count in _looks(plan))  # type: ignore[misc]  # arrays serve as sequences
    return any(outcome != "unclear" for outcome in outcomes)


def _looks(plan: Plan) -> Iterator[int]:
    """Yield the rounds after which the rule looks: its checkpoints, and the end."""
    from shipworthy.profile.stopping import is_checkpoint

    yield from (count for count in range(plan.min_rounds, plan.max_rounds) if is_checkpoint(count, plan.min_rounds))
    yield plan.max_rounds


def peeking_report(rows: Sequence[Row]) -> str:
    """Return the errors where every decision is wrong, and the rounds where a decision is right."""
    errors, effects = ([row for row in rows if bool(row["effect"]) is real] for real in (False, True))
    lines = [
        (_name(row), share(row["wrong"], row["series"]), share(row["wrong_plain"], row["series"])) for row in errors
    ]
    found = [
        (f"{row['effect']:.0%}, {_name(row)}", f"{row['mean_rounds']:,.0f}", share(row["wrong"], row["series"]),
         share(row["undecided"], row["series"]))
        for row in effects
    ]  # fmt: skip
    least, most = rows[0]["rounds"]
    worst = max(row["wrong"] / row["series"] for row in errors)
    return (
        f"From {least:,} to {most:,} rounds, {rows[0]['looks']} looks at the most, an error of {rows[0]['tail']:.4f}\n"
        "on each side at each. The truth lies exactly on the bound, so that every decision is wrong:\n\n"
        + table(("goal", "wrong by the rule", "wrong by 95 % intervals at each look"), lines)
        + "\n" + goal(f"at most {WRONG_GOAL:.0%} wrong decisions", worst <= WRONG_GOAL)
        + f"\nThe truth lies below the bound, noise of {effects[0]['sigma']:.0%}:\n\n"
        + table(("effect", "mean rounds to decide", "wrong", "undecided"), found)
    )  # fmt: skip


def _name(row: Row) -> str:
    dependence = f"AR(1), phi {row['phi']:g}" if row["phi"] else "independent"
    return f"{row['question']}, {dependence}"
