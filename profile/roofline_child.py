"""The child process of `roofline.measure_roofline`: tries kernels and writes down what each reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .bandwidth import best_bandwidth, cache_sizes, levels
from .compute_peak import ort_dispatch_ns, ort_peaks, torch_dispatch_ns, torch_peaks
from .cuda_ceilings import cuda_bandwidth, cuda_dispatch_ns, cuda_peaks
from .environment import environment
from .errors import BadPlan, ProfileError, RuntimeAbsent

REQUEST, REPLY = "request.json", "reply.json"


def main(folder: Path) -> int:
    """Answer the request in `folder`; return the exit code."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        reply = _answer(**request)
    except BadPlan as fault:
        reply = {"refused": str(fault), "absent": isinstance(fault, RuntimeAbsent)}
    except Exception as fault:
        kind = "" if isinstance(fault, ProfileError) else f"{type(fault).__name__}: "
        reply = {"failed": f"{kind}{fault}"}
    (folder / REPLY).write_text(json.dumps(reply), encoding="utf-8")
    return 0


def _answer(place: str, types: list[str], threads: int, seconds: float) -> dict[str, Any]:
    """Try everything.

    Args:
        place: `ort-cpu`, `torch` or `cuda`.
        types: such as `float32` and `int8`.
        threads: of the processor.
        seconds: for each try.
    """
    if place == "cuda":
        cache, tries = cuda_bandwidth(seconds)
        memory = {"holds": {"L2": cache}, "memory": list(tries), "caches_known": True}
        return memory | {"peaks": list(cuda_peaks(tuple(types), seconds)), "dispatch_ns": cuda_dispatch_ns(seconds)}
    peaks, dispatch_ns = (ort_peaks, ort_dispatch_ns) if place == "ort-cpu" else (torch_peaks, torch_dispatch_ns)
    caches, known = cache_sizes()
    found = levels(caches, threads, environment()["memory_bytes"])
    return {
        "peaks": list(peaks(tuple(types), threads, seconds)),
        "dispatch_ns": dispatch_ns(threads, seconds),
        "holds": {level.name: level.holds_bytes for level in found if level.holds_bytes},
        "memory": [one for level in found for one in best_bandwidth(level, threads, seconds)],
        "caches_known": known,
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
