"""Other tools that quantize ONNX files, each in a virtual environment of its own: NNCF, Olive, Model-Optimizer.

None of them is needed for anything but this comparison. An environment is made once and kept; a tool that does not
install, or fails on a network, is told with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shipworthy.benchmarks.quantization_tools_child import Job

CHILD = Path(__file__).with_name("quantization_tools_child.py")
_STAMP = ".installed"
_INSTALL_S, _RUN_S = 1800.0, 900.0
_REASON = 160

# torch 2.13.0 is the version that has a build without CUDA here; where pip finds none, it takes the one with it.
_TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Tool:
    """What installs a tool.

    Attributes:
        name: of its environment's folder, and a key of `quantization_tools_child.TOOLS`.
        packages: for pip, with what the tool needs and does not declare.
        alone: packages that come without what they declare.
    """

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()


NNCF = Tool("nncf", ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0"))
OLIVE = Tool("olive", ("olive-ai==0.13.0", _TORCH, "onnx==1.23.2", "onnxruntime==1.32.0", "requests"))
# Its extra `onnx` wants CuPy and the ONNX Runtime for GPUs, 2 GB that a CPU has no use for.
MODEL_OPTIMIZER = Tool(
    "modelopt",
    (
        _TORCH, "onnx==1.21.0", "onnxruntime==1.24.4", "onnxconverter-common==1.16.0", "onnx-graphsurgeon==0.6.1",
        "onnxslim==0.1.98", "onnxscript", "polygraphy", "lief", "cppimport", "ml_dtypes", "ninja", "numpy",
        "nvidia-ml-py", "setuptools>=80,<81", "tqdm", "PyYAML", "omegaconf", "pulp<4", "pydantic>=2", "regex", "rich",
        "safetensors", "scipy", "packaging",
    ),
    ("nvidia-modelopt==0.47.0",),
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One way to call a tool; `label` names it in tables."""

    tool: Tool
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)


CALLS = (
    Call(NNCF, "NNCF `quantize(target_device=CPU)`"),
    Call(OLIVE, "Olive `OnnxStaticQuantization` (its default, S8S8)"),
    Call(OLIVE, "Olive `OnnxStaticQuantization`, uint8 (U8U8)", {"precision": "uint8", "activation_type": "uint8"}),
    Call(MODEL_OPTIMIZER, "Model-Optimizer `quantize`, rest in fp32 (S8S8)", {"high_precision_dtype": "fp32"}),
)
"""Each tool's plain call for CPUs.

Model-Optimizer has none: its layout is for TensorRT, and what is not int8 is fp16 by default, slow on CPUs.
"""


@dataclass(frozen=True)
class Made:
    """What a call came to: a file, or the reason why there is none."""

    label: str
    path: Path | None = None
    reason: str = ""


def quantize_with_all(folder: Path, source: Path, examples: Path, out: Path) -> Iterator[Made]:
    """Quantize a file with every call, and install what is not there yet.

    Args:
        folder: of the environments.
        source: an fp32 ONNX file.
        examples: an .npz file, one row for each example.
        out: where the files go.
    """
    for place, call in enumerate(CALLS):
        reason = installed(call.tool, folder)
        if reason:
            yield Made(call.label, reason=f"does not install: {reason}")
            continue
        job = Job(call.tool.name, str(source), str(examples), str(out / f"tool{place}.onnx"), dict(call.settings))
        yield quantize(python_of(call.tool, folder), call.label, job)


def installed(tool: Tool, folder: Path) -> str:
    """Make a tool's environment where it is not there as wanted; return why it cannot be, or nothing."""
    home, wanted = folder.absolute() / tool.name, json.dumps(asdict(tool))
    stamp = home / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return ""
    stamp.unlink(missing_ok=True)
    pip = [str(python_of(tool, folder)), "-m", "pip", "install", "-qq", "--no-compile", "--disable-pip-version-check"]
    steps = [[sys.executable, "-m", "venv", "--clear", str(home)], [*pip, *tool.packages]]
    steps += [[*pip, "--no-deps", *tool.alone]] if tool.alone else []
    for step in steps:
        if reason := reason_of(step, _INSTALL_S):
            return reason
    stamp.write_text(wanted, encoding="utf-8")
    return ""


def python_of(tool: Tool, folder: Path) -> Path:
    """Return the path of a tool's Python."""
    return folder.absolute() / tool.name / "bin" / "python"


def quantize(python: Path, label: str, job: Job) -> Made:
    """Do a job under another Python, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="quantizing-") as name:
        file = Path(name, "job.json")
        file.write_text(json.dumps(asdict(job)), encoding="utf-8")
        reason = reason_of([str(python), str(CHILD), str(file)], _RUN_S, Path(name))
    path = Path(job.path)
    if not reason and not path.is_file():
        reason = "wrote no file"
    return Made(label, None, reason) if reason else Made(label, path)


def reason_of(command: Sequence[str], limit_s: float, folder: Path | None = None) -> str:
    """Run a command; return why it failed in one line, or nothing."""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, cwd=folder, env=clean
        )
    except subprocess.TimeoutExpired:
        return f"not done within {limit_s:g} s"
    except OSError as fault:
        return f"cannot be started: {fault.strerror}"
    return "" if done.returncode == 0 else last_words(done.stderr or done.stdout, done.returncode)


def last_words(text: str, code: int) -> str:
    """Return the line of a failed command's output that says most, without folders in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    said = (errors or lines or [f"ended with code {code}"])[-1]
    words = (Path(word).name if word.strip("'\"").startswith("/") else word for word in said.split())
    return " ".join(words)[:_REASON]
