"""What a torch module on a GPU needs beside its call: copies, CUDA graphs, and the GPU's own clock.

The copies run on any device. Graphs and clock are not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from .errors import BadPlan

Call = Callable[[], Any]


def place_of(torch: Any, module: Any, inputs: Any) -> Any:
    """Return the device of a module: of its first parameter or buffer, else of its first input.

    Raises:
        BadPlan: it is neither the CPU nor a CUDA device, so that nothing here could wait for it.
    """
    tensors = (*module.parameters(), *module.buffers(), *leaves(torch, inputs))
    device = tensors[0].device if tensors else torch.device("cpu")
    if device.type not in ("cpu", "cuda"):
        raise BadPlan(f"{type(module).__name__}: it is on device {device}, wanted cpu or cuda; use .to()")
    return device


def leaves(torch: Any, values: Any) -> list[Any]:
    """List the tensors in nested lists, dicts and the like, in a fixed order."""
    return [value for value in torch.utils._pytree.tree_leaves(values) if isinstance(value, torch.Tensor)]


def moved(torch: Any, values: Any, device: Any) -> Any:
    """Return the same nested values with their tensors on a device."""

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return torch.utils._pytree.tree_map(move, values)


@final
class Copies:
    """Copies a call's inputs to the device before it and its outputs to the host after it.

    On a GPU the host's side is page-locked and copies do not wait; the tensors on the device stay where they are, so
    that a captured graph finds them.

    Attributes:
        outputs: the tensors of the last run, on the host.
    """

    def __init__(self, torch: Any, inputs: Any, outputs: Any) -> None:
        self._torch = torch
        self._inputs = [(_on_host(tensor), tensor) for tensor in leaves(torch, inputs)]
        self.outputs = [_on_host(tensor) for tensor in leaves(torch, outputs)]

    def around(self, call: Call) -> Call:
        """Return the call with both copies."""

        def work() -> Any:
            for host, device in self._inputs:
                device.copy_(host, non_blocking=True)
            outputs = call()
            for host, device in zip(self.outputs, leaves(self._torch, outputs), strict=True):
                host.copy_(device, non_blocking=True)
            return outputs

        return work


def _on_host(tensor: Any) -> Any:
    """Return a copy of a tensor on the host that copies do not wait for where it is on a GPU."""
    copy = tensor.detach().to("cpu", copy=True)
    return copy.pin_memory() if tensor.is_cuda else copy


def captured(torch: Any, call: Call, place: Any, name: str) -> Call:
    """Record a call as a CUDA graph, and return the call that replays it.

    Raises:
        BadPlan: the module does what a graph cannot hold, such as copying to the host.
    """
    try:
        with torch.cuda.device(place):
            _warm_up(torch, call)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = call()
    except Exception as fault:
        why = first_line(fault)
        raise BadPlan(f"{name}: it cannot be captured as a CUDA graph ({why}); set cuda_graph=False") from fault

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


def _warm_up(torch: Any, call: Call) -> None:
    """Run a few times on a side stream, as torch asks for before a capture: libraries start and choose kernels."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)


@final
class GpuClock:
    """Times work on a GPU's current stream by events, and waits for its end."""

    def __init__(self, torch: Any, place: Any) -> None:
        self._torch, self._place = torch, place
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run(self, work: Call) -> None:
        """Do the work and wait until the GPU is idle."""
        stream = self._torch.cuda.current_stream(self._place)
        self._start.record(stream)
        work()
        self._end.record(stream)
        self._torch.cuda.synchronize(self._place)

    def last_ns(self) -> int:
        """Return the nanoseconds of the last work by the GPU's own clock."""
        return round(float(self._start.elapsed_time(self._end)) * 1e6)


def first_line(fault: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
