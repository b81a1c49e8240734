"""Runners on the real runtimes, and everything they refuse."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import device_time_ns, open_runner

PLAN = Plan()
Write = Callable[[str, str], Path]


def refused(words: str, kind: type[Exception] = BadPlan) -> Any:
    """Expect an error with these words."""
    return pytest.raises(kind, match=re.escape(words))


def test_a_file_runs_on_exactly_the_provider_asked_for(model: Path) -> None:
    """The runner carries the file's own hash, its provider, threads and whether inputs were random."""
    plan = Plan(batch=3, threads=1)
    with open_runner(model, "ort-cpu", plan) as runner:
        runner.run()
        assert (runner.name, runner.runtime, runner.inputs) == ("chain1.onnx", "ort-cpu", "random")
        assert runner.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
        assert runner.details["providers"][0] == "CPUExecutionProvider"
        assert runner.details["input_shapes"] == {"x": [3, 64]}


def test_given_inputs_are_used_and_checked(model: Path) -> None:
    """Given inputs count as given; one of a wrong shape is refused before the first run."""
    with open_runner(str(model), "ort-cpu", PLAN, {"x": np.ones((1, 64), np.float32)}) as runner:
        runner.run()
        assert runner.inputs == "given"
    with refused("got shape (1, 63)"):
        open_runner(model, "ort-cpu", PLAN, {"x": np.ones((1, 63), np.float32)})
    with refused("got inputs as a list, wanted a dict"):
        open_runner(model, "ort-cpu", PLAN, [np.ones((1, 64), np.float32)])


def test_outputs_that_cannot_be_bound_run_too(write: Write) -> None:
    """A file whose output is a sequence runs without output binding."""
    path = write("sequence", "main (float[N, 4] x) => (seq(float[N, 4]) y) { y = SequenceConstruct(x) }")
    with open_runner(path, "ort-cpu", PLAN) as runner:
        runner.run()


def test_a_closed_runner_says_so(model: Path) -> None:
    """A run after the context has ended is an error with the remedy."""
    with open_runner(model, "ort-cpu", PLAN) as runner:
        pass
    with refused("chain1.onnx: its runner is closed; open it again", ProfileError):
        runner.run()


def test_what_is_not_a_model_is_bad_input(tmp_path: Path, model: Path) -> None:
    """A corrupt, truncated or missing file is refused by name."""
    corrupt, truncated = tmp_path / "corrupt.onnx", tmp_path / "truncated.onnx"
    corrupt.write_bytes(b"not a protobuf" * 9)
    truncated.write_bytes(model.read_bytes()[:-300])
    for path in (corrupt, truncated):
        with refused(f"{path}: ONNX Runtime"):
            open_runner(path, "ort-cpu", PLAN)
    with refused("no such file; wanted an ONNX file"):
        open_runner(tmp_path / "absent.onnx", "ort-cpu", PLAN)


def test_runtimes_refuse_targets_of_other_kinds(model: Path) -> None:
    """Each message names the runtime that would take the target."""
    with refused("takes a path; use torch for a module, else callable"):
        open_runner(len, "ort-cpu", PLAN)
    with refused("for an ONNX file use runtime ort-cpu"):
        open_runner(model, "callable", PLAN)
    with refused("use ort-cpu for a file, else callable"):
        open_runner(model, "torch", PLAN)


def test_an_unknown_runtime_names_the_nearest() -> None:
    """A misspelt runtime is answered with the known ones and the nearest."""
    with refused("runtime 'ort_cpu' is unknown, wanted one of ort-cpu") as caught:
        open_runner("m.onnx", "ort_cpu", PLAN)
    assert str(caught.value).endswith("did you mean ort-cpu?")


@pytest.mark.parametrize("runtime", ["ort-cpu", "torch", "torch-compile", "callable", "command"])
def test_a_cuda_graph_off_a_gpu_is_refused(runtime: str, model: Path) -> None:
    """A plan that asks for what cannot be captured is refused, not ignored."""
    module = torch.nn.ReLU().eval()
    targets: dict[str, Any] = {"ort-cpu": model, "callable": len, "command": "true"}
    inputs = (torch.ones(1),) if runtime.startswith("torch") else None
    with refused(f"plan.cuda_graph: runtime {runtime}") as caught:
        open_runner(targets.get(runtime, module), runtime, Plan(cuda_graph=True), inputs)
    assert "set cuda_graph=False, or measure on a GPU" in str(caught.value)


def test_transfers_have_no_effect_on_the_cpu_and_say_so(model: Path) -> None:
    """The details tell what a sample includes of copies; what runs is the same."""
    torch_runner = open_runner(torch.nn.ReLU().eval(), "torch", Plan(transfers=True), (torch.ones(1),))
    for runner in (open_runner(model, "ort-cpu", Plan(transfers=True)), torch_runner):
        with runner:
            runner.run()
            assert runner.details["transfers"] == "no effect: on the CPU nothing is copied"
            assert device_time_ns(runner) is None


@pytest.mark.parametrize(
    ("runtime", "module"), [("ort-cpu", "onnxruntime"), ("torch", "torch"), ("torch-compile", "torch")]
)
def test_a_runtime_that_is_not_installed_is_named(
    runtime: str, module: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with refused(f"runtime {runtime}: {module} is not installed; pip install", RuntimeAbsent):
        open_runner(model, runtime, PLAN)


def test_a_callable_gets_its_arguments() -> None:
    """Arguments come by name or in order, or not at all."""
    got: list[tuple[int, ...]] = []

    def note(*values: int, last: int = 0) -> None:
        got.append((*values, last))

    for inputs in ((1, 2), {"last": 3}, None):
        with open_runner(note, "callable", PLAN, inputs) as runner:
            runner.run()
    assert got == [(1, 2, 0), (3,), (0,)]
    assert runner.name.endswith("note")


def test_the_module_imports_no_runtime() -> None:
    """Importing runners, measure, compare and memory imports no runtime at all."""
    code = (
        "import sys; import shipworthy.profile.compare, shipworthy.profile.memory_child, shipworthy.profile.available;"
        "print([m for m in ('torch', 'onnxruntime', 'onnx', 'cuda', 'tensorrt_rtx_bindings') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
