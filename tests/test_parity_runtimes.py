"""Parity in other runtimes and on the command line: what it refuses, what it says, and where it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser
from typer.testing import CliRunner, Result

from shipworthy.export.parity_taps import open_on_cpu
from shipworthy.models.errors import BadInput
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.parity_runtimes import OnRuntime, engine_precision, is_engine, parity_on
from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, RuntimeAbsent

Write = Callable[..., Path]
without_gpu = pytest.mark.skipif(cuda_absent() is None, reason="there is a GPU")
X = np.array([[1, 2, 4], [8, -8, 0]], np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an ONNX graph given as text."""

    def written(name: str, body: str, inputs: str = "float[N, 3] x") -> Path:
        text = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[N, 3] y) {{ {body} }}'
        onnx.save(parser.parse_model(text), tmp_path / name)
        return tmp_path / name

    return written


def run(*args: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, ["parity", *map(str, args)])


# --- runtimes


def test_engines_and_files_go_with_their_runtimes(write: Write, tmp_path: Path) -> None:
    """An unknown runtime, an engine for ONNX Runtime and a file for TensorRT are refused."""
    path = write("a.onnx", "y = Relu (x)")
    with pytest.raises(
        BadInput, match="runtime 'ort-gpu': choose one of ort-cpu, ort-cuda, ort-tensorrt, rtx, tensorrt"
    ):
        parity_on(path, path, OnRuntime("ort-gpu"))
    with pytest.raises(BadInput, match=r"a\.onnx: runtime rtx takes an engine"):
        parity_on(path, path, OnRuntime("rtx"))
    with pytest.raises(BadInput, match=r"m\.engine: runtime ort-cpu takes an ONNX file"):
        parity_on(path, tmp_path / "m.engine", OnRuntime("ort-cpu"))
    with pytest.raises(BadInput, match=r"m\.engine\.json: no such file; an engine is read with the manifest"):
        parity_on(path, tmp_path / "m.engine", OnRuntime("rtx"))
    assert parity_on(path, path, OnRuntime("ort-cpu")).passed
    assert [is_engine(name) for name in ("m.engine", "m.plan", "m.onnx", 3)] == [True, True, False, False]


@without_gpu
def test_an_absent_gpu_is_no_fallback(write: Write) -> None:
    """Parity on a GPU that is not there ends; it does not run on the CPU, even where operators may."""
    path = write("a.onnx", "y = Relu (x)")
    for runtime in ("ort-cuda", "ort-tensorrt"):
        with pytest.raises(RuntimeAbsent, match=f"runtime {runtime}: "):
            parity_on(path, path, OnRuntime(runtime, allow_fallback=True))


@without_gpu
def test_what_would_run_on_the_cpu_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity takes the profiler's rule: nodes elsewhere are refused, and with `allow_fallback` they are notes."""
    where = "shipworthy.pipeline.parity_runtimes."
    nodes = {"CUDAExecutionProvider": ["Conv 'c'"], "CPUExecutionProvider": ["Relu 'act'"]}
    monkeypatch.setattr(f"{where}import_ort", lambda device: onnxruntime)
    monkeypatch.setattr(f"{where}open_session", lambda ort, path, *rest: onnxruntime.InferenceSession(path))
    monkeypatch.setattr(f"{where}placement", lambda session: nodes)
    path = write("a.onnx", "y = Relu (x)")
    with pytest.raises(BadPlan, match=re.escape("would run 1 node (Relu 'act') on the CPU; export the model without")):
        parity_on(path, path, OnRuntime("ort-cuda"), {"x": X})
    found = parity_on(path, path, OnRuntime("ort-cuda", allow_fallback=True), {"x": X})
    assert (found.passed, found.precision) == (True, "tf32")
    assert found.notes == ("fallback: ort-cuda ran 1 node (Relu 'act') on the CPU",)
    with pytest.raises(BadInput, match="the samples do not fit the model's inputs"):
        parity_on(open_on_cpu(path), path, OnRuntime("ort-cuda", allow_fallback=True), {"x": X.astype(np.float64)})


@pytest.mark.parametrize(
    ("formats", "found"),
    [
        (("FLOAT", "INT64"), "tf32"),
        (("FLOAT", "FLOAT to HALF"), "fp16"),
        (("BF16", "HALF"), "bf16"),
        (("INT8",), "int8"),
    ],
)
def test_an_engine_is_judged_by_its_lowest_precision(formats: tuple[str, ...], found: str) -> None:
    """What the manifest counts of the layers' formats sets the tolerance; indices are no precision."""
    assert engine_precision({"CONVOLUTION": dict.fromkeys(formats, 1), "none": {}}) == found


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
@pytest.mark.parametrize("runtime", ["ort-cuda", "ort-tensorrt"])
def test_a_file_agrees_with_itself_on_the_gpu(runtime: str, write: Write) -> None:
    """On a GPU the same file passes, and a changed one names its operator."""
    if runtime == "ort-tensorrt":
        pytest.importorskip("tensorrt")
    path, other = write("a.onnx", "z = Relu (x) y = Exp (z)"), write("b.onnx", "z = Abs (x) y = Exp (z)")
    assert parity_on(path, path, OnRuntime(runtime), {"x": X}).passed
    found = parity_on(path, other, OnRuntime(runtime), {"x": X})
    assert found.layer is not None
    assert found.layer.operator == "Abs"


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_an_engine_agrees_with_its_file_on_the_gpu(write: Write, tmp_path: Path) -> None:
    """An engine built here gives what its file gives, in parts of the largest batch that it takes."""
    from shipworthy.export.engine import to_engine

    path = write("a.onnx", "z = Relu (x) y = Exp (z)")
    engine = to_engine(path, tmp_path / "m.engine", "rtx", (1, 1, 2))
    assert parity_on(path, Path(engine), OnRuntime("rtx"), {"x": np.tile(X, (3, 1))}).passed


# --- the command line


def test_a_breach_is_told_with_its_layer(write: Write, tmp_path: Path) -> None:
    """Text and data name the first bad layer and what it costs; the exit code is 1; `--no-layers` looks for none."""
    right, wrong = write("a.onnx", "z = Relu (x) y = Identity (z)"), write("b.onnx", "z = Neg (x) y = Identity (z)")
    np.savez(tmp_path / "x.npz", x=X, kind=np.array([2, 0]))
    shown = run(right, wrong, "--samples", tmp_path / "x.npz", "--labels", "kind")
    assert shown.exit_code == 1, shown.output
    assert "first bad layer: " in shown.stdout
    assert "(Neg, tensor z)" in shown.stdout
    assert (
        "accuracy 100.0% before, 0.0% now, 100.0% with this layer alone computed as it was (2 samples)" in shown.stdout
    )
    assert shown.stdout.endswith("parity (fp32): BREACHED\n")
    data = json.loads(run(right, wrong, "--samples", tmp_path / "x.npz", "--labels", "kind", "--json").stdout)
    assert (data["layer"]["operator"], data["cost"]["by"], data["precision"]) == ("Neg", "accuracy", "fp32")
    np.savez(tmp_path / "x.npz", x=X)
    bare = run(right, wrong, "--samples", tmp_path / "x.npz", "--no-layers")
    assert (bare.exit_code, "bad layer" in bare.stdout) == (1, False)


def test_shapes_make_up_for_open_dimensions(write: Write) -> None:
    """A file with open dimensions is compared on random inputs of a given shape."""
    path = write("a.onnx", "y = Relu (x)", "float[N, M] x")
    assert "give samples" in run(path, path).stderr
    shown = run(path, path, "--shape", "x=batch,3")
    assert shown.exit_code == 0, shown.output
    assert "parity (fp32): passed" in shown.stdout


def test_bad_options_are_bad_input(write: Write, tmp_path: Path) -> None:
    """Labels that are not there, an unknown precision or runtime, and absent devices end with 2."""
    path = write("a.onnx", "y = Relu (x)")
    np.savez(tmp_path / "x.npz", x=X)
    for options, message in (
        (("--labels", "y"), "--labels: 'y' is no array of the samples; got []"),
        (("--samples", tmp_path / "x.npz", "--labels", "y"), "got ['x'], give it in --samples"),
        (("--precision", "fp4"), "precision 'fp4': choose one of"),
        (("--runtime", "cuda"), "runtime 'cuda': choose one of"),
    ):
        shown = run(path, path, *options)
        assert (shown.exit_code, message in shown.stderr) == (2, True), shown.stderr
    if cuda_absent() is not None:
        assert run(path, path, "--runtime", "ort-cuda").exit_code == 2
