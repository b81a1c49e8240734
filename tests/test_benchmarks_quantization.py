from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shipworthy.benchmarks import calibration_memory, quantization, quantization_tools
from shipworthy.benchmarks.calibration_memory import Case, Given, Row
from shipworthy.benchmarks.quantization_tools import Call, Tool
from shipworthy.benchmarks.quantization_tools_child import TOOLS, Job
from shipworthy.export.npz_stream import open_npz
from shipworthy.export.onnx_file import to_onnx
from shipworthy.export.score import score
from shipworthy.models.data import Dataset
from shipworthy.models.model import Model
from shipworthy.tests.foreign_files import save
from shipworthy.tests.int8_nets import net, noise
from shipworthy.tests.small_nets import captured

CHILD = quantization_tools.CHILD


@pytest.mark.parametrize("name", ["quantization", "calibration_memory"])
def test_each_script_answers_help_without_torch(name: str) -> None:
    """`--help` names the options, and is quick because nothing heavy is imported for it."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(CHILD.with_name(f"{name}.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--quick" in done.stdout
    assert {"quantization": "--tools", "calibration_memory": "--counts"}[name] in done.stdout
    assert done.stdout.endswith("False\n")


def test_written_examples_are_what_numpy_reads(tmp_path: Path) -> None:
    """Examples written in parts are one array for numpy, and for the reader that streams them."""
    path = tmp_path / "examples.npz"
    calibration_memory.write_examples(path, "x", (130, 3, 4, 4))
    found = np.load(path)["x"]
    assert found.shape == (130, 3, 4, 4)
    assert found.dtype == np.float32
    assert found[129].std() > 0.1
    streamed = np.concatenate([part["x"] for part in open_npz(path)()])
    np.testing.assert_array_equal(streamed, found)


def test_growth_is_the_slope_between_fewest_and_most() -> None:
    """What one more example costs is told from the peaks that there are, and not from a single one."""
    rows = [Row("a", "m", 64, 1, 1000, 1.0), Row("a", "m", 264, 1, 3000, 1.0), Row("a", "m", 999, failed="over 1 GB")]
    assert calibration_memory.growth_bytes(rows) == 10.0
    assert calibration_memory.growth_bytes(rows[::2]) is None


def test_what_did_not_fit_is_not_tried_again() -> None:
    """A method that failed with fewer examples is left out with more, and only that one."""
    every = {(case.tool, case.method) for case in calibration_memory.cases(64, [])}
    assert every == {(tool, method) for tool, methods in calibration_memory.METHODS.items() for method in methods}
    left = set(calibration_memory.cases(256, [Row("ONNX Runtime", "Entropy", 64, failed="over 4 GB")]))
    assert Case("ONNX Runtime", "Entropy", 256) not in left
    assert len(left) == len(every) - 1


def test_peaks_stand_in_a_line_for_each_method() -> None:
    """The table has a column for each number of examples, and says which were not tried."""
    rows = [Row("a", "m", count, 1, peak, 1.0) for count, peak in ((64, 500_000_000), (128, 506_400_000))]
    rows += [Row("b", "n", 64, failed="over 1 GB")]
    lines = calibration_memory.peaks_table(rows).splitlines()
    assert lines[0] == "| quantization | ranges | 64 examples | 128 examples | KB for one more |"
    assert lines[2:] == ["| a | m | 500 | 506 | 100.0 |", "| b | n | over 1 GB | not tried |  |"]


def test_a_process_is_measured_or_runs_out_of_what_it_may_take(tmp_path: Path) -> None:
    """A quantization in a process of its own has a peak above its imports; with a limit below it, a reason instead."""
    made = to_onnx(captured("plain", torch.float32), tmp_path / "fp32.onnx")
    examples = tmp_path / "examples.npz"
    calibration_memory.write_examples(examples, made.inputs[0].name, (16, *map(int, made.inputs[0].shape[1:])))
    case = Case("ONNX Runtime", "MinMax", 16)
    given = Given(tmp_path / "fp32.onnx", made.inputs[0].name, (), tmp_path, int(8e9))
    row = calibration_memory.one_process(given, case, examples)
    assert not row.failed
    assert row.peak_bytes is not None
    assert row.before_bytes is not None
    assert 1e7 < row.before_bytes < row.peak_bytes < 8e9
    small = Given(given.model, given.name, (), tmp_path, int(2e7))
    assert calibration_memory.one_process(small, case, examples).failed == "over 0.02 GB"


def test_a_tool_that_does_not_install_is_told_with_pips_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that cannot be made is a row with a line of why, and is not taken for one that is there."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    absent = Tool("absent", ("shipworthy-no-such-tool==1.0",))
    monkeypatch.setattr(quantization_tools, "CALLS", (Call(absent, "No such tool"),))
    (found,) = quantization_tools.quantize_with_all(tmp_path, tmp_path / "a.onnx", tmp_path / "a.npz", tmp_path)
    assert found.path is None
    assert found.reason.startswith("does not install: ERROR:")
    assert "shipworthy-no-such-tool==1.0" in found.reason
    assert "\n" not in found.reason
    assert not list(tmp_path.rglob(".installed"))


def test_an_environment_is_made_anew_when_what_it_should_hold_changes(tmp_path: Path) -> None:
    """The same packages are not installed twice, others are."""
    empty, home = Tool("empty", ("pip",)), tmp_path / "empty"
    assert quantization_tools.installed(empty, tmp_path) == ""
    (home / "mark").touch()
    assert quantization_tools.installed(empty, tmp_path) == ""
    assert (home / "mark").exists()
    assert quantization_tools.installed(Tool("empty", ("pip", "no such name")), tmp_path) != ""
    assert not (home / "mark").exists()


def test_a_tool_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    """What a child process dies of is one line, without folders of this machine."""
    job = Job("nncf", str(tmp_path / "none.onnx"), str(tmp_path / "none.npz"), str(tmp_path / "int8.onnx"), {})
    made = quantization_tools.quantize(Path(sys.executable), "NNCF", job)
    assert made.path is None
    assert "nncf" in made.reason or "none" in made.reason
    assert str(tmp_path) not in made.reason
    assert "\n" not in made.reason


def test_a_tool_that_cannot_start_or_does_not_end_is_told() -> None:
    """No fault of a command is an exception."""
    assert quantization_tools.reason_of(["/nowhere/python"], 1.0) == "cannot be started: No such file or directory"
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert quantization_tools.reason_of(sleeping, 0.2) == "not done within 0.2 s"
    assert quantization_tools.reason_of([sys.executable, "-c", ""], 60.0) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "ended with code 3"),
        ("Traceback\n  File\nValueError: no\n\n", "ValueError: no"),
        ("ERROR: no such version\nhint: look\n", "ERROR: no such version"),
        ("OSError: '/tmp/secret/place.onnx' is bad", "OSError: place.onnx' is bad"),
        ("x" * 500, "x" * 160),
    ],
)
def test_last_words_are_one_short_line(text: str, words: str) -> None:
    """Of a failed command's output the line that says most is kept, short and without folders."""
    assert quantization_tools.last_words(text, 3) == words


def test_every_call_has_a_child_and_a_name_of_its_own() -> None:
    """What is called in another environment can be found there, and its label stands once in a table."""
    assert {call.tool.name for call in quantization_tools.CALLS} == set(TOOLS)
    assert len({call.label for call in quantization_tools.CALLS}) == len(quantization_tools.CALLS)
    assert all("|" not in call.label for call in quantization_tools.CALLS)


def test_the_child_imports_nothing_of_this_package() -> None:
    """It runs under interpreters that have no shipworthy."""
    assert "shipworthy" not in CHILD.read_text(encoding="utf-8")


def test_a_file_that_there_is_none_of_is_a_row_with_its_reason() -> None:
    """The table and the data tell an absent file by its reason, in as many cells as others have."""
    absent = quantization.Absent("torchvision:resnet18", "NNCF", "does not install: a | b")
    cells = quantization.cells(absent)
    assert cells[:3] == ("resnet18", "NNCF", "does not install: a / b")
    assert len(cells) == len(quantization.HEAD)


def test_a_file_that_cannot_run_is_told_without_its_folder(tmp_path: Path) -> None:
    """What a tool wrote is opened and run once before it is measured."""
    made = to_onnx(captured("plain", torch.float32), tmp_path / "fp32.onnx")
    examples = tmp_path / "examples.npz"
    given: dict[str, Any] = {made.inputs[0].name: noise(2)}
    np.savez(examples, **given)
    assert quantization.unusable(made.path, examples) == ""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    assert quantization.unusable(broken, examples)
    assert str(tmp_path) not in quantization.unusable(broken, examples)
    odd = save(tmp_path / "odd.onnx", net("y = Reshape(x, s)", s=np.array([-1, 100])))
    np.savez(examples, x=noise(2))
    assert "Reshape" in quantization.unusable(odd, examples)


def test_drops_are_in_points(data: Dataset, teacher: Model, tmp_path: Path) -> None:
    """A hundred times the difference of the shares that are right."""
    kinds = {quantization.FLOAT: teacher, "untrained": captured("residual", torch.float32)}
    paths = {name: to_onnx(model, tmp_path / f"{name}.onnx").path for name, model in kinds.items()}
    right = {name: float((found.predictions == found.labels).mean())
             for name, found in ((name, score(path, data)) for name, path in paths.items())}  # fmt: skip
    value, low, high = quantization._drops(paths, data)["untrained"]
    assert value == pytest.approx(100 * (right[quantization.FLOAT] - right["untrained"]))
    assert 20 < low < value < high <= 100


def test_results_are_plain_data(tmp_path: Path) -> None:
    """Rows of both kinds are written, table and data."""
    row = quantization.Row("torchvision:resnet18", "fp32", (1.0, None, None), 2.0, None, 10**6, None)
    absent = quantization.Absent("torchvision:resnet18", "NNCF", "none")
    quantization.report(tmp_path, [row, absent], quick=True)
    data = json.loads((tmp_path / "quantization.json").read_text(encoding="utf-8"))
    assert [one.get("reason") for one in data["rows"]] == [None, "none"]
    assert "| resnet18 | NNCF | none |" in (tmp_path / "quantization.md").read_text(encoding="utf-8")
