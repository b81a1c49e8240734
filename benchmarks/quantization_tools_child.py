"""Quantizes one ONNX file with one other tool, under that tool's own Python: imports nothing of this package.

`python quantization_tools_child.py JOB.json`: what to do, see `Job`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        tool: a key of `TOOLS`.
        source: the fp32 file.
        examples: an .npz file with an array for each input, one row for each example.
        path: the file to write.
        settings: that the tool is given besides.
    """

    tool: str
    source: str
    examples: str
    path: str
    settings: dict[str, Any]


def main(file: str) -> None:
    """Do the job that a file describes."""
    # Two of the tools report what they are used for over the network, unless told not to.
    os.environ |= {"OLIVE_DISABLE_TELEMETRY": "1", "NNCF_CI": "1"}
    job = Job(**json.loads(Path(file).read_text(encoding="utf-8")))
    TOOLS[job.tool](job)


def _nncf(job: Job) -> None:
    nncf, onnx = import_module("nncf"), import_module("onnx")
    examples = list(_one_by_one(job.examples))
    made = nncf.quantize(
        onnx.load(job.source), nncf.Dataset(examples), target_device=nncf.TargetDevice.CPU, subset_size=len(examples),
        **job.settings,
    )  # fmt: skip
    onnx.save(made, job.path)


def _one_by_one(path: str) -> Iterator[dict[str, Any]]:
    """Yield batches of one example."""
    arrays = dict(import_module("numpy").load(path))
    for place in range(len(next(iter(arrays.values())))):
        yield {name: array[place : place + 1] for name, array in arrays.items()}


def _olive(job: Job) -> None:
    workflows = import_module("olive.workflows")
    registry = import_module("olive.data.registry").Registry
    registry.register_dataset("calibration_examples")(_labelled)
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    data = {
        "name": "calibration",
        "load_dataset_config": {"type": "calibration_examples", "params": {"path": job.examples}},
        "dataloader_config": {"batch_size": 1},
    }
    step = {"type": "OnnxStaticQuantization", "data_config": "calibration", **job.settings}
    found = workflows.run(
        {
            "input_model": {"type": "ONNXModel", "model_path": job.source},
            "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
            "host": "here",
            "target": "here",
            "data_configs": [data],
            "passes": {"quantize": step},
            "output_dir": "olive",
            "cache_dir": "cache",
        }
    )
    shutil.copyfile(found.get_best_candidate().model_path, job.path)


def _labelled(path: str, **_: Any) -> list[tuple[dict[str, Any], int]]:
    """Return examples as Olive wants them: one row of each input, and a label, which calibration ignores."""
    return [({name: array[0] for name, array in one.items()}, 0) for one in _one_by_one(path)]


def _model_optimizer(job: Job) -> None:
    quantization, numpy = import_module("modelopt.onnx.quantization"), import_module("numpy")
    quantization.quantize(
        job.source, quantize_mode="int8", calibration_data=dict(numpy.load(job.examples)), calibration_eps=["cpu"],
        output_path=job.path, **job.settings,
    )  # fmt: skip


TOOLS: dict[str, Callable[[Job], None]] = {"nncf": _nncf, "olive": _olive, "modelopt": _model_optimizer}


if __name__ == "__main__":
    main(sys.argv[1])
