"""Where parity runs a candidate: the profiler's runtimes, with its rule on fallbacks. Not run on a GPU yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.engine_manifest import read_manifest
from ..export.parity import Comparing, Parity, parity
from ..export.parity_runs import Given, precision_of
from ..export.parity_taps import Call
from ..models.errors import BadInput
from ..profile.engine_file import RTX, TENSORRT
from ..profile.engine_runner import EngineRunner
from ..profile.ort_session import CUDA, check_placement, import_ort, open_session, placement, tells_placement
from ..profile.ort_session import TENSORRT as ORT_TENSORRT
from ..profile.plan import Plan

Array = NDArray[Any]

ENGINES = {"rtx": RTX, "tensorrt": TENSORRT}
PROVIDERS = {"ort-cuda": CUDA, "ort-tensorrt": ORT_TENSORRT}
RUNTIMES = ("ort-cpu", *PROVIDERS, *ENGINES)
_FORMATS = {"INT8": "int8", "INT4": "int8", "FP8": "int8", "FP4": "int8", "BF16": "bf16", "HALF": "fp16"}


@dataclass(frozen=True, eq=False)
class OnRuntime:
    """A runtime that files are run in.

    Attributes:
        runtime: one of `RUNTIMES`.
        allow_fallback: let ONNX Runtime run nodes on the CPU; `notes` then says which.
        notes: what a reader should know, filled while files are opened.
    """

    runtime: str
    allow_fallback: bool = False
    notes: list[str] = field(default_factory=list)

    def open_file(self, path: Path) -> Call:
        """Open an ONNX file in ONNX Runtime on the device.

        Raises:
            RuntimeAbsent: there is no such device, or ONNX Runtime does not reach it.
            BadPlan: nodes of the file would run on the CPU.
        """
        device = PROVIDERS[self.runtime]
        ort, plan = import_ort(device), Plan(allow_fallback=self.allow_fallback)
        session = open_session(ort, path, device, plan)
        if tells_placement(ort):
            self._note(check_placement(placement(session), device, path, self.allow_fallback))
        return lambda feeds: _checked(session, feeds)

    def _note(self, said: str | None) -> None:
        if said and not self.notes:
            self.notes.append(f"fallback: {said}")


def parity_on(
    reference: Any,
    candidate: Any,
    where: OnRuntime,
    samples: Mapping[str, Array] | None = None,
    precision: str | None = None,
    how: Comparing | None = None,
) -> Parity:
    """Compare two forms of a model, the candidate in any of the profiler's runtimes.

    A GPU multiplies fp32 numbers in TF32 unless told otherwise, so fp32 files are judged by that there.

    Args:
        reference: a captured model, an ONNX file or an engine.
        candidate: an ONNX file, or for `tensorrt` and `rtx` an engine.
        where: the runtime.
        samples: as in `parity`.
        precision: as in `parity`.
        how: as in `parity`; its `open_file` is the runtime's.

    Raises:
        BadInput: an unknown runtime, an engine where a file is wanted or the other way round; see also `parity`.
        RuntimeAbsent: the runtime or its device is not here.
        BadPlan: nodes of the file would run on the CPU.
    """
    runtime = where.runtime
    if runtime not in RUNTIMES:
        raise BadInput(f"runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    if is_engine(candidate) != (runtime in ENGINES):
        raise BadInput(f"{candidate}: runtime {runtime} takes {'an engine' if runtime in ENGINES else 'an ONNX file'}")
    truth, how = engine_call(Path(reference)) if is_engine(reference) else reference, how or Comparing()
    if runtime == "ort-cpu":
        return parity(truth, candidate, samples, precision, how)
    if runtime in ENGINES:
        known = precision or engine_precision(read_manifest(Path(candidate))["precisions"])
        return parity(truth, engine_call(Path(candidate), runtime), samples, known, how)
    known = precision or _on_gpu(precision_of(candidate))
    found = parity(truth, candidate, samples, known, replace(how, open_file=where.open_file))
    return replace(found, notes=(*found.notes, *where.notes))


def is_engine(target: object) -> bool:
    """Whether a target is an engine file, by its name."""
    return isinstance(target, str | Path) and str(target).endswith((".engine", ".plan"))


def engine_call(path: Path, flavour: str | None = None) -> Given:
    """Return a callable that runs an engine, in parts of the largest batch that it takes.

    Raises:
        BadInput: there is no manifest beside it.
    """
    manifest = read_manifest(path)
    kind, most = ENGINES[flavour or manifest["flavour"]], _most(manifest)

    def call(feeds: Mapping[str, Array]) -> Sequence[Array]:
        count = len(next(iter(feeds.values())))
        parts = []
        for start in range(0, count, most or count):
            part = {name: array[start : start + (most or count)] for name, array in feeds.items()}
            with EngineRunner(path, kind, Plan(batch=len(next(iter(part.values())))), part) as runner:
                parts.append(list(runner.outputs().values()))
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return call


def engine_precision(layers: Mapping[str, Mapping[str, int]]) -> str:
    """Return what an engine is judged by: the lowest precision of its layers, as its manifest counts them."""
    formats = " ".join(name for counts in layers.values() for name in counts)
    found = next((key for mark, key in _FORMATS.items() if mark in formats), "fp32")
    return _on_gpu(found)


def _most(manifest: Mapping[str, Any]) -> int | None:
    """Return the largest batch of the optimization profile; None where no input is dynamic."""
    largest = [bounds[2][0] for bounds in manifest.get("profiles", {}).values() if bounds[2]]
    return min(largest, default=None)


def _on_gpu(precision: str) -> str:
    return "tf32" if precision == "fp32" else precision


def _checked(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    try:
        return [np.asarray(value) for value in session.run(None, dict(feeds))]
    except Exception as fault:
        wanted = {one.name: (one.type, one.shape) for one in session.get_inputs()}
        raise BadInput(f"the samples do not fit the model's inputs {wanted}: {str(fault).splitlines()[0]}") from fault


__all__ = ["RUNTIMES", "OnRuntime", "engine_call", "engine_precision", "is_engine", "parity_on"]
