"""Verdicts of the training benchmarks follow from their intervals, and smoke runs write tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from shipworthy.benchmarks import distillation, training
from shipworthy.benchmarks.distillation import LABELS, Row, gain


def test_gains_are_paired_by_seed() -> None:
    """The gain is the mean of differences seed by seed, with Student's interval, by hand for three seeds."""
    base, other = (0.80, 0.82, 0.84), (0.81, 0.835, 0.85)
    rows = [Row(LABELS, i, a, 1.0, 0.25) for i, a in enumerate(base)]
    rows += [Row("kl", i, a, 1.0, 0.25) for i, a in enumerate(other)]
    mean, low, high = gain(rows, "kl")
    spread = (((1 - 7 / 6) ** 2 * 2 + (1.5 - 7 / 6) ** 2) / 2 / 3) ** 0.5
    assert mean == pytest.approx(7 / 6)
    assert low == pytest.approx(7 / 6 - 4.303 * spread)
    assert high == pytest.approx(7 / 6 + 4.303 * spread)


@pytest.mark.parametrize(("low", "high", "said"), [(0.1, 1, "wins"), (-1, -0.1, "loses"), (-0.1, 1, "unclear")])
def test_a_distance_wins_only_with_its_whole_interval(low: float, high: float, said: str) -> None:
    """An interval that holds zero is unclear."""
    assert distillation.verdict(low, high) == said


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.98, 1.1, "met"), (0.9, 0.96, "missed"), (0.96, 0.99, "unclear"), (None, 1, "unclear")]
)
def test_overhead_is_judged_by_its_interval(low: float | None, high: float, said: str) -> None:
    """The goal of 3 % is met or missed by the whole interval."""
    assert training.verdict((0.97, low, high)) == said


@pytest.mark.slow
def test_smoke_runs_write_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run end to end in their quick form; the student has a quarter of the MACs, and nothing is committed."""
    monkeypatch.setattr(sys, "argv", ["training.py", "--quick", "--out", str(tmp_path)])
    training.main()
    options = ["--seeds", "2", "--only", "kl", "--rows", str(tmp_path / "rows.jsonl")]
    monkeypatch.setattr(sys, "argv", ["distillation.py", "--quick", "--out", str(tmp_path), *options])
    distillation.main()
    found = json.loads((tmp_path / "distillation.json").read_text())
    assert {(row["way"], row["seed"]) for row in found["rows"]} == {(w, s) for w in (LABELS, "kl") for s in (0, 1)}
    assert all(row["macs_share"] == pytest.approx(0.25, abs=0.01) for row in found["rows"])
    assert len(json.loads((tmp_path / "training.json").read_text())["rows"]) == 3
