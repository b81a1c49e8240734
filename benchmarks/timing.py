"""Time ONNX files against each other: with this package's profiler, and with a bare loop that uses nothing of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shipworthy.profile.measure import Measurement


def profiled(paths: Mapping[str, Path], x: NDArray[np.float32], budget_s: float) -> dict[str, Measurement]:
    """Measure all files interleaved by `shipworthy.profile`, batch 1, one thread."""
    from shipworthy.profile.measure import interleave
    from shipworthy.profile.plan import Plan
    from shipworthy.profile.runners import open_runner

    plan = Plan(batch=1, threads=1, budget_s=budget_s, min_rounds=500)
    with ExitStack() as stack:
        runners = [stack.enter_context(open_runner(path, "ort-cpu", plan, {"x": x})) for path in paths.values()]
        return dict(zip(paths, interleave(runners, plan), strict=True))


def bare_loop(paths: Mapping[str, Path], x: NDArray[np.float32], rounds: int) -> dict[str, list[int]]:
    """Time `InferenceSession.run` and nothing else: one thread, order drawn anew each round.

    Each timed run follows an untimed one of the same file, so that its weights are in the caches again.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runs: dict[str, Callable[[], Any]] = {}
    for name, path in paths.items():
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        runs[name] = partial(session.run, None, {"x": x})
    return timed_rounds(runs, rounds, time.perf_counter_ns)


def timed_rounds(runs: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], int]) -> dict[str, list[int]]:
    """Return the time of each call in each round; a twentieth of the rounds before them warm up."""
    order, chance = list(runs), random.Random(0)
    found: dict[str, list[int]] = {name: [] for name in runs}
    for index in range(-max(1, rounds // 20), rounds):
        chance.shuffle(order)
        for name in order:
            runs[name]()
            began = clock()
            runs[name]()
            ended = clock()
            if index >= 0:
                found[name].append(ended - began)
    return found
