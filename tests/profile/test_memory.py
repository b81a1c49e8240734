"""Peak memory in real child processes, dead ones included."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shipworthy.profile.errors import BadPlan, RuntimeAbsent
from shipworthy.profile.memory import Memory, death, peak_memory, run_child
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import Target

MIB = 1 << 20
ANSWER = "import sys, os, time, pathlib; pathlib.Path(sys.argv[1], 'reply.json').write_text('{}'); "


def child(folder: Path, reply: str, then: str, timeout_s: float = 30.0) -> Memory:
    """Run a child that leaves this reply and then does that."""
    code = ANSWER.replace("{}", reply) + then
    return run_child([sys.executable, "-c", code, str(folder)], folder, 7, timeout_s)


def test_peak_memory_grows_by_what_the_file_needs(model: Path, write: Callable[[str, str], Path]) -> None:
    """A file with a 64 MiB activation peaks at least 60 MiB above one without; the stages are in order."""
    graph = "main (float[N, 8] x) => (float[a, b] y) <int64[2] s = {2097152, 8}> { y = Expand(x, s) }"
    small, large = peak_memory(model), peak_memory(write("wide", graph))
    for seen in (small, large):
        assert seen.failed is None
        assert 10 * MIB < (seen.runtime_bytes or 0) <= (seen.loaded_bytes or 0) <= (seen.peak_bytes or 0)
    assert (large.peak_bytes or 0) - (small.peak_bytes or 0) > 60 * MIB
    assert (large.added_bytes or 0) > 60 * MIB
    assert small.file_bytes == model.stat().st_size


def test_given_inputs_reach_the_child(write: Callable[[str, str], Path]) -> None:
    """Inputs travel to the child; without them a dynamic length is refused there, as bad input here."""
    path = write("length", "main (float[N, length] x) => (float[N, length] y) { y = Relu(x) }")
    assert peak_memory(path, inputs={"x": np.ones((1, 5), np.float32)}).failed is None
    with pytest.raises(BadPlan, match="dimension 1 is dynamic and not the batch; give inputs"):
        peak_memory(path)


def test_a_killed_child_is_a_result(tmp_path: Path) -> None:
    """A child killed from outside gives what it had measured, and the signal."""
    seen = child(tmp_path, '{"runtime_bytes": 5}', "os.kill(os.getpid(), 9)")
    reason = "the child process was killed by SIGKILL, most likely because memory ran out"
    assert seen == Memory(7, runtime_bytes=5, failed=reason)


def test_a_child_that_takes_too_long_is_a_result(tmp_path: Path) -> None:
    """A timeout ends the child and is a result too."""
    seen = child(tmp_path, "{}", "time.sleep(60)", timeout_s=0.3)
    assert seen == Memory(7, failed="the child process did not end within 0.3 s")


def test_a_child_that_cannot_start_is_a_result(tmp_path: Path) -> None:
    """A command that is not there is a result, not a traceback."""
    failed = run_child([str(tmp_path / "absent")], tmp_path, 7, 1.0).failed
    assert failed is not None
    assert failed.startswith("the child process could not be started")


def test_a_failing_inference_is_a_result(write: Callable[[str, str], Path]) -> None:
    """A file that loads and cannot run keeps its first two readings and the runtime's message."""
    graph = "main (float[N, 4] x) => (float[a, b] y) <int64[2] s = {3, 5}> { y = Reshape(x, s) }"
    seen = peak_memory(write("reshape", graph))
    assert seen.loaded_bytes is not None
    assert seen.peak_bytes is None
    assert seen.added_bytes is None
    assert "Reshape" in (seen.failed or "")


def test_how_a_child_ended_in_words() -> None:
    """An exit code comes with the last line of the child's errors, a signal with its name."""
    assert death(0, "a warning") is None
    assert death(3, "Traceback\nMemoryError\n\n") == "the child process ended with code 3: MemoryError"
    assert death(1, "") == "the child process ended with code 1: it wrote no error"
    assert death(-11, "") == "the child process was killed by SIGSEGV"


def test_a_runtime_that_the_child_lacks_is_absent(tmp_path: Path) -> None:
    """The child's refusals come back as the errors that they were."""
    with pytest.raises(RuntimeAbsent, match="onnxruntime is not installed"):
        child(tmp_path, '{"refused": "onnxruntime is not installed", "absent": true}', "")


def test_what_a_child_cannot_open_is_refused(model: Path, tmp_path: Path) -> None:
    """Modules, callables, missing and corrupt files, and runtimes without a file, are bad input."""
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"nothing")
    cases: list[tuple[Target, str, Any, str]] = [
        (len, "ort-cpu", None, "peak memory is measured in a child process, wanted a path"),
        (tmp_path / "absent.onnx", "ort-cpu", None, "no such file; wanted an ONNX file"),
        (model, "torch", None, "peak memory in runtime 'torch' cannot be measured, wanted one of ort-cpu"),
        (model, "ort", None, "runtime 'ort' is unknown"),
        (model, "ort-cpu", [1], "got inputs as a list, wanted a dict"),
        (corrupt, "ort-cpu", None, "cannot load it"),
    ]
    for target, runtime, inputs, words in cases:
        with pytest.raises(BadPlan, match=re.escape(words)):
            peak_memory(target, runtime, Plan(), inputs)
