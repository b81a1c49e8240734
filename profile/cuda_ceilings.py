"""Measure a GPU's ceilings through torch: memory, cache, and products of matrices. Not run on a GPU yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .compute_peak import import_torch
from .devices import cuda_absent
from .errors import RuntimeAbsent

SIZES = (2048, 4096, 8192)
_LAUNCHES = 1000
_BATCH = 8


def import_cuda_torch() -> Any:
    """Import torch with its CUDA device.

    Raises:
        RuntimeAbsent: there is no GPU, or torch is not installed or cannot use it.
    """
    absent = cuda_absent()
    if absent is not None:
        raise RuntimeAbsent(f"roofline of a GPU: {absent}")
    torch = import_torch()
    if not torch.cuda.is_available():
        raise RuntimeAbsent(f"roofline of a GPU: torch {torch.__version__} has no CUDA; install a CUDA build")
    return torch


def cuda_bandwidth(seconds: float) -> tuple[int, Iterator[dict[str, Any]]]:
    """Return the bytes of the L2 cache, and tries there (with half of it) and in the GPU's memory.

    Raises:
        RuntimeAbsent: see `import_cuda_torch`.
    """
    torch = import_cuda_torch()
    cache = int(torch.cuda.get_device_properties(0).L2_cache_size)
    beyond = min(max(1 << 30, 8 * cache), torch.cuda.mem_get_info()[0] // 8)
    places = (("L2", cache // 2), ("device memory", beyond))
    return cache, (one for level, size in places for one in _tries(torch, level, size, seconds))


def cuda_peaks(types: tuple[str, ...], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield tries of square products; float32 without TF32, float16 and bfloat16 and int8 on the tensor cores.

    Raises:
        RuntimeAbsent: see `import_cuda_torch`.
    """
    torch = import_cuda_torch()
    torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in types:
        for size in SIZES:
            a, b = (torch.ones(size, size, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
            # The int8 kernel takes its second matrix by columns.
            run = partial(torch._int_mm, a, b.t()) if dtype == "int8" else partial(torch.mm, a, b)
            name = f"{'_int_mm' if dtype == 'int8' else 'mm'} {size}"
            yield {"dtype": dtype, "kernel": name, "flops_per_s": 2 * size**3 / _shortest_s(torch, run, seconds)}


def cuda_dispatch_ns(seconds: float) -> float:
    """Return the nanoseconds that torch takes to launch one kernel with next to nothing to do.

    Raises:
        RuntimeAbsent: see `import_cuda_torch`.
    """
    torch = import_cuda_torch()
    x = torch.ones(1, device="cuda")
    run: Callable[[], Any] = partial(_repeat, partial(torch.neg, x), _LAUNCHES // _BATCH)
    return _shortest_s(torch, run, seconds) / (_LAUNCHES // _BATCH) * 1e9


def _tries(torch: Any, level: str, size: int, seconds: float) -> Iterator[dict[str, Any]]:
    a, b, out = (torch.ones(size // 12, device="cuda") for _ in range(3))
    kernels = {
        "add: read two, write one": (partial(torch.add, a, b, out=out), 12),
        "copy: read one, write one": (partial(out.copy_, a), 8),
    }
    for name, (run, width) in kernels.items():
        rate = width * a.numel() / _shortest_s(torch, run, seconds)
        yield {"level": level, "kernel": name, "bytes": width * a.numel(), "bytes_per_s": rate}


def _shortest_s(torch: Any, run: Callable[[], Any], seconds: float) -> float:
    """Return the seconds of one run in the fastest batch, by the GPU's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _repeat(run, _BATCH)
    torch.cuda.synchronize()
    best, batches, until = float("inf"), 0, time.perf_counter() + seconds
    while batches < 3 or time.perf_counter() < until:
        begin.record()
        _repeat(run, _BATCH)
        end.record()
        end.synchronize()
        best, batches = min(best, begin.elapsed_time(end) / 1e3 / _BATCH), batches + 1
    return best


def _repeat(run: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        run()
