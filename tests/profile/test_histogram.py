"""The terminal histogram."""

from __future__ import annotations

import re

import numpy as np

from shipworthy.profile.histogram import histogram


def counts(lines: list[str]) -> list[int]:
    """Read the counts at the ends of the lines."""
    return [int(line.rsplit(" ", 1)[1]) for line in lines]


def test_every_sample_is_counted_and_the_tail_is_shown() -> None:
    """No sample is dropped: the counts add up, and the last line names the slowest sample."""
    samples = [int(v) for v in np.random.default_rng(0).lognormal(14, 0.1, 1000)] + [90_000_000]
    lines = histogram(samples, bins=8, width=20)
    assert sum(counts(lines)) == len(samples)
    assert len(lines) == 9
    assert lines[-1].startswith("above, to")
    assert "90 ms" in lines[-1]
    assert max(len(re.findall("#", line)) for line in lines) == 20
    assert all(line.isascii() for line in lines)


def test_degenerate_samples() -> None:
    """No samples give no lines; equal samples give one."""
    assert histogram([]) == []
    assert counts(histogram([5_000_000] * 7)) == [7]
    assert sum(counts(histogram([1_000_000, 2_000_000]))) == 2
