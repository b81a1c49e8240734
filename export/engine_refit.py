"""Put the weights of an ONNX file into an engine that was built without them. Needs a GPU; not run on one yet.

Runs in the child process of a build; the module of TensorRT comes as a parameter.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .engine_network import Refused, parser_errors
from .engine_progress import Tell
from .engine_shared import gpu_facts, kept_log, write_plan


def refit(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Load `job["stripped"]`, give it the weights of `job["onnx"]` and write it whole. Not run on a GPU yet.

    Raises:
        Refused: the engine cannot be loaded here, or the file does not give all of its weights.
        OSError: the engine cannot be written.
    """
    trt = importlib.import_module(job["module"])
    if trt.__version__ != job["version"]:
        raise Refused(f"the engine is of version {job['version']}, and {trt.__version__} is installed")
    with kept_log(trt, Path(job["log"]), job["verbose"]) as logger:
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(Path(job["stripped"]).read_bytes())
        if engine is None:
            absent = gpu_facts()["gpu"] is None
            said = logger.errors[-1] if logger.errors else "no reason given"
            why = "refitting loads the engine, which needs a GPU" if absent else "the engine cannot be loaded here"
            raise Refused(f"{why} ({said})", "absent" if absent else "input")
        tell(300)
        _take_weights(trt, engine, logger, job["onnx"])
        tell(800)
        write_plan(Path(job["engine"]), _whole(trt, engine))
        return {"refitted": True, "warnings": logger.warnings, **gpu_facts()}


def _take_weights(trt: Any, engine: Any, logger: Any, onnx: str) -> None:
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(onnx):
        raise Refused("; ".join(parser_errors(parser)) or "the file's weights do not fit the engine; see the log")
    if not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()) or "none by name"
        raise Refused(f"the file does not give all weights of the engine (missing: {missing})")


def _whole(trt: Any, engine: Any) -> Any:
    """Serialize an engine with its weights, which one that was stripped would leave out again."""
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return engine.serialize_with_config(config)
