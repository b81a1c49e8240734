"""Compare two targets by the paired ratio of interleaved rounds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .environment import comparison_key
from .errors import BadPlan
from .measure import Measurement, interleave
from .plan import Plan
from .runners import Inputs, Target, open_runner
from .sampling import Report
from .stats import Estimate, median_ratio_interval

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
    plan = plan or Plan()
    with open_runner(a, runtime, plan, inputs) as first, open_runner(b, runtime, plan, inputs) as second:
        seen = interleave((first, second), plan, report)
    return compare_measurements(seen[0], seen[1], plan.same_margin)


def compare_measurements(a: Measurement, b: Measurement, margin: float) -> Comparison:
    """Compare two measurements of one `interleave`.

    Args:
        a: what to compare against.
        b: what is compared.
        margin: a ratio whose whole interval lies within 1 +- margin counts as "same".

    Raises:
        BadPlan: they were not taken interleaved: environment, plan, number of rounds or group differ.
    """
    _check_paired(a, b)
    found = median_ratio_interval(a.samples_ns, b.samples_ns)
    outcome = ratio_outcome(found, margin)
    return Comparison(found.value, found.low, found.high, outcome, _reason(found, outcome, margin, a, b), a, b)


def ratio_outcome(found: Estimate, margin: float) -> RatioOutcome:
    """Decide: "same" wins where the interval lies within 1 +- margin, even if it does not contain 1."""
    if found.low is None or found.high is None:
        return "unclear"
    if 1 - margin <= found.low and found.high <= 1 + margin:
        return "same"
    if found.low > 1:
        return "faster"
    return "slower" if found.high < 1 else "unclear"


def _check_paired(a: Measurement, b: Measurement) -> None:
    where_a, where_b = comparison_key(a.environment), comparison_key(b.environment)
    facts: dict[str, tuple[Any, Any]] = {key: (where_a[key], where_b[key]) for key in where_a}
    facts["plan"] = a.plan, b.plan
    facts["rounds"] = len(a.samples_ns), len(b.samples_ns)
    facts["group"] = a.group, b.group
    for name, (one, other) in facts.items():
        if one != other:
            raise BadPlan(
                f"{a.name} and {b.name} cannot be compared: {name} differs ({one} and {other}); "
                "measure them interleaved"
            )


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
