from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from shipworthy.pipeline.cli import app


def run(*args: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a maker of ONNX files: one matrix product, scaled."""
    folder = tmp_path_factory.mktemp("onnx")

    def make(name: str, scale: float = 1.0) -> Path:
        weights = numpy_helper.from_array(np.eye(8, dtype=np.float32) * np.float32(scale), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
            [weights],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        path = folder / name
        onnx.save(model, path)
        return path

    return make


def test_profile_prints_percentiles_and_a_histogram(small_onnx: Callable[..., Path]) -> None:
    """The text has intervals and bars; the data has every sample."""
    path = small_onnx("a.onnx")
    shown = run("profile", path, "--budget", "0.2")
    assert shown.exit_code == 0, shown.output
    assert "p50" in shown.stdout
    assert "95 % interval" in shown.stdout
    assert "ms | #" in shown.stdout
    data = json.loads(run("profile", path, "--budget", "0.1", "--json").stdout)
    assert len(data["samples_ns"]) >= 10
    assert data["memory"] is None


def test_profile_reads_memory_when_asked(small_onnx: Callable[..., Path]) -> None:
    """--memory adds the peak of a fresh process."""
    data = json.loads(run("profile", small_onnx("a.onnx"), "--budget", "0", "--memory", "--json").stdout)
    assert data["memory"]["peak_bytes"] > 0


def test_profile_names_the_right_runtime(small_onnx: Callable[..., Path]) -> None:
    """A misspelt runtime is bad input."""
    shown = run("profile", small_onnx("a.onnx"), "--runtime", "ort-gpu")
    assert shown.exit_code == 2
    assert "ort-c" in shown.stderr


def test_compare_exits_with_its_certainty(small_onnx: Callable[..., Path]) -> None:
    """An answer (faster, slower, same) is 0; no answer is 3."""
    shown = run("compare", small_onnx("a.onnx"), small_onnx("b.onnx"), "--budget", "0.3", "--json")
    found = json.loads(shown.stdout)
    assert shown.exit_code == (3 if found["outcome"] == "unclear" else 0)
    shown = run("compare", small_onnx("a.onnx"), small_onnx("b.onnx"), "--budget", "0")
    assert any(word in shown.stdout for word in ("FASTER", "SLOWER", "SAME", "UNCLEAR"))


def test_doctor_says_why_not() -> None:
    """Each runtime is usable or has a reason, each extra is there or can be had, and the exit code is 0."""
    shown, data = run("doctor"), json.loads(run("doctor", "--json").stdout)
    assert shown.exit_code == 0
    assert "ort-cpu" in shown.stdout
    assert all(state["usable"] or state["note"] for state in data["runtimes"])
    assert {extra["name"] for extra in data["extras"]} == {"rtx", "tensorrt"}
    assert all(extra["version"] or f"shipworthy[{extra['name']}]" in shown.stdout for extra in data["extras"])


def test_inspect_counts_a_model() -> None:
    """Parameters, MACs, layers, inputs and outputs are in the text and in the data."""
    shown = run("inspect", "torchvision:squeezenet1_1", "--input", "3,64,64")
    assert shown.exit_code == 0, shown.output
    assert "1,235,496" in shown.stdout
    assert "[batch, 3, 64, 64]" in shown.stdout


def test_export_of_weights_alone(tmp_path: Path) -> None:
    """Large linear layers need no examples; what is for half precision is refused."""
    (tmp_path / "net.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(512, 256), (torch.zeros(2, 512),)\n"
    )
    source, path = f"{tmp_path / 'net.py'}:make", tmp_path / "m.onnx"
    made = run("export", source, "-o", path, "--precision", "int4-weights", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["precision"] == "int4-weights"
    assert path.stat().st_size < 512 * 256
    low = run("export", source, "-o", tmp_path / "l.onnx", "--precision", "int4-weights", "--low-io")
    assert (low.exit_code, "not for int4-weights" in low.stderr) == (2, True)


def test_export_then_parity(tmp_path: Path, small_onnx: Callable[..., Path]) -> None:
    """A file agrees with the model it was made from (0) and not with another (1); samples can be given."""
    (tmp_path / "net.py").write_text(
        "import torch\ndef make():\n    torch.manual_seed(0)\n    return torch.nn.Linear(8, 4), (torch.zeros(2, 8),)\n"
    )
    source, path = f"{tmp_path / 'net.py'}:make", tmp_path / "m.onnx"
    made = run("export", source, "-o", path, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["bytes"] == path.stat().st_size
    assert run("parity", source, path).exit_code == 0
    np.savez(tmp_path / "x.npz", x=np.ones((3, 8), np.float32))
    same = run("parity", small_onnx("a.onnx"), small_onnx("b.onnx"), "--samples", tmp_path / "x.npz")
    assert same.exit_code == 0, same.output
    other = run("parity", small_onnx("a.onnx"), small_onnx("c.onnx", scale=3.0))
    assert (other.exit_code, "BREACHED" in other.stdout) == (1, True)
    (tmp_path / "bad.npz").write_text("no arrays")
    bad = run("parity", path, path, "--samples", tmp_path / "bad.npz")
    assert bad.exit_code == 2
    assert "write it with numpy.savez" in bad.stderr
