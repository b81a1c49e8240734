"""What is known of a value's range by the operator that makes it."""

from __future__ import annotations

import math

from torch.fx import Node

from ..models.graph import argument, aten

CLAMPS = frozenset((aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default))  # fmt: skip # noqa: E501
"""Operators that the grid of their result computes on the way: what lies outside is cut off."""

GATES = frozenset((aten.sigmoid.default, aten.hardsigmoid.default, aten.softmax.int))
"""Operators whose results lie between 0 and 1 by definition."""


def is_gate(value: Node) -> bool:
    """Whether a value lies between 0 and 1 by definition, so that its grid is known."""
    return value.target in GATES


def bounds_of(value: Node) -> tuple[float, float]:
    """Return the bounds that a clamp puts on a value; those of no clamp are infinite."""
    if value.target not in CLAMPS:
        return -math.inf, math.inf
    if value.target in (aten.relu.default, aten.relu6.default):
        return 0.0, 6.0 if value.target == aten.relu6.default else math.inf
    least, most = ("min_val", "max_val") if value.target == aten.hardtanh.default else ("min", "max")
    low, high = argument(value, least), argument(value, most)
    return (float(low) if low is not None else -math.inf), (float(high) if high is not None else math.inf)


__all__ = ["CLAMPS", "GATES", "bounds_of", "is_gate"]
