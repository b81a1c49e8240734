"""ONNX Runtime on a GPU: what it may leave to the CPU, and binding, which runs on the CPU too."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, RuntimeAbsent
from shipworthy.profile.measure import interleave
from shipworthy.profile.ort_binding import on_device
from shipworthy.profile.ort_session import (
    CPU,
    CUDA,
    TENSORRT,
    check_placement,
    open_session,
    placement,
    session_options,
)
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner

PLAN = Plan()
Write = Callable[[str, str], Path]
without_gpu = pytest.mark.skipif(cuda_absent() is None, reason="there is a GPU")
needs_cuda_build = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA"
)


def refused(words: str, kind: type[Exception] = BadPlan) -> Any:
    """Expect an error with these words."""
    return pytest.raises(kind, match=re.escape(words))


@pytest.fixture
def lying_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that claims a GPU, so that ONNX Runtime itself finds out that there is none."""
    monkeypatch.setattr("shipworthy.profile.ort_session.cuda_absent", lambda: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


@without_gpu
def test_no_gpu_is_an_absent_runtime_and_never_a_fallback(model: Path) -> None:
    """onnxruntime-gpu would run a CUDA session on the CPU; here that is an error."""
    for runtime in ("ort-cuda", "ort-tensorrt"):
        with refused(f"runtime {runtime}: no NVIDIA driver is installed", RuntimeAbsent):
            open_runner(model, runtime, PLAN)


@without_gpu
@needs_cuda_build
@pytest.mark.usefixtures("lying_driver")
def test_a_silent_fallback_is_detected(model: Path) -> None:
    """With a driver that lies, the session itself falls back to the CPU; its providers give it away."""
    with refused("ONNX Runtime fell back to CPUExecutionProvider", RuntimeAbsent):
        open_runner(model, "ort-cuda", PLAN)


@without_gpu
@needs_cuda_build
@pytest.mark.usefixtures("lying_driver")
def test_tensorrt_without_its_libraries_is_absent(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's TensorRT needs TensorRT's libraries: they are looked for, and its own complaint is passed on."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with refused("TensorRT is not installed; pip install 'shipworthy[tensorrt]'", RuntimeAbsent):
        open_runner(model, "ort-tensorrt", PLAN)
    with refused("runtime ort-tensorrt: TensorRT's libraries cannot be loaded: ", RuntimeAbsent):
        open_session(onnxruntime, model, TENSORRT, PLAN)


@without_gpu
@needs_cuda_build
def test_an_older_onnxruntime_refuses_a_mixture_by_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nodes cannot be named, the session may not put any on the CPU."""
    base = onnxruntime.InferenceSession.__mro__[1]
    monkeypatch.delattr(base, "get_provider_graph_assignment_info")
    with refused("fallback to CPU EP has been explicitly disabled"):
        open_session(onnxruntime, model, CUDA, PLAN)


def nodes_of(path: Path) -> dict[str, list[str]]:
    """Return the nodes of a real session by provider."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return placement(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


def test_nodes_left_to_the_cpu_are_named(write: Write) -> None:
    """What ONNX Runtime tells of a real session is refused for a GPU, node by node; arithmetic with shapes is not."""
    graph = (
        "main (float[N, 4] x) => (float[a, b] y) <int64[1] two = {2}> "
        "{ [size] s = Shape(x)\n [twice] t = Mul(s, two)\n [act] r = Relu(x)\n [spread] y = Expand(r, t) }"
    )
    nodes = nodes_of(write("mixed", graph))
    assert nodes == {"CPUExecutionProvider": ["Shape 'size'", "Mul 'twice'", "Relu 'act'", "Expand 'spread'"]}
    with refused("m.onnx: runtime ort-cuda would run 1 node (Relu 'act') on the CPU; export the model without"):
        check_placement(nodes, CUDA, Path("m.onnx"))
    shapes = [node for node in nodes["CPUExecutionProvider"] if "Relu" not in node]
    check_placement({"CPUExecutionProvider": shapes, "CUDAExecutionProvider": ["Relu 'act'"]}, CUDA, Path("m.onnx"))


def test_a_fallback_that_is_allowed_is_told(write: Write) -> None:
    """With `allow_fallback` nodes on the CPU are named and not refused; a provider without any still is."""
    on_cpu = ["Relu 'act'", "Shape 'size'"]
    told = check_placement({"CPUExecutionProvider": on_cpu, CUDA.provider: ["Conv 'c'"]}, CUDA, Path("m.onnx"), True)
    assert told == "ort-cuda ran 1 node (Relu 'act') on the CPU"
    assert check_placement({CUDA.provider: ["Conv 'c'"]}, CUDA, Path("m.onnx"), True) is None
    with refused("took none of its nodes"):
        check_placement({"CPUExecutionProvider": on_cpu}, CUDA, Path("m.onnx"), True)


@pytest.mark.parametrize("allowed", [False, True])
def test_an_older_onnxruntime_is_told_to_refuse_unless_it_may_not(
    allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where placement cannot be read, ONNX Runtime itself is to refuse, but not where fallback is allowed."""
    monkeypatch.setattr("shipworthy.profile.ort_session.tells_placement", lambda ort: False)
    options = session_options(onnxruntime, CUDA, Plan(allow_fallback=allowed))
    entry = "session.disable_cpu_ep_fallback"
    if allowed:
        with pytest.raises(RuntimeError, match=entry):
            options.get_session_config_entry(entry)
    else:
        assert options.get_session_config_entry(entry) == "1"


def test_a_measurement_tells_of_its_fallback(model: Path) -> None:
    """What a runner's details say of a fallback is among the notes of its measurement, and of no other one's."""
    plan = Plan(budget_s=0, least_s=0, warmup_s=0, min_rounds=1, allow_fallback=True)
    with open_runner(model, "ort-cpu", plan) as one, open_runner(model, "ort-cpu", plan) as other:
        one.details["fallback"] = "ort-cuda ran 1 node (Relu 'act') on the CPU"
        found = interleave((one, other), plan)
    assert "fallback: ort-cuda ran 1 node (Relu 'act') on the CPU" in found[0].notes
    assert not any("fallback" in note for note in found[1].notes)


def test_a_provider_that_takes_nothing_is_a_fallback() -> None:
    """TensorRT that leaves all nodes to CUDA is not measured as TensorRT; many nodes are counted, not listed."""
    nodes = {"CUDAExecutionProvider": [f"Relu 'r{i}'" for i in range(7)]}
    with refused("TensorrtExecutionProvider took none of its nodes; 7 nodes (Relu 'r0', Relu 'r1', ") as caught:
        check_placement(nodes, TENSORRT, Path("m.onnx"))
    assert "Relu 'r4' and 2 more) would run elsewhere" in str(caught.value)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("transfers", [False, True])
def test_bound_runs_compute(write: Write, transfers: bool, cuda_graph: bool) -> None:
    """The calls for a GPU, here on the CPU: copies bring new inputs in, a graph's addresses stay, outputs are right."""
    path = write("double", "main (float[N, 2] x) => (float[N, 2] y) { y = Add(x, x) }")
    session = open_session(onnxruntime, path, CPU, PLAN)
    x = np.ones((3, 2), np.float32)
    run: Any = on_device(onnxruntime, session, {"x": x}, Plan(transfers=transfers, cuda_graph=cuda_graph), "cpu")
    binding = run.args[1]
    run()
    where = [value.data_ptr() for value in binding.get_outputs()]
    x[...] = 5
    copied = run()
    out = binding.get_outputs()[0].numpy()
    assert np.array_equal(out, np.full((3, 2), 10 if transfers else 2, np.float32))
    assert (copied is not None) == transfers
    assert not transfers or np.array_equal(copied[0], out)
    assert not cuda_graph or [value.data_ptr() for value in binding.get_outputs()] == where


def test_outputs_that_cannot_stay_on_a_gpu_are_refused(write: Write) -> None:
    """A sequence can only be fetched, so that a sample would hold copies unnoticed."""
    path = write("sequence", "main (float[N, 4] x) => (seq(float[N, 4]) y) { y = SequenceConstruct(x) }")
    session = open_session(onnxruntime, path, CPU, PLAN)
    with refused("its outputs {'y': 'seq(tensor(float))'} are not all tensors"):
        on_device(onnxruntime, session, {"x": np.ones((1, 4), np.float32)}, PLAN)


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("transfers", [False, True])
@pytest.mark.parametrize("runtime", ["ort-cuda", "ort-tensorrt"])
def test_a_file_runs_on_the_gpu(model: Path, runtime: str, transfers: bool, cuda_graph: bool) -> None:
    """With a GPU the provider asked for is first, took all nodes, and a run works, copied, captured or neither."""
    if runtime == "ort-tensorrt":
        pytest.importorskip("tensorrt")
    with open_runner(model, runtime, Plan(transfers=transfers, cuda_graph=cuda_graph)) as runner:
        runner.run()
        first = runner.details["providers"][0]
        assert first == {"ort-cuda": CUDA, "ort-tensorrt": TENSORRT}[runtime].provider
        assert runner.details["nodes"] == {first: 1}
        assert runner.details["nodes_on_cpu"] == []
