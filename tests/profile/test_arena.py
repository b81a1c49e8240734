"""What ONNX Runtime's allocators hold, from real traces and from invented ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shipworthy.profile.arena import Arena, arena_of, trace_arena
from shipworthy.profile.plan import Plan

CPU = ["CPUExecutionProvider"]


def node(in_use: int, delta: int, peak: int, held: int, provider: str = "cpu") -> Mapping[str, Any]:
    """Return the event of one node; the profiler writes numbers as text."""
    numbers = {"mem_bytes_in_use": in_use, "mem_in_use_delta": delta, "mem_in_use_peak": peak, "mem_arena_held": held}
    return {"cat": "Node", "args": {"provider": provider} | {name: str(value) for name, value in numbers.items()}}


def test_activations_are_what_comes_on_top_of_the_first_look() -> None:
    """What is in use before the first node is weights; workspace that is given back within a node counts."""
    events = [
        {"cat": "Session", "args": {}},
        node(120, 20, 120, 256),
        node(150, 30, 400, 512),
        node(130, -20, 400, 512),
    ]
    assert arena_of(events) == Arena(100, 300, 512)


def test_a_peak_of_opening_is_not_one_of_running() -> None:
    """A peak that stands before the first node ends and never rises is that of packing weights."""
    assert arena_of([node(120, 20, 900, 1024), node(150, 30, 900, 1024)]) == Arena(100, 50, 1024)


def test_allocators_add_up() -> None:
    """Every provider has its own; a trace without memory has no figure."""
    events = [node(120, 20, 120, 256), node(1010, 10, 1010, 2048, "cuda"), node(120, 0, 120, 256)]
    assert arena_of(events) == Arena(1100, 30, 2304)
    assert arena_of([{"cat": "Node", "args": {"provider": "cpu"}}]) is None
    assert arena_of([]) is None


def test_a_real_activation_is_found(write: Callable[[str, str], Path]) -> None:
    """Hidden tensors grow with the batch, and are counted to 64 KiB."""
    path = write(
        "hidden",
        """main (float[N, 1] x) => (float[N, 1] y) <int64[1] axes = {1}> {
            h = Concat <axis = 1> (x, x, x, x, x, x, x, x)
            r = Exp(h)
            y = ReduceMax <keepdims = 1> (r, axes)
        }""",
    )
    rows = (1 << 20) // 8
    small, large = (trace_arena(path, CPU, Plan(batch=n * rows), None) for n in (1, 2))
    assert small is not None
    assert large is not None
    assert abs(large.activation_bytes - 2 * small.activation_bytes) < 1 << 16
    assert large.activation_bytes >= 2 * rows * 8 * 4
    assert large.held_bytes >= large.activation_bytes + large.weights_bytes
