"""Measure how fast a runtime multiplies large matrices: the ceiling of computation that its kernels reach here."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .errors import RuntimeAbsent
from .ort_session import CPU, import_ort, session_options
from .plan import Plan

SIZES = (256, 512, 1024)
_CHAIN = 200
_CHANNELS, _PIXELS = 64, 56


def best_rate(run: Callable[[], Any], operations: int, seconds: float) -> float:
    """Return the most operations per second of all runs that fit into the time, at least three."""
    return operations / shortest_ns(run, seconds) * 1e9


def shortest_ns(run: Callable[[], Any], seconds: float) -> int:
    """Return the nanoseconds of the fastest of all runs that fit into the time, at least three."""
    best, runs, until = 1 << 62, 0, time.perf_counter() + seconds
    while runs < 3 or time.perf_counter() < until:
        start = time.perf_counter_ns()
        run()
        best, runs = min(best, time.perf_counter_ns() - start), runs + 1
    return max(best, 1)


def ort_peaks(types: tuple[str, ...], threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield tries in ONNX Runtime on the CPU: products of square matrices with constant weights, and a convolution.

    int8 is unsigned activations by signed weights (U8S8), the fast pair on x86.

    Args:
        types: `float32` and `int8`.
        threads: inside one operator.
        seconds: for each try.

    Raises:
        RuntimeAbsent: onnxruntime or onnx is not installed.
    """
    ort, onnx = import_ort(CPU), _import_onnx()
    for dtype in types:
        for name, model, feeds, operations in _MODELS[dtype](onnx):
            run = _session(ort, model, feeds, threads)
            yield {"dtype": dtype, "kernel": name, "flops_per_s": best_rate(run, operations, seconds)}


def ort_dispatch_ns(threads: int, seconds: float) -> float:
    """Return the nanoseconds that ONNX Runtime takes for one more operator with nothing to do.

    Raises:
        RuntimeAbsent: onnxruntime or onnx is not installed.
    """
    ort, onnx = import_ort(CPU), _import_onnx()
    feeds = {"x": np.ones(1, np.float32)}
    short, long = (_session(ort, _chain(onnx, count), feeds, threads) for count in (1, _CHAIN + 1))
    return (shortest_ns(long, seconds) - shortest_ns(short, seconds)) / _CHAIN


def torch_peaks(types: tuple[str, ...], threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield tries in torch on the CPU; it has no product of int8 matrices that a model would use there.

    Raises:
        RuntimeAbsent: torch is not installed.
    """
    torch = import_torch()
    torch.set_num_threads(threads)
    with torch.inference_mode():
        for dtype in (name for name in types if name != "int8"):
            for size in SIZES:
                a, b = (torch.ones(size, size, dtype=getattr(torch, dtype)) for _ in range(2))
                rate = best_rate(partial(torch.mm, a, b), 2 * size**3, seconds)
                yield {"dtype": dtype, "kernel": f"mm {size}", "flops_per_s": rate}


def torch_dispatch_ns(threads: int, seconds: float) -> float:
    """Return the nanoseconds that torch takes for an operator with next to nothing to do.

    Raises:
        RuntimeAbsent: torch is not installed.
    """
    torch = import_torch()
    torch.set_num_threads(threads)
    x = torch.ones(1)
    with torch.inference_mode():
        return float(shortest_ns(lambda: [torch.neg(x) for _ in range(_CHAIN)], seconds)) / _CHAIN


def import_torch() -> Any:
    """Import torch.

    Raises:
        RuntimeAbsent: it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError as fault:
        raise RuntimeAbsent("roofline: torch is not installed; pip install torch") from fault


def _import_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as fault:
        raise RuntimeAbsent(
            "roofline: onnx is not installed, which makes the models to time; pip install onnx"
        ) from fault


def _session(ort: Any, model: Any, feeds: dict[str, Any], threads: int) -> Callable[[], Any]:
    options = session_options(ort, CPU, Plan(threads=threads, spinning=True))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=list(CPU.providers))
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output("y")
    return partial(session.run_with_iobinding, binding)


_Try = tuple[str, Any, dict[str, Any], int]


def _float_models(onnx: Any) -> Iterator[_Try]:
    for size in SIZES:
        a, b = _values((size, size), np.float32), _values((size, size), np.float32)
        model = _model(onnx, "MatMul", {"x": a}, {"w": b}, ["x", "w"], "FLOAT")
        yield f"MatMul {size}", model, {"x": a}, 2 * size**3
    x, w = (_values(shape, np.float32) for shape in ((1, _CHANNELS, _PIXELS, _PIXELS), (_CHANNELS, _CHANNELS, 3, 3)))
    model = _model(onnx, "Conv", {"x": x}, {"w": w}, ["x", "w"], "FLOAT", pads=[1, 1, 1, 1])
    yield f"Conv 3 x 3 of {_CHANNELS} channels", model, {"x": x}, 2 * x.size * _CHANNELS * 9


def _int8_models(onnx: Any) -> Iterator[_Try]:
    for size in SIZES:
        a, b = _values((size, size), np.uint8), _values((size, size), np.int8)
        model = _model(onnx, "MatMulInteger", {"x": a}, {"w": b}, ["x", "w"], "INT32")
        yield f"MatMulInteger U8S8 {size}", model, {"x": a}, 2 * size**3
        scale, zero, signed = np.float32(0.01), np.uint8(128), np.int8(0)
        constants = {"w": b, "s": np.asarray(scale), "z": np.asarray(zero), "wz": np.asarray(signed)}
        names = ["x", "s", "z", "w", "s", "wz", "s", "z"]
        model = _model(onnx, "QLinearMatMul", {"x": a}, constants, names, "UINT8")
        yield f"QLinearMatMul U8S8 {size}", model, {"x": a}, 2 * size**3


_MODELS: dict[str, Callable[[Any], Iterator[_Try]]] = {"float32": _float_models, "int8": _int8_models}


def _values(shape: tuple[int, ...], dtype: Any) -> Any:
    generator = np.random.default_rng(0)
    return (
        generator.standard_normal(shape, np.float32)
        if dtype is np.float32
        else generator.integers(0, 100, shape, dtype)
    )


def _model(
    onnx: Any,
    operator: str,
    feeds: dict[str, Any],
    constants: dict[str, Any],
    names: list[str],
    made: str,
    **attributes: Any,
) -> Any:
    inputs = [_declared(onnx, name, value) for name, value in feeds.items()]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    node = onnx.helper.make_node(operator, names, ["y"], **attributes)
    return _whole(onnx, [node], inputs, getattr(onnx.TensorProto, made), weights)


def _chain(onnx: Any, count: int) -> Any:
    names = ["x", *(f"h{i}" for i in range(1, count)), "y"]
    nodes = [onnx.helper.make_node("Neg", [names[i]], [names[i + 1]]) for i in range(count)]
    inputs = [_declared(onnx, "x", np.ones(1, np.float32))]
    return _whole(onnx, nodes, inputs, onnx.TensorProto.FLOAT, [])


def _declared(onnx: Any, name: str, value: Any) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _whole(onnx: Any, nodes: list[Any], inputs: list[Any], made: int, weights: list[Any]) -> Any:
    output = onnx.helper.make_tensor_value_info("y", made, None)
    graph = onnx.helper.make_graph(nodes, "peak", inputs, [output], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
