"""Compare two targets by the paired ratio of interleaved rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from .environment import comparison_key
from .errors import BadPlan
from .measure import Measurement, measure_all
from .plan import Plan
from .runners import Inputs, Target
from .sampling import Report
from .sequential import looks_tail
from .stats import TAIL, Estimate, median_interval, median_ratio_interval

_ALIKE = "measure both alike on one machine"
RatioOutcome = Literal["faster", "slower", "same", "unclear"]


@dataclass(frozen=True)
class Comparison:
    """How fast `b` is against `a`.

    Attributes:
        ratio: median of time of `a` / time of `b` by round: above 1, `b` is faster.
        low: lower end of its 95 % interval; None where the rounds were too few.
        high: upper end.
        outcome: of `b` against `a`.
        reason: in plain words.
    """

    ratio: float
    low: float | None
    high: float | None
    outcome: RatioOutcome
    reason: str
    a: Measurement
    b: Measurement

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"a": self.a.to_dict(), "b": self.b.to_dict()}


def compare(
    a: Target,
    b: Target,
    runtime: str = "ort-cpu",
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    *,
    report: Report | None = None,
) -> Comparison:
    """Measure two targets interleaved on equal inputs and compare them.

    Args:
        a: what to compare against.
        b: what is compared.
        runtime: a key of `runners.RUNTIMES`.
        plan: how; `Plan()` if None. Its `same_margin` decides what counts as the same.
        inputs: for both; see `open_runner`.
        report: see `interleave`.

    Raises:
        RuntimeAbsent: the runtime or its device is not there.
        BadPlan: a target or its inputs cannot be measured.
        ProfileError: an inference failed.
    """
    return compare_all((a, b), runtime, plan, inputs, report=report)[0]


def compare_all(
    targets: Sequence[Target],
    runtime: str = "ort-cpu",
    plan: Plan | None = None,
    inputs: Inputs | None = None,
    *,
    report: Report | None = None,
) -> tuple[Comparison, ...]:
    """Measure several targets interleaved and compare each with the first.

    The intervals hold together: all of them contain their truth with 95 % (Bonferroni), however many there are.

    Args:
        targets: at least two; the first is what the others are compared against.
        runtime: see `compare`.
        plan: see `compare`.
        inputs: see `compare`.
        report: see `compare`.

    Raises:
        RuntimeAbsent: see `compare`.
        BadPlan: see `compare`; or fewer than two targets.
        ProfileError: see `compare`.
    """
    if len(targets) < 2:
        raise BadPlan(f"compare: got {len(targets)} target, wanted at least two")
    plan = plan or Plan()
    first, *others = measure_all(targets, runtime, plan, inputs, report=report)
    return tuple(compare_measurements(first, other, plan.same_margin, len(others)) for other in others)


def compare_measurements(a: Measurement, b: Measurement, margin: float, together: int = 1) -> Comparison:
    """Compare two measurements of one `interleave`.

    Args:
        a: what to compare against.
        b: what is compared.
        margin: a ratio whose whole interval lies within 1 +- margin counts as "same".
        together: how many comparisons are read as one answer; their intervals hold together.

    Raises:
        BadPlan: they were not taken interleaved: environment, plan, number of rounds or group differ.
    """
    _check_paired(a, b)
    found = median_ratio_interval(a.samples_ns, b.samples_ns, looks_tail(a.looks, TAIL / together))
    outcome = ratio_outcome(found, margin)
    return Comparison(found.value, found.low, found.high, outcome, _reason(found, outcome, margin, a, b), a, b)


def compare_with_stored(stored: Measurement, now: Measurement, allowance: float = 0.05) -> Comparison:
    """Compare a measurement with one that was taken at another time on the same machine.

    Nothing pairs the two, so that the machine's own change between them is in the ratio, and no interval holds it. A
    ratio counts as a difference only where its whole interval lies beyond 1 +- `allowance`, and as "same" where it lies
    within. The interval is that of two independent medians (Donner and Zou, "Closed-form confidence intervals for
    functions of the normal mean and standard deviation", 2012).

    Args:
        stored: what to compare against.
        now: what is compared.
        allowance: by how much one file may differ from itself between two runs, as a share.

    Raises:
        BadPlan: environment, runtime, kind of inputs or plan differ.
    """
    check_comparable(stored, now.runtime, now.plan, now.environment)
    _check_alike(stored.name, now.name, {"inputs": (stored.inputs, now.inputs)}, _ALIKE)
    found = _ratio_of_medians(stored, now)
    outcome = ratio_outcome(found, allowance, beyond=allowance)
    reason = (
        f"the time ratio to the stored run is {found.value:.4g} (95 % interval {_end(found.low)} to "
        f"{_end(found.high)}); between two runs a difference of up to {allowance:.0%} counts as none"
    )
    return Comparison(found.value, found.low, found.high, outcome, reason, stored, now)


def check_comparable(stored: Measurement, runtime: str, plan: Plan, environment: Mapping[str, Any]) -> None:
    """Check that a measurement still to be taken can be compared with a stored one.

    Raises:
        BadPlan: environment, runtime or plan differ.
    """
    facts = _environments(stored.environment, environment) | {"runtime": (stored.runtime, runtime)}
    _check_alike(stored.name, "this run", facts | _plans(_how(stored.plan), _how(plan)), _ALIKE)


def ratio_outcome(found: Estimate, margin: float, beyond: float = 0.0) -> RatioOutcome:
    """Decide: "same" wins where the interval lies within 1 +- margin, even if it does not contain 1.

    "faster" and "slower" need the whole interval beyond 1 +- `beyond`.
    """
    if found.low is None or found.high is None:
        return "unclear"
    if 1 - margin <= found.low and found.high <= 1 + margin:
        return "same"
    if found.low > 1 + beyond:
        return "faster"
    return "slower" if found.high < 1 - beyond else "unclear"


def _ratio_of_medians(stored: Measurement, now: Measurement) -> Estimate:
    a, b = median_interval(stored.samples_ns, stored.tail), median_interval(now.samples_ns, now.tail)
    ratio = a.value / max(b.value, 1.0)
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(ratio)
    product = a.value * b.value
    low = product - math.sqrt(max(0.0, product**2 - a.low * b.high * (2 * a.value - a.low) * (2 * b.value - b.high)))
    high = product + math.sqrt(max(0.0, product**2 - a.high * b.low * (2 * a.value - a.high) * (2 * b.value - b.low)))
    below, above = b.high * (2 * b.value - b.high), b.low * (2 * b.value - b.low)
    return Estimate(ratio, low / below, high / above) if below > 0 and above > 0 else Estimate(ratio)


def _how(plan: Plan) -> Plan:
    """Return the part of a plan that changes what is measured, not how precisely."""
    usual = Plan()
    free = (
        "warmup_s",
        "warmup_cap_s",
        "least_s",
        "budget_s",
        "min_rounds",
        "max_rounds",
        "quantile",
        "precision",
        "same_margin",
    )
    return replace(plan, **{name: getattr(usual, name) for name in free})


def _check_paired(a: Measurement, b: Measurement) -> None:
    facts: dict[str, tuple[Any, Any]] = {"rounds": (len(a.samples_ns), len(b.samples_ns)), "group": (a.group, b.group)}
    facts = _environments(a.environment, b.environment) | _plans(a.plan, b.plan) | facts
    _check_alike(a.name, b.name, facts, "measure them interleaved")


def _check_alike(a: str, b: str, facts: Mapping[str, tuple[Any, Any]], fix: str) -> None:
    for name, (one, other) in facts.items():
        if one != other:
            raise BadPlan(f"{a} and {b} cannot be compared: {name} differs ({one} and {other}); {fix}")


def _environments(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    where_a, where_b = comparison_key(a), comparison_key(b)
    return {key: (where_a[key], where_b[key]) for key in where_a}


def _plans(a: Plan, b: Plan) -> dict[str, tuple[Any, Any]]:
    return {f"plan.{part.name}": (getattr(a, part.name), getattr(b, part.name)) for part in fields(Plan)}


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _reason(found: Estimate, outcome: RatioOutcome, margin: float, a: Measurement, b: Measurement) -> str:
    rounds = len(a.samples_ns)
    if found.low is None or found.high is None:
        return f"{rounds} paired rounds are too few for an interval; raise the budget"
    interval = f"95 % interval {found.low:.4g} to {found.high:.4g}, {rounds} paired rounds"
    if outcome == "same":
        return f"the time ratio is {found.value:.4g} ({interval}), wholly within 1 +- {margin:g}"
    if outcome == "unclear":
        return f"the time ratio is {found.value:.4g} ({interval}): it contains 1 and reaches beyond 1 +- {margin:g}"
    times = found.value if outcome == "faster" else 1 / found.value
    return f"{b.name} is {outcome} than {a.name} by a factor of {times:.4g} (time ratio {found.value:.4g}, {interval})"
