"""The figures of memory, each with what it holds and what it does not see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .devices import GPU_RUNTIMES
from .memory_limit import MB

BY_ALLOCATOR = "by ONNX Runtime's allocators, in a further process; inputs are not in it"
BY_ENGINE = "by the engine's own account"
BY_TORCH = "by torch's allocator on the GPU"
BY_DIFFERENCE = "resident peak of the runs less what was resident after opening, so that memory used again is missing"


@dataclass(frozen=True)
class Memory:
    """What processes held that ran one file; of several, figures are those of the one with the largest peak.

    Attributes:
        file_bytes: of the file and of those beside it that keep its weights.
        runtime_bytes: resident after the runtime was imported, before the file was opened.
        loaded_bytes: resident after the file was opened.
        peak_bytes: the most that a process ever held resident.
        failed: why a child ended early, or None. What it measured before is kept.
        fits: whether memory was enough, and the limit where there was one; None where a child failed otherwise.
        limit_bytes: the limit, or None.
        peaks: the peak of each process, in order.
        weights_bytes: what the weights take in the file, as they are stored there.
        activation_bytes: the most that runs took beyond weights: activations, outputs, workspace.
        activation_source: how that was found.
        device_bytes: the most that all processes on the GPU took beyond what they held before.
        device_process_bytes: the most that the process held on the GPU, by the driver's own account.
        sampling_interval_ms: the mean time between two looks at the GPU.
        blind_spots: what these figures do not see, or see too much.
    """

    file_bytes: int
    runtime_bytes: int | None = None
    loaded_bytes: int | None = None
    peak_bytes: int | None = None
    failed: str | None = None
    fits: bool | None = None
    limit_bytes: int | None = None
    peaks: tuple[int, ...] = ()
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    activation_source: str = ""
    device_bytes: int | None = None
    device_process_bytes: int | None = None
    sampling_interval_ms: float | None = None
    blind_spots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("peaks", "blind_spots"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list where it was read from JSON

    @property
    def added_bytes(self) -> int | None:
        """What opening and running the file added to the bare runtime at its peak."""
        if self.peak_bytes is None or self.runtime_bytes is None:
            return None
        return self.peak_bytes - self.runtime_bytes

    def lines(self) -> tuple[Line, ...]:
        """Return every figure by itself, with what it holds; those that were not taken have None and no note."""
        spread = f", from {min(self.peaks) / MB:.1f} MB in {len(self.peaks)} processes" if len(self.peaks) > 1 else ""
        rows = {
            "file": (self.file_bytes, "on the disk, weights beside it included"),
            "weights": (self.weights_bytes, "as the file stores them; a runtime may hold them packed anew, or twice"),
            "activations and workspace": (self.activation_bytes, self.activation_source),
            "runtime": (self.runtime_bytes, "resident once the runtime was imported, Python and numpy included"),
            "loaded": (self.loaded_bytes, "resident once the file was open"),
            "process peak": (self.peak_bytes, f"the most that was ever resident{spread}"),
            "device": (self.device_bytes, "the most that was taken on the GPU beyond what was taken before"),
            "device, process": (self.device_process_bytes, "the process's own part of it, as the driver tells"),
        }
        return tuple(Line(name, size, "" if size is None else note) for name, (size, note) in rows.items())


class Line(NamedTuple):
    """One figure: what it is, bytes or None, and what it holds."""

    name: str
    bytes: int | None
    note: str


def blind_spots(memory: Memory, runtime: str) -> tuple[str, ...]:
    """Say what the figures of a result do not see, or count too much."""
    interval = memory.sampling_interval_ms
    looked = "" if interval is None else f"{interval:.1f} ms"
    found = {
        "resident memory counts shared libraries in full, even where other processes share them": True,
        "what is reserved and not touched, or swapped out, is not resident; weights mapped from a file are only as far "
        "as they were read": True,
        "the figures are those of a Python process: a program without Python needs less": True,
        "opening a .pt2 file imports torch's exporter, which counts as loaded": runtime.startswith("torch"),
        "one process was looked at: there is no spread": len(memory.peaks) == 1,
        "the limit counts private memory once it is reserved, touched or not; code and mapped files count in the "
        "peak alone": memory.limit_bytes is not None,
        "weights were not told apart": memory.weights_bytes is None,
        "activations were not told apart": memory.activation_bytes is None,
        f"the GPU was looked at every {looked}: what is taken and given back in between is missed": bool(looked),
        "what other processes take or give back on the GPU meanwhile is counted": memory.device_bytes is not None,
        "the driver does not tell what the process alone holds on the GPU, as in containers": (
            memory.device_bytes is not None and memory.device_process_bytes is None
        ),
        "the GPU's memory was not looked at": runtime in GPU_RUNTIMES and memory.device_bytes is None,
    }
    return tuple(text for text, holds in found.items() if holds)
