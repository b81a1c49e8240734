"""What ONNX Runtime's allocators hold for activations and workspace, from the trace of its profiler.

As 1.31 writes it, each node's event tells what the allocator of its provider has in use, and the most so far, workspace
that a kernel takes and gives back included. In the first inference the memory in use before the first node is that of
weights; what comes on top is outputs, activations and workspace. Inputs are not in it: they are allocated elsewhere.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ort_binding import feeds_of
from .ort_session import CPU, session_options
from .plan import Plan

_RUNS = 3


@dataclass(frozen=True)
class Arena:
    """What all allocators of a session held together.

    Attributes:
        weights_bytes: before the first node ran: weights as the kernels keep them, often packed anew.
        activation_bytes: the most that inferences had in use beside them.
        held_bytes: the most that was taken from the system for both; in steps, and not all of it is used.
    """

    weights_bytes: int
    activation_bytes: int
    held_bytes: int


def arena_of(events: Iterable[Mapping[str, Any]]) -> Arena | None:
    """Read the trace of a session from its first inference on.

    Returns:
        None where the trace tells of no memory.
    """
    nodes = [event["args"] for event in events if "mem_bytes_in_use" in (event.get("args") or {})]
    providers = dict.fromkeys(str(node.get("provider", "")) for node in nodes)
    parts = [_of_provider([node for node in nodes if node.get("provider", "") == name]) for name in providers]
    if not parts:
        return None
    return Arena(*(sum(getattr(part, name) for part in parts) for name in Arena.__dataclass_fields__))


def _of_provider(nodes: list[Mapping[str, Any]]) -> Arena:
    first = nodes[0]
    before = int(first["mem_bytes_in_use"]) - int(first["mem_in_use_delta"])
    peaks = [int(node["mem_in_use_peak"]) for node in nodes]
    in_use = max(int(node["mem_bytes_in_use"]) for node in nodes)
    # A peak that was there before the first node had begun is that of opening the file.
    rose = peaks[-1] > peaks[0] or peaks[0] == int(first["mem_bytes_in_use"])
    most = peaks[-1] if rose else in_use
    return Arena(before, max(0, most - before), max(int(node["mem_arena_held"]) for node in nodes))


def trace_arena(path: Path, providers: list[str], plan: Plan, inputs: Mapping[str, Any] | None) -> Arena | None:
    """Run a file a few times under the profiler and read what its allocators held.

    Args:
        path: an ONNX file.
        providers: of ONNX Runtime, in order.
        plan: batch, threads and seed.
        inputs: arrays by name; random if None.

    Returns:
        None where this ONNX Runtime does not tell.

    Raises:
        BadPlan: inputs that do not fit.
        Exception: whatever ONNX Runtime raises.
    """
    ort: Any = importlib.import_module("onnxruntime")
    with tempfile.TemporaryDirectory(prefix="arena-") as folder:
        session = ort.InferenceSession(str(path), _options(ort, plan, folder), providers=providers)
        feeds = feeds_of(session, plan, inputs, str(path))
        for _ in range(_RUNS):
            session.run(None, feeds)
        trace = Path(session.end_profiling())
        return arena_of(json.loads(trace.read_text(encoding="utf-8")))


def _options(ort: Any, plan: Plan, folder: str) -> Any:
    options = session_options(ort, CPU, plan)
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "trace")
    return options
