"""Open an ONNX Runtime session on exactly the device asked for, with no node left to another one unnoticed."""

from __future__ import annotations

import ctypes.util
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .devices import cuda_absent
from .errors import BadPlan, RuntimeAbsent
from .plan import Plan


@dataclass(frozen=True)
class Device:
    """A place where ONNX Runtime runs a file.

    Attributes:
        runtime: a key of `runners.RUNTIMES`.
        providers: in order of precedence; the first must take nodes, the others may.
        device: ONNX Runtime's name of where inputs and outputs are.
        graph_option: the first provider's option for capturing a CUDA graph; empty on the CPU.
    """

    runtime: str
    providers: tuple[str, ...]
    device: str
    graph_option: str = ""

    @property
    def provider(self) -> str:
        """The provider that must take nodes."""
        return self.providers[0]

    @property
    def on_gpu(self) -> bool:
        """Whether nodes on the CPU would be a fallback."""
        return self.device == "cuda"


CPU = Device("ort-cpu", ("CPUExecutionProvider",), "cpu")
CUDA = Device("ort-cuda", ("CUDAExecutionProvider",), "cuda", "enable_cuda_graph")
TENSORRT = Device(
    "ort-tensorrt", ("TensorrtExecutionProvider", "CUDAExecutionProvider"), "cuda", "trt_cuda_graph_enable"
)

_RECORD, _REFUSE = "session.record_ep_graph_assignment_info", "session.disable_cpu_ep_fallback"

_ON_HOST_BY_DESIGN = {
    "Shape", "Size", "Constant", "ConstantOfShape", "Identity", "Cast", "Gather", "Slice", "Concat", "Split", "Squeeze",
    "Unsqueeze", "Reshape", "Expand", "Range", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Equal", "Less",
    "Greater", "Not", "And", "Or", "Where", "ReduceProd",
}  # fmt: skip
"""Operators that the CUDA provider has kernels for. Where one is on the CPU all the same, it computes with shapes, and
ONNX Runtime keeps it on the host on purpose: such nodes are named in the details and not refused."""


def import_ort(device: Device) -> Any:
    """Import onnxruntime, for a GPU with its libraries loaded first.

    Raises:
        RuntimeAbsent: it is not installed, there is no GPU for a device that needs one, or TensorRT is not installed.
    """
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as fault:
        message = (
            f"runtime {device.runtime}: onnxruntime is not installed; pip install onnxruntime (or onnxruntime-gpu)"
        )
        raise RuntimeAbsent(message) from fault
    if device.on_gpu:
        _check_gpu(ort, device)
        getattr(ort, "preload_dlls", lambda: None)()  # older releases, as on edge devices, find them by themselves
    return ort


def _check_gpu(ort: Any, device: Device) -> None:
    absent = cuda_absent()
    if absent is not None:
        raise RuntimeAbsent(f"runtime {device.runtime}: {absent}")
    missing = [name for name in device.providers if name not in ort.get_available_providers()]
    if missing:
        raise RuntimeAbsent(
            f"runtime {device.runtime}: onnxruntime has no {missing[0]}; pip install onnxruntime-gpu in its place"
        )
    if device is TENSORRT:
        _load_tensorrt(device)


def _load_tensorrt(device: Device) -> None:
    """Load TensorRT's libraries from its Python package, where ONNX Runtime does not look; the system's will do too."""
    try:
        importlib.import_module("tensorrt")
    except ImportError as fault:
        if ctypes.util.find_library("nvinfer") is None:
            remedy = "pip install 'shipworthy[tensorrt]'"
            raise RuntimeAbsent(f"runtime {device.runtime}: TensorRT is not installed; {remedy}") from fault


def open_session(ort: Any, path: Path, device: Device, plan: Plan) -> Any:
    """Open a session on exactly the device asked for.

    Raises:
        BadPlan: ONNX Runtime cannot load the file, or would run nodes of it on the CPU and the plan does not allow it.
        RuntimeAbsent: it fell back to another device, or TensorRT's libraries cannot be loaded.
    """
    options, providers = session_options(ort, device, plan), _providers(device, plan)
    try:
        session = ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as fault:
        if "install TensorRT libraries" in str(fault):
            raise RuntimeAbsent(f"runtime {device.runtime}: TensorRT's libraries cannot be loaded: {fault}") from fault
        raise BadPlan(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {fault}") from fault
    got = session.get_providers()[0]
    if got != device.provider:
        raise RuntimeAbsent(f"runtime {device.runtime}: ONNX Runtime fell back to {got}; is the GPU's driver in order?")
    return session


def session_options(ort: Any, device: Device, plan: Plan) -> Any:
    """Return the options of a session: the plan's threads, one operator after the other, all optimizations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = plan.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(plan.spinning)))
    if device.on_gpu and tells_placement(ort):
        options.add_session_config_entry(_RECORD, "1")
    elif device.on_gpu and not plan.allow_fallback:
        options.add_session_config_entry(_REFUSE, "1")
    return options


def _providers(device: Device, plan: Plan) -> list[tuple[str, dict[str, str]]]:
    first = {device.graph_option: "1"} if plan.cuda_graph else {}
    return [(device.provider, first), *((name, {}) for name in device.providers[1:])]


def tells_placement(ort: Any) -> bool:
    """Tell whether this onnxruntime can name the provider of each node; older ones can only refuse a mixture."""
    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def placement(session: Any) -> dict[str, list[str]]:
    """Return the nodes of a session by provider, each as its operator and name; the session must have recorded them."""
    found: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes = found.setdefault(part.ep_name, [])
        nodes.extend(f"{node.op_type} '{node.name}'" if node.name else node.op_type for node in part.get_nodes())
    return found


def check_placement(
    nodes: Mapping[str, Sequence[str]], device: Device, path: Path, allow_fallback: bool = False
) -> str | None:
    """Check that the device's first provider took nodes, and that the CPU computes with nothing but shapes.

    Returns:
        None, or with `allow_fallback` what the CPU computes all the same.

    Raises:
        BadPlan: the message names the nodes that are elsewhere; a provider that took none is refused in any case.
    """
    wanted, on_cpu = device.provider, nodes.get("CPUExecutionProvider", ())
    stray = [node for node in on_cpu if node.split()[0] not in _ON_HOST_BY_DESIGN]
    if stray and not allow_fallback:
        remedy = "export the model without these operators or types, run it on ort-cpu, or allow fallback"
        raise BadPlan(f"{path}: runtime {device.runtime} would run {_some(stray)} on the CPU; {remedy}")
    if not nodes.get(wanted):
        others = [node for name, group in nodes.items() if name != wanted for node in group]
        raise BadPlan(f"{path}: {wanted} took none of its nodes; {_some(others)} would run elsewhere")
    return f"{device.runtime} ran {_some(stray)} on the CPU" if stray else None


def _some(nodes: Sequence[str]) -> str:
    """Name the first few of many."""
    more = f" and {len(nodes) - 5} more" if len(nodes) > 5 else ""
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)} ({', '.join(nodes[:5])}{more})"
