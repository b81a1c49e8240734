"""Independent harnesses to hold the profiler against: bare loops that use nothing of `profile/`."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Run = Callable[[], Any]

MODELS = {
    "resnet20": "reference:fashion-resnet20",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "resnet18": "torchvision:resnet18",
}
"""By name in the tables: what `shipworthy.load` takes; torchvision's have random weights."""


def model_file(name: str, folder: Path) -> Path:
    """Return the ONNX file of a model of `MODELS`, exported where it is not there yet."""
    path = folder / f"{name}.onnx"
    if not path.is_file():
        import shipworthy as sw

        folder.mkdir(parents=True, exist_ok=True)
        sw.to_onnx(sw.load(MODELS[name]), path)
    return path


def input_of(path: Path) -> tuple[str, NDArray[np.float32]]:
    """Return the name of a file's only input, and normal numbers for a batch of one."""
    import numpy as np

    declared = _session(path, "cpu").get_inputs()[0]
    shape = (1, *declared.shape[1:])
    return declared.name, np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def bare_session(path: Path, device: str = "cpu") -> Run:
    """Return one inference by `InferenceSession.run_with_iobinding`, one thread, all on the device.

    Args:
        path: an ONNX file with one input.
        device: cpu or cuda. On cuda the call returns when the outputs are there. Not run on a GPU yet.
    """
    import onnxruntime

    session, (name, x) = _session(path, device), input_of(path)
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(x, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    if device == "cpu":
        return partial(session.run_with_iobinding, binding)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _session(path: Path, device: str) -> Any:
    import onnxruntime

    if device == "cuda":
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise SystemExit(f"{path}: ONNX Runtime fell back to {session.get_providers()[0]}, wanted {provider}")
    return session


def timed(run: Run, count: int, settle: int = 0) -> list[int]:
    """Return the nanoseconds of so many runs, each after `settle` untimed ones."""
    found = []
    for _ in range(count):
        for _ in range(settle):
            run()
        began = time.perf_counter_ns()
        run()
        found.append(time.perf_counter_ns() - began)
    return found


def timed_for(run: Run, seconds: float) -> list[int]:
    """Return the nanoseconds of as many runs as so many seconds hold, at least one."""
    found: list[int] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        found += timed(run, 1)
    return found


# --- ONNX Runtime without Python: the wheel's own C library


# Places in the table of functions `OrtApi`, which only ever grows at its end.
_PLACES = {
    "GetErrorMessage": 2, "CreateEnv": 3, "CreateSession": 7, "Run": 9, "CreateSessionOptions": 10,
    "SetIntraOpNumThreads": 24, "SetInterOpNumThreads": 25, "CreateTensorWithDataAsOrtValue": 49,
    "GetTensorMutableData": 51, "CreateCpuMemoryInfo": 69,
}  # fmt: skip
_API_VERSION, _FLOAT, _WARNING = 1, 1, 2


class _ApiBase(ctypes.Structure):
    _fields_ = (
        ("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("get_version", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    )


def c_library() -> Path | None:
    """Return ONNX Runtime's C library in the installed package, or None: not all packages have it."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        return None
    return next(iter(sorted((Path(found.origin).parent / "capi").glob("libonnxruntime.so.*"))), None)


class CSession:
    """A session opened and run through ONNX Runtime's C functions alone, on the CPU with one thread.

    The Python package is not used, and its library not shared: what a binding adds to a run is absent here. Nothing is
    released: a process opens few of them.

    Args:
        library: see `c_library`.
        path: an ONNX file with one input, of floats.
        name: of the input.
        x: its value; kept, since the session reads it in place.
        output: the output's name; it is of floats too.
    """

    def __init__(self, library: Path, path: Path, name: str, x: NDArray[np.float32], output: str) -> None:
        loaded = ctypes.CDLL(str(library))
        loaded.OrtGetApiBase.restype = ctypes.POINTER(_ApiBase)
        self._table = ctypes.cast(
            loaded.OrtGetApiBase().contents.get_api(_API_VERSION), ctypes.POINTER(ctypes.c_void_p)
        )
        environment, options, memory = (ctypes.c_void_p() for _ in range(3))
        self._session, self._x, self._value, self._output = ctypes.c_void_p(), x, ctypes.c_void_p(), ctypes.c_void_p()
        self._call("CreateEnv", ctypes.c_int(_WARNING), b"bare", ctypes.byref(environment))
        self._call("CreateSessionOptions", ctypes.byref(options))
        self._call("SetIntraOpNumThreads", options, ctypes.c_int(1))
        self._call("SetInterOpNumThreads", options, ctypes.c_int(1))
        self._call("CreateSession", environment, str(path).encode(), options, ctypes.byref(self._session))
        self._call("CreateCpuMemoryInfo", ctypes.c_int(0), ctypes.c_int(0), ctypes.byref(memory))
        shape = (ctypes.c_int64 * x.ndim)(*x.shape)
        self._call(
            "CreateTensorWithDataAsOrtValue", memory, ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(x.nbytes),
            shape, ctypes.c_size_t(x.ndim), ctypes.c_int(_FLOAT), ctypes.byref(self._value),
        )  # fmt: skip
        self.run = self._prepared(name, output)

    def first_outputs(self, count: int) -> list[float]:
        """Return the first numbers of the last run's output."""
        data = ctypes.POINTER(ctypes.c_float)()
        self._call("GetTensorMutableData", self._output, ctypes.byref(data))
        return data[:count]

    def _prepared(self, name: str, output: str) -> Run:
        """Return a run with its arguments in place; the first makes the output, later ones write into it."""
        one = ctypes.c_size_t(1)
        run = self._function("Run")
        ins, outs = (ctypes.c_char_p * 1)(name.encode()), (ctypes.c_char_p * 1)(output.encode())
        values, results = (ctypes.c_void_p * 1)(self._value.value), (ctypes.c_void_p * 1)(None)
        call = partial(run, self._session, None, ins, values, one, outs, one, results)
        self._check("Run", call())
        self._output = ctypes.c_void_p(results[0])
        return call

    def _function(self, name: str) -> Callable[..., int | None]:
        prototype = ctypes.CFUNCTYPE(ctypes.c_void_p)
        return prototype(self._table[_PLACES[name]])

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, self._function(name)(*arguments))

    def _check(self, name: str, status: int | None) -> None:
        if status is None:
            return
        message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(self._table[_PLACES["GetErrorMessage"]])(status)
        raise SystemExit(f"ONNX Runtime's C function {name} failed: {(message or b'').decode()}")
