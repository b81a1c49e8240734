"""What the experiments on a machine that is loaded on purpose share: tries, plans in words, and what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from shipworthy.benchmarks.profiler_common import Row, Settings

if TYPE_CHECKING:
    from shipworthy.profile.compare import Comparison
    from shipworthy.profile.plan import Plan


class Try(NamedTuple):
    """One comparison to make."""

    model: str
    runtime: str
    number: int


def plan_of(full: Mapping[str, Any], quick: Mapping[str, Any], settings: Settings) -> Plan:
    """Return the plan of a full or of a smoke run."""
    from shipworthy.profile.plan import Plan

    return Plan(**(quick if settings.quick else full))


def in_words(plan: Plan) -> str:
    """Say how a plan differs from the default one."""
    usual = asdict(type(plan)())
    changed = [f"{name}={value}" for name, value in asdict(plan).items() if value != usual[name]]
    return f"Plan({', '.join(changed)})"


def facts_of(found: Comparison) -> Row:
    """Return what a comparison says and on what grounds."""
    return {
        "outcome": found.outcome, "ratio": found.ratio, "low": found.low, "high": found.high,
        "rounds": len(found.a.samples_ns), "stop_reason": found.a.stop_reason, "p50_ms": found.a.p50_ms,
    }  # fmt: skip


def surroundings(rows: Sequence[Row]) -> str:
    """Say what loaded the machine."""
    before, during = (_load(rows, key) for key in ("load_before", "load"))
    return f"Load: {rows[0]['by']}; load average {before} before and {during} during the tries (least, median, most)."


def _load(rows: Sequence[Row], key: str) -> str:
    known = [row for row in rows if row[key] is not None]
    return spread(known, key) if known else "unknown"


def counts(rows: Sequence[Row], key: str) -> str:
    """Return how often each value occurs, such as `3 same, 2 unclear`."""
    values = [row[key] for row in rows]
    return ", ".join(f"{values.count(value)} {value}" for value in sorted(set(values)))


def spread(rows: Sequence[Row], key: str) -> str:
    """Return the least, the median and the most of a number, such as `1.5, 2, 3.25`."""
    values = sorted(row[key] for row in rows)
    return ", ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in _three(values))


def _three(values: Sequence[float]) -> tuple[float, ...]:
    return values[0], values[len(values) // 2], values[-1]
