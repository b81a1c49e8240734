"""Memory in real child processes, dead and limited ones included."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shipworthy.profile.child import Ended, death, died_of_memory, run_to_end
from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, RuntimeAbsent
from shipworthy.profile.memory import Memory, Trial, join, memory_of, peak_memory
from shipworthy.profile.memory_figures import BY_ALLOCATOR, BY_DIFFERENCE, BY_ENGINE, BY_TORCH, blind_spots
from shipworthy.profile.memory_limit import lacks_memory
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import Target

MIB = 1 << 20
ONCE = Trial(repeats=1)
ANSWER = "import sys, os, time, pathlib; pathlib.Path(sys.argv[1], 'reply.json').write_text('{}'); "
WIDE = "main (float[N, 8] x) => (float[a, b] y) <int64[2] s = {2097152, 8}> { y = Expand(x, s) }"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")


def child(folder: Path, reply: str, then: str, timeout_s: float = 30.0) -> Memory:
    """Run a child that leaves this reply and then does that."""
    code = ANSWER.replace("{}", reply) + then
    return memory_of(run_to_end([sys.executable, "-c", code, str(folder)], folder, timeout_s), 7)


def test_memory_grows_by_what_the_file_needs(model: Path, write: Callable[[str, str], Path]) -> None:
    """A file with a 64 MiB output peaks at least 60 MiB above one without; the allocators count it exactly."""
    small, large = peak_memory(model, trial=Trial(repeats=2)), peak_memory(write("wide", WIDE), trial=ONCE)
    for seen in (small, large):
        assert (seen.failed, seen.fits) == (None, True)
        assert 10 * MIB < (seen.runtime_bytes or 0) <= (seen.loaded_bytes or 0) <= (seen.peak_bytes or 0)
        assert seen.activation_source == BY_ALLOCATOR
    assert (large.peak_bytes or 0) - (small.peak_bytes or 0) > 60 * MIB
    assert (large.added_bytes or 0) > 60 * MIB
    assert 64 * MIB <= (large.activation_bytes or 0) < 65 * MIB
    assert (small.file_bytes, small.weights_bytes, large.weights_bytes) == (model.stat().st_size, 64 * 64 * 4, 16)
    assert len(small.peaks) == 2
    assert max(small.peaks) == small.peak_bytes
    assert Memory(**json.loads(json.dumps(asdict(small)))) == small


def test_a_torch_program_is_measured(tmp_path: Path) -> None:
    """A .pt2 file runs with a batch of the plan's size; what torch holds for activations is a difference."""
    module = torch.nn.Linear(64, 64).eval()
    free = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 64),), dynamic_shapes=free), tmp_path / "m.pt2")
    seen = peak_memory(tmp_path / "m.pt2", "torch", Plan(batch=40_000), trial=ONCE)
    assert seen.failed is None
    assert seen.activation_source == BY_DIFFERENCE
    assert (seen.activation_bytes or 0) > 5 * MIB
    assert seen.weights_bytes == 4 * (64 * 64 + 64)
    assert any("torch's exporter" in words for words in seen.blind_spots)


def test_given_inputs_reach_the_child(write: Callable[[str, str], Path]) -> None:
    """Inputs travel to the child; without them a dynamic length is refused there, as bad input here."""
    path = write("length", "main (float[N, length] x) => (float[N, length] y) { y = Relu(x) }")
    seen = peak_memory(path, inputs={"x": np.ones((1, 1 << 18), np.float32)}, trial=ONCE)
    assert seen.failed is None
    assert (seen.activation_bytes or 0) >= MIB
    with pytest.raises(BadPlan, match="dimension 1 is dynamic and not the batch; give inputs"):
        peak_memory(path, trial=ONCE)


@on_linux
def test_a_file_that_does_not_fit_under_a_limit_says_so(model: Path, write: Callable[[str, str], Path]) -> None:
    """A limit 30 MB above what a small file needs holds it, and does not hold 64 MiB more."""
    needed = peak_memory(model, trial=ONCE).peak_bytes or 0
    trial = Trial(repeats=1, limit_bytes=needed + 30_000_000)
    assert peak_memory(model, trial=trial).fits is True
    seen = peak_memory(write("wide", WIDE), trial=trial)
    assert (seen.fits, seen.peak_bytes, seen.limit_bytes) == (False, None, trial.limit_bytes)
    assert re.match(rf"does not fit in {needed / 1e6 + 30:.1f} MB: .* Failed to allocate memory", seen.failed or "")
    assert any(words.startswith("the limit counts") for words in seen.blind_spots)


def test_a_limit_below_the_runtime_itself(model: Path) -> None:
    """A device that cannot hold the runtime cannot hold the file."""
    seen = peak_memory(model, trial=Trial(limit_bytes=1_000_000))
    assert re.match(r"does not fit in 1.0 MB: the runtime alone holds \d+\.\d MB", seen.failed or "")
    assert (seen.fits, seen.loaded_bytes) == (False, None)


@on_linux
def test_the_limit_is_lifted_again_and_spares_stacks() -> None:
    """Inside the limit 100 MB are refused, though a thread is not; afterwards both are there."""
    code = (
        "import threading\nfrom shipworthy.profile.memory_limit import limited, status_bytes\n"
        "def start():\n t = threading.Thread(target=int)\n t.start()\n t.join()\n"
        "held = status_bytes('VmRSS')\n"
        "with limited(held + 4_000_000, held, threads=2):\n"
        " start()\n"
        " try: bytearray(100_000_000)\n except MemoryError: print('refused')\n"
        "print(len(bytearray(100_000_000)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "100000000"]


def test_a_peak_beyond_the_limit_does_not_fit_even_if_nothing_stopped_it() -> None:
    """The larger peak of two decides; both are kept."""
    seen = [Memory(7, 1_000_000, 2_000_000, peak, fits=True) for peak in (3_000_000, 2_500_000)]
    assert join(seen, None) == Memory(7, 1_000_000, 2_000_000, 3_000_000, fits=True, peaks=(3_000_000, 2_500_000))
    assert join(seen, 3_000_000).fits is True
    found = join(seen, 2_900_000)
    assert (found.fits, found.failed) == (False, "does not fit in 2.9 MB: its peak was 3.0 MB")


def test_the_failed_process_of_several_is_the_result() -> None:
    """What failed once is not hidden by what went well before; the earlier peak is kept."""
    found = join([Memory(7, 1, 2, 3, fits=True), Memory(7, 1, failed="std::bad_alloc", fits=False)], None)
    assert (found.failed, found.fits, found.peak_bytes, found.peaks) == (
        "does not fit: std::bad_alloc",
        False,
        None,
        (3,),
    )


def test_a_killed_child_is_a_result(tmp_path: Path) -> None:
    """A child killed from outside gives what it had measured, and the signal."""
    seen = child(tmp_path, '{"runtime_bytes": 5}', "os.kill(os.getpid(), 9)")
    reason = "the child process was killed by SIGKILL, most likely because memory ran out"
    assert seen == Memory(7, runtime_bytes=5, failed=reason, fits=False)
    assert join([seen], None).failed == f"does not fit: {reason}"


def test_a_child_that_takes_too_long_is_a_result(tmp_path: Path) -> None:
    """A timeout ends the child and is a result too; it says nothing about memory."""
    seen = child(tmp_path, "{}", "time.sleep(60)", timeout_s=0.3)
    assert seen == Memory(7, failed="the child process did not end within 0.3 s")


def test_a_child_that_cannot_start_is_a_result(tmp_path: Path) -> None:
    """A command that is not there is a result, not a traceback."""
    failed = run_to_end([str(tmp_path / "absent")], tmp_path, 1.0).failed
    assert failed is not None
    assert failed.startswith("the child process could not be started")


def test_a_failing_inference_is_a_result(write: Callable[[str, str], Path]) -> None:
    """A file that loads and cannot run keeps its first two readings and the runtime's message."""
    graph = "main (float[N, 4] x) => (float[a, b] y) <int64[2] s = {3, 5}> { y = Reshape(x, s) }"
    seen = peak_memory(write("reshape", graph))
    assert seen.loaded_bytes is not None
    assert (seen.peak_bytes, seen.added_bytes, seen.activation_bytes, seen.fits, seen.peaks) == (*[None] * 4, ())
    assert "Reshape" in (seen.failed or "")


def test_how_a_child_ended_in_words() -> None:
    """An exit code comes with the last line of the child's errors, a signal with its name."""
    assert death(0, "a warning") is None
    assert death(3, "Traceback\nMemoryError\n\n") == "the child process ended with code 3: MemoryError"
    assert death(1, "") == "the child process ended with code 1: it wrote no error"
    assert death(-11, "") == "the child process was killed by SIGSEGV"
    aborted = "terminate called\n  what():  std::bad_alloc\nFatal Python error: Aborted\n"
    assert death(-6, aborted) == "the child process was killed by SIGABRT: what():  std::bad_alloc"
    ends = [(0, "MemoryError"), (1, "MemoryError"), (-9, ""), (-6, aborted), (-11, ""), (1, "")]
    assert [died_of_memory(*end) for end in ends] == [False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:std::bad_alloc", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("CUDA: cudaErrorMemoryAllocation (out of memory)", True),
        ("BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes of 2048", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes", True),
        ("numpy: Unable to allocate 8.00 GiB for an array", True),
        ("cannot load it: Invalid protobuf", False),
        ("dimension 1 is dynamic and not the batch; give inputs", False),
    ],
)
def test_errors_for_lack_of_memory_are_known(text: str, lacks: bool) -> None:
    """Each runtime says it in words of its own."""
    assert lacks_memory(text) is lacks


def test_a_child_tells_that_memory_ran_out(tmp_path: Path) -> None:
    """What the child says about itself counts, though it ended in good order."""
    code = ANSWER.replace("{}", '{"failed": "out of memory", "fits": false}')
    ended = run_to_end([sys.executable, "-c", code, str(tmp_path)], tmp_path, 30.0)
    assert (ended.failed, ended.fits) == ("out of memory", False)


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
        (tmp_path / "absent.onnx", "ort-cpu", None, "no such file; wanted a model file"),
        (model, "callable", None, "peak memory in runtime 'callable' cannot be measured, wanted one of ort-cpu"),
        (model, "ort", None, "runtime 'ort' is unknown"),
        (model, "ort-cpu", [1], "got inputs as a list, wanted a dict"),
        (corrupt, "ort-cpu", None, "cannot load it"),
    ]
    for target, runtime, inputs, words in cases:
        with pytest.raises(BadPlan, match=re.escape(words)):
            peak_memory(target, runtime, Plan(), inputs)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("repeats", 0), ("repeats", 1.5), ("timeout_s", 0.0), ("timeout_s", math.nan), ("limit_bytes", 0)],
)
def test_a_trial_out_of_range_is_refused(setting: str, value: Any) -> None:
    """Every setting names itself, what it got and what it wanted."""
    with pytest.raises(BadPlan, match=f"trial.{setting}: got {value!r}, wanted a"):
        Trial(**{setting: value})


@pytest.mark.parametrize(
    ("reply", "activation", "source"),
    [
        ({"workspace_bytes": 5, "running_bytes": 9, "loaded_bytes": 2}, 5, BY_ENGINE),
        ({"allocated_bytes": 6, "device": "cuda", "running_bytes": 9, "loaded_bytes": 2}, 6, BY_TORCH),
        ({"running_bytes": 9, "loaded_bytes": 2}, 7, BY_DIFFERENCE),
        ({"running_bytes": 9, "loaded_bytes": 12}, 0, BY_DIFFERENCE),
        ({"running_bytes": 9, "loaded_bytes": 2, "device": "cuda"}, None, ""),
        ({"loaded_bytes": 2}, None, ""),
    ],
)
def test_the_most_exact_account_of_activations_is_taken(
    reply: dict[str, Any], activation: int | None, source: str
) -> None:
    """An engine's or allocator's own account goes before a difference; on a GPU host memory says nothing."""
    found = memory_of(Ended(reply, None, True), 7)
    assert (found.activation_bytes, found.activation_source) == (activation, source)


def test_every_figure_has_its_line_and_its_blind_spots() -> None:
    """Lines name all figures, with the spread of the peak; what was not taken has no note."""
    seen = Memory(7, 10, 20, 3_000_000, peaks=(3_000_000, 2_000_000), activation_bytes=4, activation_source="counted")
    lines = {line.name: line for line in seen.lines()}
    assert lines["file"].bytes == 7
    assert lines["activations and workspace"][1:] == (4, "counted")
    assert "from 2.0 MB in 2 processes" in lines["process peak"].note
    assert lines["device"][1:] == (None, "")
    assert not any("GPU" in words or "spread" in words for words in blind_spots(seen, "ort-cpu"))
    alone = Memory(7, peaks=(5,), device_bytes=9, sampling_interval_ms=2.5)
    words = " ".join(blind_spots(alone, "ort-cuda"))
    for part in ("there is no spread", "every 2.5 ms", "weights were not told", "as in containers"):
        assert part in words
    assert "memory was not looked at" in " ".join(blind_spots(Memory(7), "tensorrt"))


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_a_gpu_s_memory_is_seen(write: Callable[[str, str], Path]) -> None:
    """64 MiB of output on the GPU show there, and in its allocator's account."""
    seen = peak_memory(write("wide", WIDE), "ort-cuda", trial=ONCE)
    assert (seen.failed, seen.fits) == (None, True)
    assert (seen.device_bytes or 0) > 60 * MIB
    assert (seen.activation_bytes or 0) > 60 * MIB
    assert (seen.sampling_interval_ms or 0) > 0
