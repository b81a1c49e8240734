"""The settings of a measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import BadPlan


@dataclass(frozen=True)
class Plan:
    """How to measure. Two results are comparable only when they were taken with equal plans.

    Attributes:
        batch: rows per inference, for inputs whose batch dimension is dynamic.
        threads: threads inside one operator.
        affinity: cores that the process is bound to while it measures, on Linux; none leaves it as it is.
        streams: inferences under way at once; more than 1 in `concurrency.py` alone.
        cuda_graph: on a GPU, capture the inference once and replay it.
        transfers: on a GPU, include copying inputs to it and outputs from it in a sample.
        warmup_s: seconds of warm-up at the least, for all runners of one measurement together.
        warmup_cap_s: seconds after which warm-up ends even though timings have not settled.
        least_s: seconds of sampling before precision or a decision may end it, so that what moves the machine from
            second to second is in the samples, and shows as dependence between them.
        budget_s: seconds of sampling at the most, for all runners of one measurement together.
        min_rounds: rounds before the precision rule may end sampling. The budget may end it earlier.
        max_rounds: rounds at the most.
        quantile: the percentile that precision is asked of, beside the ratios.
        precision: sampling ends when that interval's half width is at most this share of the median.
        same_margin: a ratio whose whole interval lies within 1 +- this share counts as "same".
        settle_runs: untimed runs of a runner right before each of its timed runs. They bring its weights back
            into the caches that its neighbours used, so that a sample is the runner's own warm steady state.
        spinning: let idle threads of ONNX Runtime wait busily. Off by default: in an interleaved measurement
            they would take time from the neighbour.
        seed: of random inputs and of the order of runners.
        shapes: of random inputs whose dynamic dimensions are not the batch alone, as pairs of a name and sizes; None
            stands for the batch.
        allow_fallback: measure on a GPU even what ONNX Runtime runs in part on the CPU; the result then says so.

    Raises:
        BadPlan: a setting is out of its range.
    """

    batch: int = 1
    threads: int = 1
    affinity: tuple[int, ...] = ()
    streams: int = 1
    cuda_graph: bool = False
    transfers: bool = False
    warmup_s: float = 0.5
    warmup_cap_s: float = 5.0
    least_s: float = 2.0
    budget_s: float = 20.0
    min_rounds: int = 200
    max_rounds: int = 100_000
    quantile: float = 50.0
    precision: float = 0.01
    same_margin: float = 0.02
    settle_runs: int = 1
    spinning: bool = False
    seed: int = 0
    shapes: tuple[tuple[str, tuple[int | None, ...]], ...] = ()
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "affinity", tuple(self.affinity))  # a list where it was read from JSON
        object.__setattr__(self, "shapes", tuple((name, tuple(shape)) for name, shape in self.shapes))
        for name, least in _WHOLE.items():
            _check_whole(name, getattr(self, name), least)
        for name, most in _REAL.items():
            _check_real(name, getattr(self, name), most)
        for core in self.affinity:
            _check_whole("affinity", core, 0)
        for name, shape in self.shapes:
            for size in shape:
                _check_whole(f"shapes[{name!r}]", 1 if size is None else size, 0)
        if not 0 < self.quantile < 100:
            raise BadPlan(f"plan.quantile: got {self.quantile!r}, wanted a number above 0 and below 100")
        if self.min_rounds > self.max_rounds:
            raise BadPlan(f"plan.min_rounds: got {self.min_rounds}, wanted at most max_rounds ({self.max_rounds})")
        if self.warmup_s > self.warmup_cap_s:
            raise BadPlan(f"plan.warmup_s: got {self.warmup_s}, wanted at most warmup_cap_s ({self.warmup_cap_s})")


_WHOLE = {"batch": 1, "threads": 1, "streams": 1, "min_rounds": 1, "max_rounds": 1, "settle_runs": 0, "seed": 0}
_SECONDS = ("warmup_s", "warmup_cap_s", "least_s", "budget_s")
_REAL = dict.fromkeys(_SECONDS, math.inf) | {"precision": 1.0, "same_margin": 1.0}


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadPlan(f"plan.{name}: got {value!r}, wanted a whole number of at least {least}")


def _check_real(name: str, value: object, most: float) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < most
    if not fits:
        upper = "" if math.isinf(most) else f" and below {most:g}"
        raise BadPlan(f"plan.{name}: got {value!r}, wanted a number of at least 0{upper}")
