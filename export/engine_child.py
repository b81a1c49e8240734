"""The child process of an engine build: one JSON job as argument, one JSON line as answer.

One code path for TensorRT 10, 11 and TensorRT for RTX: the module is a parameter. Imports nothing of torch.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Parse, build and write; return the manifest's facts, or `{"refused": why}`."""
    trt = importlib.import_module(job["module"])
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job["onnx"]):
        return {"refused": "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))}
    config = builder.create_builder_config()
    sparse = _sparse_weights(trt, config) if job["sparse"] else "off"
    profile = builder.create_optimization_profile()
    shapes = _profile(network, profile, job["batches"])
    if shapes:
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"refused": "the builder gave no engine; its log is on standard error"}
    Path(job["engine"]).write_bytes(bytes(plan))
    return {
        "version": trt.__version__,
        "flags": ["STRONGLY_TYPED", *(["SPARSE_WEIGHTS"] if sparse == "set" else [])],
        "sparse_weights": sparse,
        "profiles": shapes,
        "inputs": [_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": network.num_layers,
        **_device(trt, config),
    }


def _sparse_weights(trt: Any, config: Any) -> str:
    """Let the builder choose kernels for 2:4 weights, and say whether this flavour knows of them."""
    flag = getattr(trt.BuilderFlag, "SPARSE_WEIGHTS", None)
    if flag is None:
        return "unknown to this flavour"
    config.set_flag(flag)
    return "set"


def _profile(network: Any, profile: Any, batches: list[int]) -> dict[str, list[list[int]]]:
    shapes: dict[str, list[list[int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            low, usual, high = ([batch if size == -1 else size for size in tensor.shape] for batch in batches)
            profile.set_shape(tensor.name, low, usual, high)
            shapes[tensor.name] = [low, usual, high]
    return shapes


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": str(tensor.dtype).rpartition(".")[2], "shape": list(tensor.shape)}


def _device(trt: Any, config: Any) -> dict[str, Any]:
    """Say what the engine is tied to: portable where the flavour compiles its kernels at load time."""
    count = getattr(config, "num_compute_capabilities", None)
    portable = count is not None
    named = [str(config.get_compute_capability(i)).rpartition(".")[2] for i in range(count or 0)]
    return {"compute_capabilities": named or (["portable"] if portable else ["of the building GPU"]), **_driver()}


def _driver() -> dict[str, Any]:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        return {
            "gpu": str(nvml.nvmlDeviceGetName(handle)),
            "driver": str(nvml.nvmlSystemGetDriverVersion()),
            "cuda": int(nvml.nvmlSystemGetCudaDriverVersion()),
        }
    except Exception:  # any failure means the same: no device to be tied to
        return {"gpu": None, "driver": None, "cuda": None}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(build(json.loads(sys.argv[1]))) + "\n")
