"""On a machine that is loaded on purpose: is a model the same as itself?

Two copies of one file are compared, so that every difference that is claimed is wrong. Beside `compare` at its defaults
stand the procedures that people use, on the same two files within the same try, in random order.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from shipworthy.benchmarks.common import table
from shipworthy.benchmarks.profiler_bare import MODELS, Run, bare_session, model_file, timed, timed_for
from shipworthy.benchmarks.profiler_common import Row, Settings, Work, goal, share
from shipworthy.benchmarks.profiler_live import Try, counts, facts_of, in_words, plan_of, spread, surroundings
from shipworthy.benchmarks.profiler_load import Bursts, load_average

if TYPE_CHECKING:
    from shipworthy.profile.plan import Plan

OURS = "`compare`, interleaved"
CLAIM, WRONG_GOAL = 0.02, 0.05
FULL, QUICK = {"budget_s": 5.0}, {"budget_s": 0.3, "warmup_s": 0.1, "warmup_cap_s": 0.2}


class Claim(NamedTuple):
    """What a procedure says: the larger time over the smaller, less 1, and whether it calls that a difference."""

    difference: float
    claimed: bool


@dataclass(frozen=True)
class Pair:
    """One model twice.

    Attributes:
        targets: for `compare`.
        inputs: for `compare`.
        bare: opens one of the two for procedures that are not ours.
    """

    targets: tuple[Any, Any]
    inputs: Any
    bare: Callable[[int], Run]


def aa_units(settings: Settings) -> dict[str, Try]:
    """Return all tries; the two runtimes of a GPU each get as many."""
    runtimes = ("ort-cpu",) if settings.device == "cpu" else ("ort-cuda", "torch")
    tries = [
        Try(model, runtime, n) for model in settings.models for runtime in runtimes for n in range(settings.aa_tries)
    ]
    words = in_words(plan_of(FULL, QUICK, settings))
    return {f"aa {one.model} {one.runtime} {words} seed {settings.seed} try {one.number}": one for one in tries}


@contextmanager
def aa_workshop(settings: Settings) -> Iterator[Work]:
    """Load the machine and give the work of one try."""
    before = load_average()
    with Bursts(settings.seed) as load:
        pairs: dict[tuple[str, str], Pair] = {}

        def work(one: Try) -> Row:
            twice = one.model, one.runtime
            if twice not in pairs:
                pairs[twice] = _pair(one, settings)
            found = _aa_try(pairs[twice], one, plan_of(FULL, QUICK, settings))
            return found | {"experiment": "aa", "load_before": before, "load": load_average(), "by": load.describe()}

        yield work


def _aa_try(pair: Pair, one: Try, plan: Plan) -> Row:
    """Let every procedure compare, in random order."""
    procedures: list[Callable[[], Row]] = [
        partial(_ours, pair, one.runtime, plan),
        partial(_in_sequence, pair),
        partial(_olive, pair),
        partial(_timer, pair),
        partial(_equal_time, pair, plan.budget_s),
    ]
    random.Random(one.number).shuffle(procedures)
    row: Row = {**one._asdict(), "claims": {}, "plan": in_words(plan)}
    for procedure in procedures:
        found = procedure()
        row["claims"] |= {name: list(claim) for name, claim in found.pop("claims").items()}
        row |= found
    return row


def _ours(pair: Pair, runtime: str, plan: Plan) -> Row:
    from shipworthy.profile.compare import compare

    began = time.perf_counter()
    found = compare(*pair.targets, runtime, plan, pair.inputs)
    claim = Claim(_apart(found.ratio, 1.0), found.outcome in ("faster", "slower"))
    return {"claims": {OURS: claim}, "seconds": time.perf_counter() - began, **facts_of(found)}


def _in_sequence(pair: Pair) -> Row:
    a, b = (_series(pair.bare(i), warm=10, count=100) for i in (0, 1))
    return {
        "claims": {
            "mean of 100 runs, one after the other": _beyond(fmean(a), fmean(b)),
            "median of 100 runs, one after the other": _beyond(median(a), median(b)),
        }
    }


def _olive(pair: Pair) -> Row:
    a, b = (_series(pair.bare(i), warm=10, count=20) for i in (0, 1))
    return {"claims": {"mean of 20 runs after 10 (Olive's defaults)": _beyond(fmean(a), fmean(b))}}


def _timer(pair: Pair) -> Row:
    """Read `blocked_autorange` as people do: by medians, or also asking that the quartiles lie apart."""
    import numpy as np
    from torch.utils.benchmark import Timer

    found = []
    for index in (0, 1):
        timer = Timer("run()", globals={"run": pair.bare(index)}, num_threads=1)
        found.append(np.quantile(timer.blocked_autorange().times, (0.25, 0.5, 0.75)))
    a, b = found
    medians = _beyond(float(a[1]), float(b[1]))
    apart = bool(a[2] < b[0] or b[2] < a[0])
    return {
        "claims": {
            "torch Timer, medians": medians,
            "torch Timer, medians and quartiles apart": Claim(medians.difference, medians.claimed and apart),
        }
    }


def _equal_time(pair: Pair, seconds: float) -> Row:
    """Use as much time as `compare` may, half for each file."""
    found = []
    for index in (0, 1):
        run = pair.bare(index)
        timed(run, 10)
        found.append(median(timed_for(run, seconds / 2)))
    return {"claims": {"median of equal time, one after the other": _beyond(*found)}}


def _series(run: Run, warm: int, count: int) -> list[int]:
    return timed(run, warm + count)[warm:]


def _beyond(a: float, b: float) -> Claim:
    difference = _apart(a, b)
    return Claim(difference, difference > CLAIM)


def _apart(a: float, b: float) -> float:
    return max(a, b) / min(a, b) - 1


def _pair(one: Try, settings: Settings) -> Pair:
    if one.runtime == "torch":
        return _torch_pair(one.model)
    path = model_file(one.model, settings.folder)
    copy = path.with_name(f"{one.model}_copy.onnx")
    shutil.copyfile(path, copy)
    files: tuple[Path, Path] = (path, copy)
    return Pair(files, None, lambda index: bare_session(files[index], settings.device))


def _torch_pair(model: str) -> Pair:
    """Return two copies of a module on the GPU. Not run on a GPU yet."""
    import torch

    import shipworthy as sw

    loaded = sw.load(MODELS[model])
    modules = tuple(loaded.copy().module.to("cuda") for _ in range(2))
    inputs = tuple(x[:1].to("cuda") for x in loaded.example_inputs)

    def bare(index: int) -> Run:
        def run() -> None:
            with torch.inference_mode():
                modules[index](*inputs)
            torch.cuda.synchronize()

        return run

    return Pair((modules[0], modules[1]), inputs, bare)


def aa_report(rows: Sequence[Row]) -> str:
    """Return who claims a difference of a model to itself, and the largest one claimed."""
    text = ""
    for model, runtime in dict.fromkeys((row["model"], row["runtime"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["runtime"]) == (model, runtime)]
        wrong = sum(row["claims"][OURS][1] for row in mine)
        text += (
            f"{model} in {runtime}, {len(mine)} tries. {surroundings(mine)}\n"
            f"`compare` with {mine[0]['plan']}: {counts(mine, 'outcome')}; ended by {counts(mine, 'stop_reason')}; "
            f"{spread(mine, 'rounds')} rounds, {spread(mine, 'seconds')} s.\n\n"
            + table(("procedure", "claims a difference", "largest claimed %", "largest seen %"), _claims(mine))
            + "\n" + goal(f"`compare` claims one in at most {WRONG_GOAL:.0%} of tries", wrong <= WRONG_GOAL * len(mine))
            + "\n"
        )  # fmt: skip
    return text + (
        "`compare` claims a difference where it says faster or slower. All others do where the larger value is more\n"
        f"than {CLAIM:.0%} above the smaller; the last row of Timer asks too that neither interquartile range reaches\n"
        "into the other. They run in a session of their own per file, through bound inputs, one file after the other,\n"
        "10 runs before each series; Timer is `blocked_autorange()` at its defaults. The order of procedures is drawn\n"
        "anew in each try.\n"
    )


def _claims(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for name in sorted(rows[0]["claims"], key=lambda name: (name != OURS, name)):
        claims = [Claim(*row["claims"][name]) for row in rows]
        wrong = [claim.difference for claim in claims if claim.claimed]
        largest = f"{100 * max(wrong):.1f}" if wrong else "none"
        seen = max(claim.difference for claim in claims)
        lines.append((name, share(len(wrong), len(claims)), largest, f"{100 * seen:.1f}"))
    return lines
