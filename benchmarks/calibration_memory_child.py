"""The child process of `calibration_memory.py`: quantizes one file, and writes down its own memory.

Imports nothing but what the tool that it is asked for needs: what it imports, it measures.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from shipworthy.export.npz_stream import open_npz
from shipworthy.profile.child import write_reply
from shipworthy.profile.memory_limit import lacks_memory, limited, status_bytes

REQUEST = "request.json"
_THREADS = 16
"""At most so many start while the limit holds."""


def main(folder: Path) -> int:
    """Answer the request in `folder`; return the exit code."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    work = (_ours if request["tool"] == "shipworthy" else _theirs)(request, folder / "int8.onnx")
    before = status_bytes("VmRSS") or 0
    with suppress(OSError):  # where the system cannot forget the peak of the imports, it counts too
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    began = time.perf_counter()
    try:
        with limited(request["limit_bytes"], before, _THREADS):
            work()
    except Exception as fault:
        lack = isinstance(fault, MemoryError) or lacks_memory(str(fault))
        write_reply(folder, {"failed": f"{type(fault).__name__}: {fault}", "fits": False if lack else None})
        return 0
    seconds = time.perf_counter() - began
    write_reply(folder, {"before_bytes": before, "peak_bytes": status_bytes("VmHWM"), "seconds": seconds})
    return 0


def _ours(request: dict[str, Any], path: Path) -> Callable[[], object]:
    importlib.import_module("onnxruntime")
    from shipworthy.export.int8 import Int8Settings
    from shipworthy.export.quantize_file import quantize_onnx

    settings = Int8Settings(method=request["method"])
    return lambda: quantize_onnx(request["model"], path, request["examples"], settings=settings)


def _theirs(request: dict[str, Any], path: Path) -> Callable[[], object]:
    """`onnxruntime.quantization` as its examples call it: one example at a time, read as it is asked for."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    feeds = _one_by_one(request["examples"])

    class _Reader:
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    return lambda: quantize_static(
        request["model"], path, _Reader(), per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[request["method"]],
    )  # fmt: skip


def _one_by_one(path: str) -> Iterator[dict[str, Any]]:
    for part in open_npz(path)():
        count = len(next(iter(part.values())))
        yield from ({name: array[place : place + 1] for name, array in part.items()} for place in range(count))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
