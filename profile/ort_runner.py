"""Run an ONNX file in ONNX Runtime. Imports it only when a file is opened."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, final

from .devices import cuda_absent
from .errors import BadPlan, ProfileError, RuntimeAbsent
from .inputs import Array, InputSpec, check_inputs, random_inputs
from .plan import Plan


@dataclass(frozen=True)
class Device:
    """A place where ONNX Runtime runs a file."""

    runtime: str
    provider: str
    device: str


CPU = Device("ort-cpu", "CPUExecutionProvider", "cpu")
CUDA = Device("ort-cuda", "CUDAExecutionProvider", "cuda")


@final
class OrtRunner:
    """Runs a file through bound inputs and outputs, so that a sample is the session's own time.

    On `CUDA` inputs and outputs stay on the GPU and a sample ends when the outputs are there; that path has not been
    run on a GPU yet.

    Raises:
        RuntimeAbsent: onnxruntime is not installed, or the device is not there. A fallback to the CPU counts as absent.
        BadPlan: no such file, not a model, or inputs that do not fit.
    """

    def __init__(self, target: Any, device: Device, plan: Plan, inputs: Any = None) -> None:
        path = _path(target, device.runtime)
        if inputs is not None and not isinstance(inputs, Mapping):
            raise BadPlan(f"{path}: got inputs as a {type(inputs).__name__}, wanted a dict of arrays by input name")
        ort = import_ort(device)
        self._session: Any = open_session(ort, path, device, plan)
        specs = [InputSpec(i.name, i.type, _shape(i.shape)) for i in self._session.get_inputs()]
        if inputs is None:
            feeds = random_inputs(specs, plan.batch, plan.seed, str(path))
        else:
            feeds = check_inputs(specs, inputs, plan.batch, str(path))
        self.run: Callable[[], Any] = _prepare(ort, self._session, device, feeds)
        self.name, self.file, self.sha256 = path.name, str(path), _sha256(path)
        self.runtime, self.plan = device.runtime, plan
        self.inputs = "random" if inputs is None else "given"
        self.details: dict[str, Any] = _details(ort, self._session, plan, feeds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        """Drop the session, and with it its memory and threads."""
        self._session = None
        self.run = partial(_closed, self.name)


def import_ort(device: Device) -> Any:
    """Import onnxruntime, for a GPU with its libraries loaded first.

    Raises:
        RuntimeAbsent: it is not installed, or there is no GPU for `CUDA`.
    """
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as fault:
        message = (
            f"runtime {device.runtime}: onnxruntime is not installed; pip install onnxruntime (or onnxruntime-gpu)"
        )
        raise RuntimeAbsent(message) from fault
    if device is CUDA:
        absent = cuda_absent()
        if absent is not None:
            raise RuntimeAbsent(f"runtime {device.runtime}: {absent}")
        if device.provider not in ort.get_available_providers():
            raise RuntimeAbsent("runtime ort-cuda: onnxruntime has no CUDA; pip install onnxruntime-gpu in its place")
        ort.preload_dlls()
    return ort


def open_session(ort: Any, path: Path, device: Device, plan: Plan) -> Any:
    """Open a session on exactly the device asked for.

    Raises:
        BadPlan: ONNX Runtime cannot load the file.
        RuntimeAbsent: it fell back to another device.
    """
    try:
        session = ort.InferenceSession(str(path), _options(ort, plan), providers=[device.provider])
    except Exception as fault:
        raise BadPlan(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {fault}") from fault
    got = session.get_providers()[0]
    if got != device.provider:
        raise RuntimeAbsent(f"runtime {device.runtime}: ONNX Runtime fell back to {got}; is the GPU's driver in order?")
    return session


def _options(ort: Any, plan: Plan) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = plan.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(plan.spinning)))
    return options


def _prepare(ort: Any, session: Any, device: Device, feeds: dict[str, Array]) -> Callable[[], Any]:
    """Return one inference as a call without arguments. Only tensors can be bound; maps and sequences are fetched."""
    if not all(output.type.startswith("tensor(") for output in session.get_outputs()):
        return partial(session.run, None, feeds)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device.device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device.device)
    run = partial(session.run_with_iobinding, binding)
    return run if device is CPU else partial(_run_and_wait, run, binding)


def _run_and_wait(run: Callable[[], Any], binding: Any) -> None:
    run()
    binding.synchronize_outputs()


def _closed(name: str) -> None:
    raise ProfileError(f"{name}: its runner is closed; open it again with open_runner")


def _details(ort: Any, session: Any, plan: Plan, feeds: dict[str, Array]) -> dict[str, Any]:
    return {
        "version": ort.__version__,
        "providers": list(session.get_providers()),
        "intra_op_threads": plan.threads,
        "inter_op_threads": 1,
        "spinning": plan.spinning,
        "transfers": "not included: inputs and outputs are bound on the device",
        "input_shapes": {name: list(array.shape) for name, array in feeds.items()},
    }


def _path(target: Any, runtime: str) -> Path:
    if not isinstance(target, str | os.PathLike):
        raise BadPlan(f"{target!r}: runtime {runtime} takes a path; use torch for a module, else callable")
    path = Path(target)
    if not path.is_file():
        raise BadPlan(f"{path}: no such file; wanted an ONNX file")
    return path


def _shape(sizes: list[Any]) -> tuple[int | str | None, ...]:
    return tuple(size if isinstance(size, int | str) else None for size in sizes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
