"""Examples per second over a sweep of batches. A figure of its own: a latency at batch 1 says nothing about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .affinity import bound
from .environment import environment
from .errors import BadPlan, ProfileError, RuntimeAbsent
from .plan import Plan
from .runners import Inputs, Runner, Target, open_runner, opener
from .sampling import Report, Sampled, Turn, Watch, collector_off, sample, spent, unsettled
from .stats import Estimate, in_ms, mean_interval, median_interval
from .stopping import sampling_done, warmup_done

SCHEMA = 1
_STRETCHES = 20
KNEE_SHARE = 0.05


@dataclass(frozen=True)
class Row:
    """One batch: its raw latencies, one per round, or the reason why it could not run."""

    batch: int
    samples_ns: tuple[int, ...] = ()
    failed: str | None = None

    @property
    def p50_ns(self) -> Estimate | None:
        """The median latency of the whole batch in nanoseconds, None where it failed."""
        return median_interval(self.samples_ns) if self.samples_ns else None

    @property
    def examples_per_s(self) -> Estimate | None:
        """The batch over its mean latency: the rate that lasts, slow runs included."""
        return per_second(self.batch, mean_interval(self.samples_ns)) if self.samples_ns else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with what is derived."""
        derived = {"p50_ns": self.p50_ns, "examples_per_s": self.examples_per_s}
        return asdict(self) | {name: None if found is None else asdict(found) for name, found in derived.items()}


@dataclass(frozen=True)
class Throughput:
    """A sweep of batches, interleaved round by round, and how it was taken.

    Attributes:
        plan: as given; its `batch` is replaced by each row's.
        rows: in ascending order of batch, those that failed included.
        stop_reason: as of a `Measurement`.
        details: of the runner at the best batch.
    """

    name: str
    runtime: str
    file: str | None
    sha256: str | None
    plan: Plan
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    inputs: str
    stop_reason: str
    notes: tuple[str, ...]
    details: dict[str, Any]

    @property
    def best(self) -> int:
        """The batch with the most examples per second."""
        return best(self.rates())

    @property
    def knee(self) -> int:
        """The smallest batch within 5 % of the best throughput."""
        return knee(self.rates())

    def rates(self) -> dict[int, float]:
        """Return examples per second by batch, of those that ran."""
        return _rates(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the schema version and what is derived."""
        rows = [row.to_dict() for row in self.rows]
        return {"schema": SCHEMA, **asdict(self), "rows": rows, "best": self.best, "knee": self.knee}


def throughput(  # noqa: PLR0913 (the clock comes from outside so that tests do not wait)
    target: Target,
    runtime: str = "ort-cpu",
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    report: Report | None = None,
    *,
    watch: Watch | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Throughput:
    """Measure examples per second for several batches, interleaved.

    All batches are open at once, so the memory that a large one finds is what the others leave.

    Args:
        target: a path to an ONNX file, a callable, or a torch module in evaluation mode.
        runtime: a key of `runners.RUNTIMES`.
        batches: different whole numbers above 0.
        plan: how; `Plan()` if None. Its bounds hold for all batches together.
        inputs: random if None, for files alone. Of given ones the first dimension of the first array counts as the
            batch: arrays with as many rows are repeated or cut to each batch, others stay as they are.
        report: called between rounds with the share done and a text.
        watch: sets disturbed windows aside; None takes them all.
        clock: nanoseconds that never go back.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: batches out of range, inputs without rows, or no batch runs.
        ProfileError: an inference failed that had worked before.
    """
    plan = plan or Plan()
    opener(runtime)
    _check(target, runtime, batches, inputs)
    with bound(plan), ExitStack() as stack:
        where = environment()
        opened = {b: _open(stack, target, runtime, replace(plan, batch=b), inputs) for b in sorted(batches)}
        runners = {b: found for b, found in opened.items() if not isinstance(found, str)}
        if not runners:
            tried, reason = ", ".join(map(str, opened)), next(iter(opened.values()))
            raise BadPlan(f"throughput: none of the batches {tried} runs; the first: {reason}")
        turns = [Turn(f"{runner.name} at batch {b}", runner.run) for b, runner in runners.items()]
        with collector_off():
            warm = sample(turns, plan, warmup_done, clock)
            seen = sample(turns, plan, sampling_done, clock, report, watch)
        rows = _rows(opened, seen)
        runner = runners[best(_rates(rows))]
        return Throughput(
            name=runner.name,
            runtime=runtime,
            file=runner.file,
            sha256=runner.sha256,
            plan=plan,
            environment=where,
            rows=rows,
            inputs=runner.inputs,
            stop_reason=seen.reason,
            notes=_notes(warm, seen, plan, rows),
            details=dict(runner.details),
        )


def per_second(batch: int, latency_ns: Estimate) -> Estimate:
    """Turn a latency in nanoseconds into a rate; the interval's ends change places."""
    low, high = (None if not end else batch * 1e9 / end for end in (latency_ns.high, latency_ns.low))
    return Estimate(batch * 1e9 / max(latency_ns.value, 1.0), low, high)


def best(rates: Mapping[int, float]) -> int:
    """Return the batch with the highest rate, the smaller of two equal ones."""
    return min(rates, key=lambda batch: (-rates[batch], batch))


def knee(rates: Mapping[int, float], share: float = KNEE_SHARE) -> int:
    """Return the smallest batch whose rate is within that share of the highest."""
    least = max(rates.values()) * (1 - share)
    return min(batch for batch, rate in rates.items() if rate >= least)


def ties(rows: Sequence[Row]) -> tuple[int, ...]:
    """Return the batches whose rate is not told apart from the best one's, by the ratios of stretches of rounds."""
    top = best(_rates(rows))
    winner = next(row for row in rows if row.batch == top)
    return tuple(row.batch for row in rows if row.samples_ns and row.batch != top and _tied(row, winner))


def fit_rows(inputs: Inputs | None, rows: int) -> Inputs | None:
    """Repeat or cut arrays to so many rows, whether numpy's or torch's. See `throughput` on which are meant."""
    had = given_rows(inputs)
    if inputs is None or not had:
        return inputs
    index = [i % had for i in range(rows)]
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    made = tuple(value[index] if _size(value) == had else value for value in values)
    return dict(zip(inputs, made, strict=True)) if isinstance(inputs, Mapping) else made


def given_rows(inputs: Inputs | None) -> int | None:
    """Return the size of the first dimension of the first array that has one, None without any."""
    values = () if inputs is None else inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((rows for rows in map(_size, values) if rows is not None), None)


def has_rows(shapes: Mapping[str, Sequence[int]], batch: int) -> bool:
    """Tell whether an input's first dimension is the batch. A file without one would be counted `batch` times."""
    return any(len(shape) > 0 and shape[0] == batch for shape in shapes.values())


def lines(found: Throughput) -> list[str]:
    """Write a line per batch, then the best batch and the knee."""
    rates = found.rates()
    return [
        f"{found.name} on {found.runtime}: throughput by batch, {found.plan.threads} thread(s), "
        f"{max(len(row.samples_ns) for row in found.rows)} rounds",
        *(_line(row) for row in found.rows),
        f"best at batch {found.best}: {rates[found.best]:.4g} examples/s; the smallest batch within {KNEE_SHARE:.0%} "
        f"of it is {found.knee} ({rates[found.knee]:.4g} examples/s)",
        *(f"note: {note}" for note in found.notes),
    ]


def _line(row: Row) -> str:
    rate, latency = row.examples_per_s, row.p50_ns
    if rate is None or latency is None:
        return f"batch {row.batch}: failed: {row.failed}"
    ends = "" if rate.low is None or rate.high is None else f" ({rate.low:.4g} to {rate.high:.4g})"
    return f"batch {row.batch}: {rate.value:.4g} examples/s{ends}, p50 {in_ms(latency)}"


def _check(target: Target, runtime: str, batches: Sequence[int], inputs: Inputs | None) -> None:
    whole = all(isinstance(b, int) and not isinstance(b, bool) and b >= 1 for b in batches)
    if not batches or not whole or len(set(batches)) != len(batches):
        raise BadPlan(f"throughput: got batches {tuple(batches)}, wanted different whole numbers of at least 1")
    if (inputs is not None or callable(target) or runtime == "command") and not given_rows(inputs):
        raise BadPlan(
            f"throughput in runtime {runtime}: got no input with rows, so a batch would change nothing; "
            "wanted inputs whose first array has a batch dimension"
        )


def _open(stack: ExitStack, target: Target, runtime: str, plan: Plan, inputs: Inputs | None) -> Runner | str:
    """Open a runner that stays open with the stack and run it once, or say why it cannot."""
    try:
        with ExitStack() as own:
            runner = own.enter_context(open_runner(target, runtime, plan, fit_rows(inputs, plan.batch)))
            reason = _probe(runner)
            if reason is None:
                stack.push(own.pop_all())
            return reason or runner
    except RuntimeAbsent:
        raise
    except ProfileError as fault:
        return str(fault)


def _probe(runner: Runner) -> str | None:
    """Say why a runner's batch cannot be measured, or None."""
    shapes, batch = runner.details.get("input_shapes"), runner.plan.batch
    if shapes is not None and not has_rows(shapes, batch):
        return f"{runner.name}: no input has a batch dimension of {batch}, got shapes {shapes}"
    try:
        runner.run()
    except Exception as fault:
        # A runtime's own error, most often memory: the batch becomes a row, and the others go on.
        return f"{runner.name}: an inference failed: {fault}"
    return None


def _rows(opened: Mapping[int, Runner | str], seen: Sampled) -> tuple[Row, ...]:
    series = iter(seen.series)
    return tuple(
        Row(b, failed=found) if isinstance(found, str) else Row(b, tuple(next(series))) for b, found in opened.items()
    )


def _size(value: Any) -> int | None:
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return int(shape[0]) if len(shape) > 0 else None


def _rates(rows: Sequence[Row]) -> dict[int, float]:
    return {row.batch: row.examples_per_s.value for row in rows if row.examples_per_s is not None}


def _tied(row: Row, winner: Row) -> bool:
    stretches = [
        np.array([part.sum() for part in np.array_split(np.asarray(one.samples_ns, float), _STRETCHES)]) / one.batch
        for one in (row, winner)
    ]
    ratio = mean_interval(stretches[0] / np.maximum(stretches[1], 1.0))
    return ratio.low is None or ratio.high is None or ratio.low <= 1 <= ratio.high


def _notes(warm: Sampled, seen: Sampled, plan: Plan, rows: Sequence[Row]) -> tuple[str, ...]:
    top, level = best(_rates(rows)), ties(rows)
    notes = {
        **unsettled(warm, plan),
        **spent(seen, plan),
        f"{len(seen.aside[0])} rounds were disturbed and taken again; {seen.endured} disturbed windows were kept": (
            bool(seen.disturbances)
        ),
        f"batch {top} is not told apart from {', '.join(map(str, level))} at the top": bool(level),
        f"batch {top} is the largest that ran: larger ones may be faster still": top == max(_rates(rows)),
    }
    return tuple(text for text, holds in notes.items() if holds)
