"""How long each operator of a captured graph takes, one example at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import Interpreter, Node

from ..models.model import Model

WARM_UP = 3
RUNS = 31


class _Clock(Interpreter):
    """Run the graph and note how long each operator took."""

    def __init__(self, model: Model, clock: Callable[[], int]) -> None:
        super().__init__(model.module)
        self._clock = clock
        self.samples_ns: dict[str, list[int]] = {}

    def run_node(self, n: Node) -> Any:
        """Time one node, without what the interpreter itself takes."""
        if n.op != "call_function" or not callable(n.target):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        began = self._clock()
        result = n.target(*args, **kwargs)
        self.samples_ns.setdefault(n.name, []).append(self._clock() - began)
        return result


def operator_microseconds(model: Model, clock: Callable[[], int] = time.perf_counter_ns) -> dict[str, float]:
    """Return the median time of every operator, by its name in the graph.

    The whole graph runs again and again, so that whatever disturbs the machine disturbs all operators alike. One
    thread, one example (a model of a fixed batch: that batch). It is eager torch on this machine's CPU: a stand-in for
    the runtime that will run the exported file, which fuses operators and may rank them otherwise.
    """
    x = [each[:1] if model.dynamic_batch else each for each in model.example_inputs]
    timed = _Clock(model, clock)
    with torch.inference_mode(), _one_thread():
        for _ in range(WARM_UP + RUNS):
            timed.run(*(each.clone() for each in x))
    return {name: statistics.median(samples[WARM_UP:]) / 1000 for name, samples in timed.samples_ns.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
