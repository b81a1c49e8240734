"""Read a TensorRT engine: load it, say what it declares, and make its execution context.

TensorRT 10 and 11 and TensorRT for RTX have one Python API; the module is a parameter.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .engine_ties import Here, check_ties
from .errors import BadPlan, ProfileError, RuntimeAbsent
from .inputs import Array, InputSpec

_TYPES = {
    "FLOAT": "tensor(float)",
    "HALF": "tensor(float16)",
    "BF16": "tensor(bfloat16)",
    "FP8": "tensor(float8e4m3fn)",
    "INT8": "tensor(int8)",
    "UINT8": "tensor(uint8)",
    "INT32": "tensor(int32)",
    "INT64": "tensor(int64)",
    "BOOL": "tensor(bool)",
}


@dataclass(frozen=True)
class Flavour:
    """One of the two TensorRTs: the runtime, which is also the name of the package's extra, and its Python module."""

    runtime: str
    module: str


TENSORRT = Flavour("tensorrt", "tensorrt")
RTX = Flavour("rtx", "tensorrt_rtx_bindings")


@dataclass
class Loaded:
    """An engine, what keeps it alive, and the errors that TensorRT logged since they were last taken."""

    engine: Any
    runtime: Any
    log: Any
    ties: Mapping[str, Any] = field(default_factory=dict)
    """What the engine's manifest said, for details."""

    def complaint(self) -> str:
        """Return what TensorRT logged, and forget it."""
        return take_complaint(self.log)


def import_trt(flavour: Flavour) -> Any:
    """Import TensorRT.

    Raises:
        RuntimeAbsent: the flavour is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(flavour.module)
    except ImportError as fault:
        remedy = f"pip install 'shipworthy[{flavour.runtime}]'"
        raise RuntimeAbsent(f"runtime {flavour.runtime}: {flavour.module} is not installed; {remedy}") from fault


def error_log(trt: Any) -> Any:
    """Return a logger for TensorRT that keeps the errors in `errors` and prints nothing."""

    def start(self: Any) -> None:
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self: Any, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message.strip())

    return type("ErrorLog", (trt.ILogger,), {"__init__": start, "log": log})()


def take_complaint(log: Any) -> str:
    """Return the errors of a log in one line, and empty it."""
    errors = list(dict.fromkeys(log.errors))
    log.errors.clear()
    return "; ".join(errors) or "it logged no error"


def load_engine(trt: Any, path: Path, capability: Callable[[], str]) -> Loaded:
    """Load an engine, after its manifest, if there is one, was compared with what is here.

    Args:
        trt: the module.
        path: of the engine.
        capability: returns the GPU's compute capability, such as `8.6`; called when the manifest names one.

    Raises:
        BadPlan: the manifest is of another file, version, flavour, platform or GPU, or TensorRT refuses the file.
    """
    content = path.read_bytes()
    ties = check_ties(path, content, Here(_flavour(trt).runtime, trt.__version__, capability))
    log = error_log(trt)
    runtime = trt.Runtime(log)
    if ties.host_code:
        # Such an engine brings the code that runs it; its hash is the manifest's.
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        remedy = "wanted an engine that was built for this version and GPU"
        raise BadPlan(f"{path}: {trt.__name__} {trt.__version__} cannot load it ({take_complaint(log)}); {remedy}")
    return Loaded(engine, runtime, log, ties.details)


def _flavour(trt: Any) -> Flavour:
    return RTX if trt.__name__ == RTX.module else TENSORRT


def specs(trt: Any, engine: Any, where: str) -> tuple[list[InputSpec], list[InputSpec]]:
    """Return what an engine declares as inputs and outputs. Engines keep no names of dynamic dimensions: they are None.

    Raises:
        BadPlan: one of them lives on the host (a shape tensor).
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BadPlan(f"{where}: '{name}' is a shape tensor on the host; build the engine without shape inputs")
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    return [_spec(engine, name) for name in inputs], [_spec(engine, name) for name in outputs]


def _spec(engine: Any, name: str) -> InputSpec:
    kind = engine.get_tensor_dtype(name).name
    shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
    return InputSpec(name, _TYPES.get(kind, f"tensor({kind.lower()})"), shape)


def empty_output(trt: Any, engine: Any, context: Any, spec: InputSpec, where: str) -> Array:
    """Return an array in the shape that an output has for the inputs that were set.

    Raises:
        BadPlan: the shape depends on the data, or the type has no numpy equivalent.
    """
    shape = tuple(int(size) for size in context.get_tensor_shape(spec.name))
    if any(size < 0 for size in shape):
        raise BadPlan(f"{where}: output {spec}: its shape depends on the data; only fixed outputs can be measured")
    try:
        return np.zeros(shape, trt.nptype(engine.get_tensor_dtype(spec.name)))
    except TypeError as fault:
        raise BadPlan(f"{where}: output {spec}: this type has no numpy equivalent; let it end in a float") from fault


def choose_profile(engine: Any, shapes: Mapping[str, tuple[int, ...]], where: str) -> int:
    """Return the first of the engine's optimization profiles that all shapes lie within.

    Raises:
        BadPlan: there is none; the message names the bounds of each.
    """
    faults = [_outside(engine, index, shapes) for index in range(engine.num_optimization_profiles)]
    if "" in faults:
        return faults.index("")
    remedy = "change plan.batch or the inputs, or build the engine for this shape"
    raise BadPlan(f"{where}: {', or '.join(dict.fromkeys(faults))}; {remedy}")


def _outside(engine: Any, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say which shape lies outside an optimization profile; empty where none does."""
    for name, shape in shapes.items():
        if -1 not in tuple(engine.get_tensor_shape(name)):
            continue
        low, _, high = (tuple(int(size) for size in bound) for bound in engine.get_tensor_profile_shape(name, profile))
        if not all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True)):
            return f"input '{name}': got shape {shape}, wanted {low} to {high}"
    return ""


def open_context(trt: Any, loaded: Loaded) -> tuple[Any, str]:
    """Return an execution context, and how it compiles kernels for dynamic shapes.

    TensorRT for RTX would by default run on with fallback kernels and compile better ones meanwhile, so that times
    fall long after warm-up; here it compiles them at once.

    Raises:
        ProfileError: TensorRT gave none, for lack of memory most often.
    """
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        context, how = loaded.engine.create_execution_context(), "built in"
    else:
        config = loaded.engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        context, how = loaded.engine.create_execution_context(config), "compiled when a shape is first run"
    if context is None:
        raise ProfileError(f"{trt.__name__}: no execution context could be made ({loaded.complaint()})")
    return context, how
