"""Read a TensorRT engine: load it, say what it declares, and make its execution context.

TensorRT 10 and 11 and TensorRT for RTX have one Python API; the module is a parameter.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


def load_engine(trt: Any, path: Path) -> Loaded:
    """Load an engine.

    Raises:
        BadPlan: TensorRT refuses the file: it is no engine, or one of another version, flavour or GPU.
    """
    log = error_log(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        remedy = "wanted an engine that was built for this version and GPU"
        raise BadPlan(f"{path}: {trt.__name__} {trt.__version__} cannot load it ({take_complaint(log)}); {remedy}")
    return Loaded(engine, runtime, log)


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


def check_profile(engine: Any, feeds: dict[str, Array], where: str) -> None:
    """Check that shapes lie within the engine's first optimization profile.

    Raises:
        BadPlan: one does not; the message names the bounds.
    """
    for name, array in feeds.items():
        if -1 not in tuple(engine.get_tensor_shape(name)):
            continue
        low, _, high = (tuple(int(size) for size in bound) for bound in engine.get_tensor_profile_shape(name, 0))
        if not all(least <= size <= most for least, size, most in zip(low, array.shape, high, strict=True)):
            remedy = "change plan.batch or the inputs, or build the engine for this shape"
            raise BadPlan(f"{where}: input '{name}': got shape {array.shape}, wanted {low} to {high}; {remedy}")


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
