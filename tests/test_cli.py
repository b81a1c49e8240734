from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from shipworthy.models.errors import BadInput, MissingRuntime, ToolFailed
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.cli_build import verdict_text
from shipworthy.pipeline.cli_output import Answer, columns, command, numbers, plain
from shipworthy.pipeline.cli_progress import showing
from shipworthy.pipeline.progress import Progress, Silent
from shipworthy.pipeline.record import (
    ArtifactRow,
    ComparisonRow,
    Figure,
    GoalRow,
    LatencyRow,
    Percentile,
    RunRecord,
)

COMMANDS = ("build", "inspect", "export", "engine", "profile", "compare", "parity", "doctor")


def run(*args: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_help_and_faults_import_nothing_heavy(tmp_path: Path) -> None:
    """The help of every command, the version and a faulty recipe come without torch, numpy or ONNX."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("shipworthy: 1\nmodle: {}\n")
    calls = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS), ["build", str(recipe)]]
    code = (
        "import sys, json\nfrom shipworthy.pipeline.cli import app\ncodes = []\n"
        "for call in json.loads(sys.argv[1]):\n"
        "    try: app(call)\n    except SystemExit as end: codes.append(end.code)\n"
        "heavy = {m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'onnx', 'onnxruntime', 'matplotlib'}\n"
        "print(json.dumps([codes, sorted(heavy)]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(calls)], capture_output=True, text=True, check=True)
    codes, heavy = json.loads(done.stderr.splitlines()[-1])
    assert (codes, heavy) == ([0] * (len(calls) - 1) + [2], [])
    assert "did you mean `model`?" in done.stderr


@pytest.mark.parametrize(
    "args", [[sys.executable, "-m", "shipworthy"], [str(Path(sys.executable).parent / "shipworthy")]]
)
def test_both_ways_to_start_are_one(args: list[str]) -> None:
    """`python -m shipworthy` and the console script show the same help, whatever stdout can encode."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*args, "--help"], capture_output=True, text=True, check=True, env=environment)
    assert all(name in done.stdout for name in COMMANDS)
    assert "Usage: shipworthy" in done.stdout
    assert "3 unclear" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json(name: str) -> None:
    """A script can ask each command for data, and a person for the traceback."""
    shown = run(name, "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.stdout
    assert "--debug" in shown.stdout


@pytest.mark.parametrize(
    "args", [["bild"], ["build"], ["build", "x", "--nope"], ["export", "m", "-o", "x", "--opset", "17"]]
)
def test_wrong_usage_is_two(args: list[str]) -> None:
    """A command or option that is not there ends with 2 and says so on stderr."""
    shown = run(*args)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "Error" in shown.stderr


# What is asked, and words of the one message that answers.
BAD = {
    "recipe": (["build", "none.yaml"], "none.yaml: no such recipe"),
    "input": (["inspect", "torchvision:resnet18", "--input", "3,x"], "such as 3,224,224"),
    "input zero": (["inspect", "torchvision:resnet18", "--input", "0"], "wanted whole numbers above zero"),
    "source": (["inspect", "torchvison:resnet18"], "torchvision:"),
    "int8": (["export", "torchvision:resnet18", "-o", "m.onnx", "--precision", "int8"], "add --data SOURCE"),
    "engine": (["engine", "none.onnx", "-o", "m.engine"], "none.onnx: no such file; wanted an ONNX file"),
    "batches": (["engine", "none.onnx", "-o", "m.engine", "--batches", "8,1"], "three numbers that do not fall"),
    "profile": (["profile", "none.onnx"], "no such file"),
    "profile folder": (["profile", "."], "is a folder"),
    "compare": (["compare", "none.onnx", "nor.onnx"], "none.onnx: no such file"),
    "parity": (["parity", "none.onnx", "none.onnx"], "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_two_with_one_message(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One `error:` on stderr and nothing on stdout; with --json the same as an object; nothing is written."""
    args, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    shown, data = run(*args), run(*args, "--json")
    assert (shown.exit_code, shown.stdout) == (2, ""), shown.output
    assert words in shown.stderr
    assert "error: " in shown.stderr
    assert "Traceback" not in shown.stderr
    assert words in json.loads(data.stdout)["error"]
    assert data.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def outcome_of(body: Callable[[], Answer], *args: str) -> Result:
    """Run `body` as the only command of an application."""
    single = typer.Typer(pretty_exceptions_enable=False)

    def act(as_json: bool = typer.Option(False, "--json"), debug: bool = typer.Option(False, "--debug")) -> Answer:
        return body()

    # The decorated body keeps annotations as objects, since this module's are text.
    act.__annotations__ = {"as_json": bool, "debug": bool}
    single.command()(command(act))
    return CliRunner().invoke(single, list(args))


def raising(fault: BaseException) -> Callable[[], Answer]:
    """Return a command's body that fails."""

    def body() -> Answer:
        raise fault

    return body


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (BadInput("bad"), 2),
        (MissingRuntime("install the extra"), 2),
        (ToolFailed("broke"), 4),
        (RuntimeError("surprise"), 4),
        (MemoryError(), 4),
        (SystemExit(1), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_code(fault: BaseException, code: int) -> None:
    """The exit code is the error's own, 4 for what nobody foresaw; even user code that exits cannot mean `missed`."""
    assert outcome_of(raising(fault)).exit_code == code


def test_an_unforeseen_error_hints_at_debug() -> None:
    """Without --debug there is a hint and no traceback, with it a traceback and no hint."""
    shown, debug = outcome_of(raising(ValueError("odd"))), outcome_of(raising(ValueError("odd")), "--debug")
    assert "error: ValueError: odd" in shown.stderr
    assert "--debug" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert "Traceback" in debug.stderr
    assert "--debug" not in debug.stderr
    assert debug.exit_code == 4


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_answers_code_is_the_exit_code(code: int) -> None:
    """Met, missed and unclear are told by the exit code, with text or data."""
    shown = outcome_of(lambda: Answer("text", {"a": (1, 2)}, code))
    assert (shown.exit_code, shown.stdout) == (code, "text\n")
    data = outcome_of(lambda: Answer("text", {"a": (1, 2)}, code), "--json")
    assert (data.exit_code, json.loads(data.stdout)) == (code, {"a": [1, 2]})


def test_what_user_code_prints_stays_out_of_the_data() -> None:
    """A library that prints cannot spoil the JSON on stdout."""

    def noisy() -> Answer:
        sys.stdout.write("noise\n")
        return Answer("", {})

    shown = outcome_of(noisy, "--json")
    assert (shown.stdout, shown.stderr) == ("{}\n", "noise\n")


def test_a_closed_pipe_keeps_the_exit_code() -> None:
    """A reader that goes away early (`| head -0`) does not turn an answer into a failure."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "shipworthy", "doctor"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


class _Word(StrEnum):
    MET = "met"


@dataclass(frozen=True)
class _Held:
    path: Path
    word: _Word
    numbers: tuple[Any, ...]


def test_anything_becomes_json() -> None:
    """Dataclasses, paths, words and numpy's numbers become what JSON has; not-a-number becomes null."""
    held = _Held(Path("a"), _Word.MET, (np.float32(0.5), np.arange(2), math.nan, math.inf, True, None))
    assert plain(held) == {"path": "a", "word": "met", "numbers": [0.5, [0, 1], None, None, True, None]}
    assert type(plain(_Word.MET)) is str


def test_columns_line_up() -> None:
    """Every column is as wide as its widest cell; numbers can stand right."""
    assert columns([("a", "n"), ("long", 5)], frozenset({1})) == "a     n\n----  -\nlong  5"
    assert numbers("1, 28,28", "--input", "3,2") == (1, 28, 28)


def record() -> RunRecord:
    """Return the record of a run that met one goal and missed one."""

    def latency(name: str, ms: float) -> LatencyRow:
        return LatencyRow(name, "ort-cpu", [1], [Percentile(50, ms, ms, ms)])

    return RunRecord(
        schema=1,
        outcome="missed",
        exit_code=1,
        recipe={},
        recipe_sha256="",
        model={},
        data={},
        steps=[],
        artifacts=[
            ArtifactRow("baseline", "b.onnx", "", 4_000_000, "fp32", "cpu", accuracy=Figure(0.95, 0.94, 0.96)),
            ArtifactRow(
                "artifact", "a.onnx", "", 400_000, "int8", "cpu", accuracy=Figure(0.94, 0.93, 0.95),
                accuracy_drop=Figure(1.0, 0.8, 1.2), ships=True,
            ),
        ],
        latency=[latency("baseline", 2.0), latency("artifact", 0.5)],
        comparisons=[ComparisonRow("baseline", "artifact", "ort-cpu", Figure(4.0, 3.9, 4.1), "faster", "")],
        goals=[
            GoalRow("speedup", "at least 3", "ort-cpu", "met", Figure(4.0, 3.9, 4.1), "x", 1.0, "fast"),
            GoalRow("size_mb", "at most 0.1", None, "missed", Figure(0.4), "MB", -0.3, "too large"),
        ],
        environment={},
        seconds={},
        notes=[],
    )  # fmt: skip


def test_the_verdict_is_told_in_words(tmp_path: Path) -> None:
    """Each goal has its word, what is not met its reason, and the report its place."""
    text = verdict_text(record(), tmp_path)
    assert "MET      speedup on ort-cpu" in text
    assert "MISSED size_mb: too large" in text
    assert "MET speedup on ort-cpu: fast" not in text
    assert "400 kB" in text
    assert "0.5 ms" in text
    assert text.endswith(f"report: {tmp_path / 'report.html'}")


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [io.StringIO, _Screen])
def test_progress_tells_every_stage(kind: type[io.StringIO]) -> None:
    """On a terminal and in a log, each stage leaves a line with its time, or says that it was reused."""
    stream = kind()
    with showing(stream) as progress:
        progress.reused("capture")
        progress.stage("prune [1]")
        progress.advance(1, 2)
        progress.note("half way")
        progress.stage("distill")
    text = stream.getvalue()
    for words in ("capture: reused", "prune [1]: 0.0 s", "half way", "distill: 0.0 s"):
        assert words in text


def test_silence_is_a_progress() -> None:
    """A library call without progress shows nothing and needs nothing."""
    silent: Progress = Silent()
    silent.stage("a")
    silent.reused("a")
    silent.advance(1, 2)
    silent.note("a")
