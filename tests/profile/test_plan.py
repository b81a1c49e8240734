"""The settings of a measurement."""

from __future__ import annotations

from typing import Any

import pytest

from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.plan import Plan


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 0}, "plan.batch: got 0, wanted a whole number of at least 1"),
        ({"threads": 1.5}, "plan.threads: got 1.5"),
        ({"max_rounds": True}, "plan.max_rounds: got True"),
        ({"seed": -1}, "plan.seed: got -1"),
        ({"precision": 1.0}, "plan.precision: got 1.0, wanted a number of at least 0 and below 1"),
        ({"budget_s": float("nan")}, "plan.budget_s: got nan"),
        ({"budget_s": float("inf")}, "plan.budget_s: got inf"),
        ({"streams": 0}, "plan.streams: got 0"),
        ({"affinity": (0, -1)}, "plan.affinity: got -1"),
        ({"quantile": 100}, "plan.quantile: got 100, wanted a number above 0 and below 100"),
        ({"same_margin": "2%"}, "plan.same_margin: got '2%'"),
        ({"min_rounds": 9, "max_rounds": 8}, "plan.min_rounds: got 9, wanted at most max_rounds"),
        ({"warmup_s": 9.0}, "plan.warmup_s: got 9.0, wanted at most warmup_cap_s"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], words: str) -> None:
    """A plan that cannot work says which setting, what it got and what it wanted."""
    with pytest.raises(BadPlan, match=words.replace("(", r"\(")):
        Plan(**settings)


def test_exit_codes() -> None:
    """Bad settings and absent runtimes end with 2, broken tools with 4."""
    assert (ProfileError.exit_code, BadPlan.exit_code, RuntimeAbsent.exit_code) == (4, 2, 2)
