"""The child process of an engine build: a JSON job from standard input, JSON lines on standard output.

A line is `{"done": 120}` while it builds, in steps of progress; the last one is `{"made": facts}` or `{"refused": why,
"kind": whose fault}`. One code path for TensorRT 10, 11 and TensorRT for RTX: the module is a parameter. Torch-free.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from .engine_config import add_profiles, capabilities_of, configure, load_timings
from .engine_inspect import formats, inspect_engine
from .engine_network import Profile, Refused, inputs_of, layers_of, parse, precisions, profiles_of
from .engine_progress import Tell, monitor
from .engine_refit import refit
from .engine_shared import gpu_facts, kept_log, peak_bytes, write_plan

_USERS_FAULT = ("API Usage Error", "Could not find any implementation", "Unsupported", "not supported")
_LEAN = "libnvinfer_lean"


def build(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Parse, build and write; return the manifest's facts.

    Raises:
        Refused: the graph or a setting cannot be built, or the builder failed.
        OSError: the engine cannot be written.
    """
    trt = importlib.import_module(job["module"])
    with kept_log(trt, Path(job["log"]), job["verbose"]) as logger:
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parse(trt, network, logger, job["onnx"])
        profiles = profiles_of(inputs_of(network), job["batches"], job["shapes"])
        facts = _facts(trt, network, profiles, _layers(network, logger))
        config = builder.create_builder_config()
        sparse = _sparse_weights(trt, config) if job["sparse"] else "off"
        flags = [*configure(trt, config, job), *(["SPARSE_WEIGHTS"] if sparse == "set" else [])]
        add_profiles(builder, config, profiles)
        _build(trt, (builder, network, config, logger), job, tell)
        gpu = gpu_facts()
        seen = inspect_engine(trt, logger, Path(job["engine"])) if gpu["gpu"] and not job["strip"] else []
        return {
            **facts,
            **gpu,
            "flags": flags,
            "sparse_weights": sparse,
            "compute_capabilities": capabilities_of(config, job, gpu["gpu_compute_capability"]),
            "engine_precisions": formats(seen),
            "warnings": logger.warnings,
        }


def _layers(network: Any, logger: Any) -> list[dict[str, Any]]:
    """Return the network's layers, and list them in the log."""
    layers = layers_of(network)
    for layer in layers:
        formats = f"{', '.join(layer['inputs'])} -> {', '.join(layer['outputs'])}"
        logger.write(f"layer {layer['name']}: {layer['type']} {formats}")
    return layers


def _build(trt: Any, made_of: tuple[Any, Any, Any, Any], job: dict[str, Any], tell: Tell) -> None:
    """Build and write the engine and its timings."""
    builder, network, config, logger = made_of
    cache = load_timings(config, Path(job["timings"]) if job["timings"] else None)
    watcher = monitor(trt, tell)
    config.progress_monitor = watcher
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(logger.errors, job)
    write_plan(Path(job["engine"]), plan)
    if cache is not None:
        write_plan(Path(job["timings_made"]), config.get_timing_cache().serialize())


def _facts(trt: Any, network: Any, profiles: list[Profile], layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": trt.__version__,
        "profiles": profiles[0] if profiles else {},
        "further_profiles": profiles[1:],
        "inputs": [_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": len(layers),
        "precisions": precisions(layers),
    }


def _failure(errors: list[str], job: dict[str, Any]) -> Refused:
    """Say why the builder gave no engine, and whose fault it is."""
    said = errors[-1] if errors else "the builder gave no engine and no reason; see the log"
    if (job["strip"] or job["refittable"]) and gpu_facts()["gpu"] is None:
        why = "an engine without weights, or open to others, is built on a GPU, and there is none here"
        return Refused(f"{why} ({said})", "absent")
    if job["workspace_bytes"] and ("OutOfMemory" in said or "workspace" in said):
        return Refused(f"{said}; workspace_bytes is {job['workspace_bytes']}: give it more")
    if _LEAN in said:
        return Refused(f"version_compatible needs TensorRT's lean runtime, which is not installed ({said})", "absent")
    return Refused(said, "input" if any(words in said for words in _USERS_FAULT) else "tool")


def _sparse_weights(trt: Any, config: Any) -> str:
    """Let the builder choose kernels for 2:4 weights, and say whether this flavour knows of them."""
    flag = getattr(trt.BuilderFlag, "SPARSE_WEIGHTS", None)
    if flag is None:
        return "unknown to this flavour"
    config.set_flag(flag)
    return "set"


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}


def answer(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Do a job and return its last line."""
    try:
        made = refit(job, tell) if job["stripped"] else build(job, tell)
    except Refused as fault:
        return {"refused": str(fault), "kind": fault.kind}
    except OSError as fault:
        return {"refused": f"the engine cannot be written ({fault.strerror}); choose another folder or make room", "kind": "disk"}  # fmt: skip # noqa: E501
    return {"made": {**made, "peak_bytes": peak_bytes()}}


def main(out: TextIO) -> None:
    """Read the job, do it, and speak in lines."""

    def tell(done: int) -> None:
        out.write(json.dumps({"done": done}) + "\n")
        out.flush()

    out.write(json.dumps(answer(json.load(sys.stdin), tell)) + "\n")
    out.flush()


if __name__ == "__main__":
    # What libraries print must not come between our lines.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(lines)
