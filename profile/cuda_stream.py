"""As much of CUDA's runtime API as measuring needs, through cuda-bindings and without torch. Not run on a GPU yet."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, final

import numpy as np

from .devices import cuda_absent
from .errors import ProfileError, RuntimeAbsent
from .inputs import Array

_NO_DEVICE = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorInitializationError")


def import_cuda(runtime: str) -> Any:
    """Import CUDA's runtime API.

    Args:
        runtime: for messages.

    Raises:
        RuntimeAbsent: there is no driver or no GPU, or cuda-bindings is not installed.
    """
    absent = cuda_absent()
    if absent is not None:
        raise RuntimeAbsent(f"runtime {runtime}: {absent}")
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as fault:
        raise RuntimeAbsent(f"runtime {runtime}: cuda-bindings is not installed; pip install cuda-bindings") from fault


@final
class Cuda:
    """A stream, and what was taken from the GPU for it. `close` gives everything back, the latest first.

    Raises:
        RuntimeAbsent: the driver is too old for this cuda-bindings, or sees no GPU.
        ProfileError: any other error of CUDA, here and in every method.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        self._owned = ExitStack()
        # The default stream would wait for all others.
        self._stream = self._ask(api.cudaStreamCreateWithFlags(api.cudaStreamNonBlocking))
        self._own(api.cudaStreamDestroy, self._stream)
        self._open = True

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def capability(self) -> str:
        """Return the compute capability of the GPU in use, such as `8.6`."""
        kinds, device = self._api.cudaDeviceAttr, self._ask(self._api.cudaGetDevice())
        wanted = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        return ".".join(str(int(self._ask(self._api.cudaDeviceGetAttribute(one, device)))) for one in wanted)

    def device_memory(self, size: int) -> int:
        """Return the address of `size` bytes on the GPU."""
        address = self._ask(self._api.cudaMalloc(max(1, size)))
        self._own(self._api.cudaFree, address)
        return int(address)

    def pinned_like(self, array: Array) -> Array:
        """Return a copy of an array in page-locked memory of the host; it is gone once this is closed."""
        address = self._ask(self._api.cudaMallocHost(max(1, array.nbytes)))
        self._own(self._api.cudaFreeHost, address)
        memory = (ctypes.c_char * max(1, array.nbytes)).from_address(int(address))
        pinned: Array = np.ndarray(array.shape, array.dtype, buffer=memoryview(memory))
        pinned[...] = array
        return pinned

    def send(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the GPU, in the stream's order."""
        self._copy(address, array.ctypes.data, array.nbytes, self._api.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def fetch(self, array: Array, address: int) -> None:
        """Copy from the GPU into a contiguous array, in the stream's order."""
        self._copy(array.ctypes.data, address, array.nbytes, self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def synchronize(self) -> None:
        """Wait until the stream has done all its work."""
        self._ask(self._api.cudaStreamSynchronize(self._stream))

    def synchronize_device(self) -> None:
        """Wait until the GPU has done all work that was given to it, whoever gave it."""
        self._ask(self._api.cudaDeviceSynchronize())

    def event(self) -> Any:
        """Return an event that takes times."""
        event = self._ask(self._api.cudaEventCreate())
        self._own(self._api.cudaEventDestroy, event)
        return event

    def record(self, event: Any) -> None:
        """Let the GPU note the time when the stream comes to this place."""
        self._ask(self._api.cudaEventRecord(event, self._stream))

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """Return the nanoseconds between two events that the stream has passed; CUDA resolves half a microsecond."""
        return round(float(self._ask(self._api.cudaEventElapsedTime(start, end))) * 1e6)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts on the stream as a CUDA graph, and return the call that launches it."""
        graph = self._capture(work)
        try:
            ready = self._ask(self._api.cudaGraphInstantiate(graph, 0))
        finally:
            self._ask(self._api.cudaGraphDestroy(graph))
        self._own(self._api.cudaGraphExecDestroy, ready)
        return partial(self._launch, ready)

    def at_close(self, release: Callable[[], Any]) -> None:
        """Call `release` when everything that was taken later has been given back."""
        self._owned.callback(release)

    def close(self) -> None:
        """Wait for the stream and give everything back. A failing release does not keep the others from theirs."""
        if self._open:
            self._open = False
            with self._owned:
                self.synchronize()

    def _capture(self, work: Callable[[], None]) -> Any:
        # Other threads may allocate meanwhile; this one may not, since a graph cannot hold that.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._ask(self._api.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:
            # The stream must leave its capture; what that says is only a consequence of the fault.
            self._api.cudaStreamEndCapture(self._stream)
            raise
        return self._ask(self._api.cudaStreamEndCapture(self._stream))

    def _launch(self, ready: Any) -> None:
        self._ask(self._api.cudaGraphLaunch(ready, self._stream))

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        self._ask(self._api.cudaMemcpyAsync(to, source, size, kind, self._stream))

    def _own(self, release: Callable[[Any], Any], what: Any) -> None:
        self.at_close(lambda: self._ask(release(what)))

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        """Return what a call of the API gave, or raise its error."""
        code = answer[0]
        if int(code):
            text = self._api.cudaGetErrorString(code)[1]
            message = f"CUDA: {code.name} ({text.decode() if isinstance(text, bytes) else text})"
            raise (RuntimeAbsent if code.name in _NO_DEVICE else ProfileError)(message)
        return answer[1] if len(answer) > 1 else None
