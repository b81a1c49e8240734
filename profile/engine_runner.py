"""Run a TensorRT engine, without torch. Not run on a GPU yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from .cuda_stream import Cuda, import_cuda
from .engine_file import (
    Flavour,
    choose_profile,
    empty_output,
    import_trt,
    load_engine,
    open_context,
    specs,
)
from .engine_inputs import Feed, OnDevice, engine_feeds
from .errors import BadPlan, ProfileError
from .inputs import Array, check_inputs
from .opening import closed, sha256_of, target_file, transfers_on_gpu
from .plan import Plan

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True)
class Buffer:
    """An input's or output's address on the GPU, and its array on the host: page-locked where it is copied.

    An input that was given on the GPU has none there; `owner` keeps its memory.
    """

    address: int
    host: Array | None
    owner: Any = None


@final
class EngineRunner:
    """Runs an engine on a stream of its own and waits for it; with `plan.cuda_graph` it launches a captured graph.

    Opening runs it once, so that what TensorRT and CUDA do lazily is done. A sample ends when the stream is idle. The
    device's own time is taken by events around the work and includes copies where a sample does. Not run on a GPU yet.

    Raises:
        RuntimeAbsent: no driver, no GPU, or TensorRT or cuda-bindings is not installed.
        BadPlan: no such file, not an engine for this TensorRT and GPU (by its manifest, or when it is loaded), or
            inputs that do not fit.
        ProfileError: CUDA or TensorRT failed.
    """

    def __init__(self, target: Any, flavour: Flavour, plan: Plan, inputs: Any = None) -> None:
        api, trt = import_cuda(flavour.runtime), import_trt(flavour)
        path = target_file(target, flavour.runtime, "a TensorRT engine")
        self.name, self.file, self.sha256 = path.name, str(path), sha256_of(path)
        self.runtime, self.plan = flavour.runtime, plan
        self.inputs = "random" if inputs is None else "given"
        self.run: Callable[[], None] = self._run
        self._loaded: Any = None
        self._context: Any = None
        self._cuda = Cuda(api)
        try:
            self._open(trt, path, inputs)
        except BaseException:
            # The fault that ended the opening says more than one that follows from it.
            with suppress(ProfileError):
                self._cuda.close()
            raise

    def device_time_ns(self) -> int:
        """Return the last run's nanoseconds by the GPU's own clock.

        Raises:
            ProfileError: the runner is closed, or CUDA failed.
        """
        self._check_open()
        return self._cuda.elapsed_ns(self._start, self._end)

    @property
    def context(self) -> Any:
        """TensorRT's execution context, ready to be enqueued; it belongs to the runner.

        Raises:
            ProfileError: the runner is closed.
        """
        self._check_open()
        return self._context

    def feed(self, inputs: Mapping[str, Array]) -> None:
        """Put other arrays of the same shapes in place of the inputs, so that the next run computes on these.

        Args:
            inputs: numpy arrays by name, all of them.

        Raises:
            BadPlan: one does not fit, has another shape, or lies on the GPU in memory that is not the runner's.
            ProfileError: the runner is closed, or CUDA failed.
        """
        self._check_open()
        checked = check_inputs(self._declared, inputs, self.plan.batch, self.name)
        for name, array in checked.items():
            buffer = self._inputs[name]
            if buffer.host is None or buffer.host.shape != array.shape:
                shape = "memory on the GPU" if buffer.host is None else f"shape {buffer.host.shape}"
                raise BadPlan(f"{self.name}: input '{name}': got shape {array.shape}, was opened with {shape}; open it anew")  # fmt: skip # noqa: E501
        for name, array in checked.items():
            self._replace(self._inputs[name], array)
        self._cuda.synchronize()

    def outputs(self) -> dict[str, Array]:
        """Return the last run's outputs by name, copied to the host.

        Raises:
            ProfileError: the runner is closed, or CUDA failed.
        """
        self._check_open()
        found = {name: np.empty_like(buffer.host) for name, buffer in self._outputs.items()}
        for name, array in found.items():
            self._cuda.fetch(array, self._outputs[name].address)
        self._cuda.synchronize()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        """Wait for the stream, and free memory, context and engine."""
        self._cuda.close()

    def _open(self, trt: Any, path: Path, inputs: Any) -> None:
        self._cuda.at_close(self._drop)
        self._loaded = load_engine(trt, path, self._cuda.capability)
        self._declared, outputs = specs(trt, self._loaded.engine, str(path))
        feeds = engine_feeds(self._declared, self.plan, inputs, str(path))
        shapes = {name: tuple(feed.shape) for name, feed in feeds.items()}
        profile = choose_profile(self._loaded.engine, shapes, str(path))
        self._context, compiled = open_context(trt, self._loaded)
        self._set_shapes(profile, shapes)
        made = {spec.name: empty_output(trt, self._loaded.engine, self._context, spec, str(path)) for spec in outputs}
        self._inputs, self._outputs = self._buffers(feeds), self._buffers(made)
        self._start, self._end = self._cuda.event(), self._cuda.event()
        self._work = self._prepared()
        self._run()
        self.details: dict[str, Any] = {
            **_details(trt, self._loaded.engine, self.plan, shapes),
            **self._loaded.ties,
            "kernels": compiled,
            "optimization_profile": profile,
        }

    def _set_shapes(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        chosen = self._context.set_optimization_profile_async(profile, self._cuda.stream)
        self._demand(f"its optimization profile {profile}", chosen)
        self._cuda.synchronize()
        for name, shape in shapes.items():
            self._demand(f"shape {shape} of '{name}'", self._context.set_input_shape(name, shape))

    def _buffers(self, arrays: Mapping[str, Feed]) -> dict[str, Buffer]:
        return {name: self._buffer(name, array) for name, array in arrays.items()}

    def _buffer(self, name: str, array: Feed) -> Buffer:
        address = array.address if isinstance(array, OnDevice) else self._cuda.device_memory(array.nbytes)
        self._demand(f"the address of '{name}'", self._context.set_tensor_address(name, address))
        if isinstance(array, OnDevice):
            # Whoever made it may still be writing, on a stream of their own.
            self._cuda.synchronize_device()
            return Buffer(address, None, array.owner)
        return Buffer(address, self._cuda.pinned_like(array) if self.plan.transfers else array)

    def _prepared(self) -> Callable[[], None]:
        """Put the inputs in place, run once, and return the work, captured where the plan asks for it.

        Raises:
            BadPlan: the engine's work cannot be captured.
        """
        work = self._copying if self.plan.transfers else self._enqueue
        self._send()
        work()
        self._cuda.synchronize()
        if not self.plan.cuda_graph:
            return work
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._cuda.stream):
            raise BadPlan(f"{self.name}: TensorRT cannot put this engine into a CUDA graph; set cuda_graph=False")
        return self._cuda.captured(work)

    def _run(self) -> None:
        self._cuda.record(self._start)
        self._work()
        self._cuda.record(self._end)
        self._cuda.synchronize()

    def _copying(self) -> None:
        self._send()
        self._enqueue()
        for buffer in self._outputs.values():
            if buffer.host is not None:
                self._cuda.fetch(buffer.host, buffer.address)

    def _send(self) -> None:
        for buffer in self._inputs.values():
            if buffer.host is not None:
                self._cuda.send(buffer.address, buffer.host)

    def _replace(self, buffer: Buffer, array: Array) -> None:
        """Put an array in a buffer's place on the GPU; page-locked memory keeps it for the runs that copy."""
        if self.plan.transfers and buffer.host is not None:
            np.copyto(buffer.host, array)
        self._cuda.send(buffer.address, array)

    def _enqueue(self) -> None:
        self._demand("the inference", self._context.execute_async_v3(self._cuda.stream))

    def _demand(self, what: str, accepted: bool) -> None:
        """Raise where TensorRT answers no.

        Raises:
            ProfileError: with what TensorRT logged.
        """
        if not accepted:
            raise ProfileError(f"{self.name}: TensorRT refused {what} ({self._loaded.complaint()})")

    def _check_open(self) -> None:
        if self._context is None:
            closed(self.name)

    def _drop(self) -> None:
        """Let go of TensorRT's objects, the context before its engine; their stream is still there."""
        self.run = partial(closed, self.name)
        self._context = None
        self._loaded = None


def _details(trt: Any, engine: Any, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "version": trt.__version__,
        "device": "cuda",
        "layers": engine.num_layers,
        "workspace_bytes": engine.device_memory_size_v2,
        "cuda_graph": plan.cuda_graph,
        "transfers": transfers_on_gpu(plan),
        "wait": "cudaStreamSynchronize after each run",
        "input_shapes": {name: list(shape) for name, shape in shapes.items()},
    }
