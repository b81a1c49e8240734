"""Schemes of quantization: what of a model becomes integers; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

Scheme = Literal["int8", "dynamic", "int8-weights", "int4-weights"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

Integers = Literal["int8", "int8-weights", "int4-weights"]
"""The precision of a quantized file: what products are computed in, or what their weights are stored in."""
QUANTIZED: tuple[Integers, ...] = get_args(Integers)

WEIGHTS_ALONE: frozenset[str] = frozenset({"int8-weights", "int4-weights"})
"""They are for size: activations and arithmetic stay in floating point."""

SETTINGS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "dynamic": frozenset({"scheme", "keep_float", "weight_bits", "weights_by_error"}),
        "int8-weights": frozenset({"scheme", "keep_float"}),
        "int4-weights": frozenset({"scheme", "keep_float"}),
    }
)
"""What each scheme has a use for; `int8` has one for every setting."""


def precision_of(scheme: Scheme) -> Integers:
    """Return the precision of a file in a scheme; `dynamic` computes in int8 like the static one."""
    return "int8" if scheme == "dynamic" else scheme


def useless(scheme: Scheme, names: frozenset[str] | set[str]) -> str:
    """Say which of the settings that were given a scheme has no use for, and why; empty where there are none."""
    odd = sorted(names - SETTINGS[scheme]) if scheme in SETTINGS else []
    if not odd:
        return ""
    why = "ranges are found when the file runs" if scheme == "dynamic" else "activations stay in fp32"
    return f"{scheme}: has no {', '.join(odd)}, as {why} and nothing is trained; use int8, or leave it out"


__all__ = ["QUANTIZED", "SCHEMES", "SETTINGS", "WEIGHTS_ALONE", "Integers", "Scheme", "precision_of", "useless"]
