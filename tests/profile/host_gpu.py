"""CUDA and TensorRT on host memory, for what needs a driver to answer.

Enumerations, handles of errors and their texts are those of the real packages; memory, streams, graphs and the engine's
arithmetic are done here, by real addresses.
"""
# ruff: noqa: D102, N802, N815 - the names are CUDA's and TensorRT's own, and say what they do

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np


class HostCuda:
    """CUDA's runtime API on host memory: work is done when it is put on the stream, or kept while capturing.

    Attributes:
        failing: the call that runs out of memory.
        held: what was taken and not given back, by address or handle.
        log: the calls.
        kept: the work of a graph that is being captured.
    """

    def __init__(self, real: Any) -> None:
        self.real, self.failing, self.held, self.log = real, "", dict[int, Any](), list[str]()
        self.kept: list[Callable[[], Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what the real API has under this name, a call of it as one of these."""
        found = getattr(self.real, name)
        is_call = callable(found) and not isinstance(found, type) and name != "cudaGetErrorString"
        return partial(self._answer, name) if is_call else found

    def _answer(self, name: str, *values: Any) -> tuple[Any, ...]:
        self.log.append(name)
        if name == self.failing:
            self.kept = None
            return self.real.cudaError_t.cudaErrorMemoryAllocation, None
        given = getattr(type(self), f"_{name}", lambda *_: None)(self, *values)
        return self.real.cudaError_t.cudaSuccess, given

    def do(self, work: Callable[[], Any]) -> None:
        """Do work in the stream's order."""
        if self.kept is None:
            work()
        else:
            self.kept.append(work)

    def _hold(self, what: Any) -> int:
        key = ctypes.addressof(what) if isinstance(what, ctypes.Array) else 1000 + len(self.log)
        self.held[key] = what
        return key

    def _memory(self, size: int) -> int:
        return self._hold(ctypes.create_string_buffer(b"\xff" * size, size))

    def _drop(self, key: int) -> None:
        del self.held[key]

    def _cudaGetDevice(self) -> int:
        return 0

    def _cudaDeviceGetAttribute(self, attribute: Any, device: int) -> int:
        return {"Major": 8, "Minor": 6}[attribute.name[-5:]]

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:
        return self._hold("stream")

    def _cudaEventCreate(self) -> int:
        return self._hold("event")

    def _cudaEventElapsedTime(self, start: int, end: int) -> float:
        return 0.25

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> None:
        self.do(lambda: ctypes.memmove(to, source, size))

    def _cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
        self.kept = []

    def _cudaStreamEndCapture(self, stream: int) -> int:
        graph, self.kept = self.kept, None
        return self._hold(graph)

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        return self._hold(list(self.held[graph]))

    def _cudaGraphLaunch(self, ready: int, stream: int) -> None:
        for work in self.held[ready]:
            work()

    _cudaMalloc = _cudaMallocHost = _memory
    _cudaStreamDestroy = _cudaEventDestroy = _cudaGraphDestroy = _cudaGraphExecDestroy = _drop
    _cudaFree = _cudaFreeHost = _drop


class HostEngine:
    """An engine of y = 2 x + 1, its runtime configuration and its context in one; what it declares can be changed."""

    num_io_tensors, num_layers, device_memory_size_v2, num_optimization_profiles = 2, 1, 64, 1

    def __init__(self, trt: Any, api: HostCuda) -> None:
        self.trt, self.api, self.where = trt, api, dict[str, int]()
        self.declared: dict[str, tuple[int, ...]] = {"x": (-1, 4), "y": (-1, 4)}
        self.shape: tuple[int, ...] = ()
        self.kind, self.location = trt.DataType.FLOAT, trt.TensorLocation.DEVICE
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.accepts = self.capturable = True
        self.profile = -1

    def get_tensor_name(self, index: int) -> str:
        return list(self.declared)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name == "x" else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.kind

    def get_tensor_location(self, name: str) -> Any:
        return self.location

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 4), (2, 4), (8, 4)] if profile == 0 else [(16, 4), (16, 4), (32, 4)]

    def create_runtime_config(self) -> HostEngine:
        return self

    def create_execution_context(self, config: HostEngine) -> HostEngine:
        return config

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows = self.shape[0] if self.shape and name == "y" and self.declared["y"][-1] > 0 else -1
        return (rows, *self.declared[name][1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.where[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if self.accepts:
            self.api.do(self._compute)
        return self.accepts

    def _compute(self) -> None:
        x, y = (self._view(name) for name in ("x", "y"))
        y[...] = 2 * x + 1

    def _view(self, name: str) -> Any:
        size = int(np.prod(self.shape))
        return np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.where[name]))
