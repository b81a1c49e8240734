"""Small real ONNX files and a plan that ends soon."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from onnx import parser

from shipworthy.profile.plan import Plan

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write an ONNX graph given as text, and return its path."""

    def written(name: str, graph: str) -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(parser.parse_model(HEAD + graph), path)
        return path

    return written


@pytest.fixture
def chain(write: Callable[[str, str], Path]) -> Callable[[int], Path]:
    """Write a chain of so many matrix products, `(N, 64) -> (N, 64)`."""

    def written(layers: int) -> Path:
        names = ["x", *(f"h{i}" for i in range(1, layers)), "y"]
        body = "\n".join(f"{after} = MatMul({before}, w)" for before, after in pairwise(names))
        weights = f"float[64, 64] w = {{{', '.join(['0.0156'] * 64 * 64)}}}"
        return write(f"chain{layers}", f"main (float[N, 64] x) => (float[N, 64] y) <{weights}> {{\n{body}\n}}")

    return written


@pytest.fixture
def model(chain: Callable[[int], Path]) -> Path:
    """A small file with a dynamic batch."""
    return chain(1)


@pytest.fixture
def quick() -> Plan:
    """A plan that samples 30 rounds at the most."""
    return Plan(warmup_s=0.0, warmup_cap_s=0.05, budget_s=5.0, min_rounds=10, max_rounds=30, precision=0.5)
