"""`profile` and `compare` on real files: what is printed, the data, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from shipworthy.pipeline.cli import app
from shipworthy.pipeline.cli_sections import SECTIONS
from shipworthy.profile import gaps

QUICK = ("--budget", "0.3")


def run(*words: object) -> Result:
    """Run the program."""
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Give a maker of ONNX files: a chain of so many products with a matrix of 64 by 64."""
    folder = tmp_path_factory.mktemp("onnx")

    def make(layers: int) -> Path:
        names = ["x", *(f"h{i}" for i in range(1, layers)), "y"]
        nodes = [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(layers)]
        value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=["batch", 64])
        weights = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
        graph = helper.make_graph(nodes, "chain", [value("x")], [value("y")], [weights])
        path = folder / f"chain{layers}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        return path

    return make


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "layers"])
def test_each_section_has_text_and_data(
    name: str, file: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for stands behind the latency and under its own key; what is not is null."""
    brief = partial(gaps.gap_latency, gaps_s=(0.001, 0.002), samples=6)
    monkeypatch.setattr(gaps, "gap_latency", brief)
    shown = run("profile", file(2), *QUICK, f"--{name}", "--json")
    assert shown.exit_code == 0, shown.output
    data = json.loads(shown.stdout)
    assert data[name]
    assert [other for other in SECTIONS if data[other] is not None] == [name]
    assert data["percentiles"][0]["q"] == 50


def test_layers_are_listed_and_drawn(file: Callable[[int], Path], tmp_path: Path) -> None:
    """A picture asks for the layers too; both tables and the ceilings are printed."""
    picture = tmp_path / "layers.svg"
    shown = run("profile", file(3), *QUICK, "--picture", picture)
    assert shown.exit_code == 0, shown.output
    assert "measured ceilings" in shown.stdout
    assert shown.stdout.count("MatMul") >= 4
    assert "<svg" in picture.read_text(encoding="utf-8")
    refused = run("profile", file(3), "--picture", tmp_path / "layers.png")
    assert (refused.exit_code, "ends in .svg" in refused.stderr) == (2, True)


def test_real_inputs_are_used_and_said(file: Callable[[int], Path], tmp_path: Path) -> None:
    """Inputs come from an .npz file where one is given; a wrong name is bad input."""
    np.savez(tmp_path / "in.npz", x=np.ones((1, 64), np.float32))
    np.savez(tmp_path / "wrong.npz", z=np.ones((1, 64), np.float32))
    assert "samples of given inputs" in run("profile", file(1), *QUICK, "--samples", tmp_path / "in.npz").stdout
    assert "samples of random inputs" in run("profile", file(1), *QUICK).stdout
    refused = run("profile", file(1), "--samples", tmp_path / "wrong.npz")
    assert (refused.exit_code, "'x'" in refused.stderr) == (2, True)


def test_a_stored_run_decides_the_exit_code(file: Callable[[int], Path], tmp_path: Path) -> None:
    """Against a run of a file with far less work it is slower and 1, against far more faster and 0."""
    stored = {}
    for layers in (1, 40):
        stored[layers] = tmp_path / f"{layers}.json"
        stored[layers].write_text(run("profile", file(layers), *QUICK, "--json").stdout, encoding="utf-8")
    slower = run("profile", file(40), *QUICK, "--baseline", stored[1])
    faster = run("profile", file(1), *QUICK, "--baseline", stored[40], "--json")
    assert (slower.exit_code, "SLOWER" in slower.stdout) == (1, True)
    assert (faster.exit_code, json.loads(faster.stdout)["comparison"]["outcome"]) == (0, "faster")
    other_threads = run("profile", file(1), *QUICK, "--threads", "2", "--baseline", stored[1])
    assert (other_threads.exit_code, "plan.threads differs (1 and 2)" in other_threads.stderr) == (2, True)
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    no_run = run("profile", file(1), "--baseline", tmp_path / "no.json")
    assert (no_run.exit_code, "measurement" in no_run.stderr) == (2, True)


def test_several_files_are_compared_with_the_first(file: Callable[[int], Path]) -> None:
    """Each of the others has its own answer, and the data holds the first one once."""
    shown = run("compare", file(20), file(1), file(60), "--budget", "1")
    assert "FASTER: chain1.onnx" in shown.stdout
    assert "SLOWER: chain60.onnx" in shown.stdout
    assert "the 2 intervals hold together" in shown.stdout
    data = json.loads(run("compare", file(20), file(1), file(60), *QUICK, "--json").stdout)
    assert [one["b"]["name"] for one in data["comparisons"]] == ["chain1.onnx", "chain60.onnx"]
    assert "a" not in data["comparisons"][0]


def test_a_command_line_and_a_model_can_be_measured() -> None:
    """Other runtimes take what is no file: a program, and a model that is run eagerly."""
    program = run("profile", "true", "--runtime", "command", *QUICK)
    assert (program.exit_code, "true on command" in program.stdout) == (0, True), program.output
    eager = run("profile", "reference:fashion-resnet20", "--runtime", "torch", *QUICK, "--batch", "2", "--json")
    data = json.loads(eager.stdout)
    assert (data["runtime"], data["plan"]["batch"]) == ("torch", 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--affinity", "a,b"], "--affinity: got 'a,b', wanted numbers of cores"),
        (["--affinity", "4095"], "plan.affinity: cores [4095] cannot be used here"),
        (["--percentile", "100"], "plan.quantile: got 100.0"),
        (["--cuda-graph"], "cuda_graph"),
        (["--on", "ftp://edge"], "'ftp://edge': wanted ssh://user@host"),
        (["--on", "ssh://edge", "--cold"], "--cold: is measured on this machine alone"),
        (["--runtime", "rtx"], "rtx"),
        (["--runtime", "torch", "--cold"], "--cold: is measured of a file in a fresh process"),
    ],
)
def test_bad_wishes_are_refused(words: list[str], said: str, file: Callable[[int], Path]) -> None:
    """One message, exit code 2, and nothing on stdout."""
    shown = run("profile", file(1), *words)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert said in shown.stderr


def test_a_comparison_needs_two_files(file: Callable[[int], Path]) -> None:
    """One file, or files that a runtime cannot take, are refused."""
    assert "got 1 file(s), wanted two or more" in run("compare", file(1)).stderr
    assert "takes no files" in run("compare", file(1), file(1), "--runtime", "torch").stderr
    assert "no such file" in run("compare", file(1), "none.onnx").stderr
