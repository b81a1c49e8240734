"""Running engines: real engines and the real CUDA API as far as they go without a GPU, then on one of host memory."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import parser

from shipworthy.profile import cuda_stream, engine_runner
from shipworthy.profile.cuda_stream import Cuda
from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.engine_file import RTX, TENSORRT, import_trt, load_engine
from shipworthy.profile.engine_runner import EngineRunner
from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.opening import sha256_of
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import device_time_ns, open_runner
from shipworthy.tests.profile.host_gpu import HostCuda, HostEngine

trt = pytest.importorskip("tensorrt_rtx_bindings")
cudart: Any = pytest.importorskip("cuda.bindings.runtime")

PLAN = Plan(batch=2)
GRAPH = '<ir_version: 10, opset_import: ["" : 20]>\nmain (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'
without_gpu = pytest.mark.skipif(cuda_absent() is None, reason="there is a GPU")


def refused(words: str, kind: type[Exception] = BadPlan) -> Any:
    """Expect an error with these words."""
    return pytest.raises(kind, match=re.escape(words))


def built(module: Any) -> bytes:
    """Build a real engine of one Relu, for batches from 1 to 8."""
    log = module.Logger(module.Logger.ERROR)
    builder = module.Builder(log)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert module.OnnxParser(network, log).parse(parser.parse_model(GRAPH).SerializeToString())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (8, 4))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real engine of TensorRT for RTX, which builds without a GPU."""
    path = tmp_path_factory.mktemp("engines") / "relu.engine"
    path.write_bytes(built(trt))
    return path


def capability() -> str:
    """Be a GPU that no engine here is asked for."""
    raise AssertionError("no manifest names a compute capability")


@without_gpu
def test_without_a_driver_engines_are_absent_at_once(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real engine, and a file that is not there, are refused for the driver before anything is imported."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    for runtime in ("rtx", "tensorrt"):
        for target in (engine, "absent.engine"):
            with refused(f"runtime {runtime}: no NVIDIA driver is installed", RuntimeAbsent):
                open_runner(target, runtime, PLAN)


@without_gpu
def test_cuda_errors_have_their_name() -> None:
    """What the real CUDA API answers without a driver is an absent runtime, with CUDA's own words."""
    with refused("CUDA: cudaErrorInsufficientDriver (CUDA driver version is insufficient", RuntimeAbsent):
        Cuda(cudart)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT is an extra of that name; cuda-bindings is a package."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with refused("tensorrt is not installed; pip install 'shipworthy[tensorrt]'", RuntimeAbsent):
        import_trt(TENSORRT)
    monkeypatch.setattr(cuda_stream, "cuda_absent", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with refused("runtime rtx: cuda-bindings is not installed", RuntimeAbsent):
        open_runner("m.engine", "rtx", PLAN)


def test_a_file_that_tensorrt_refuses_says_why(engine: Path, tmp_path: Path) -> None:
    """The message carries the file, the version and what TensorRT logged; its log prints nothing."""
    nonsense = tmp_path / "nonsense.engine"
    nonsense.write_bytes(b"nonsense" * 50)
    with refused(f"{nonsense}: tensorrt_rtx_bindings {trt.__version__} cannot load it (IRuntime::deserializeCuda") as seen:  # fmt: skip # noqa: E501
        load_engine(trt, nonsense, capability)
    assert "Serialization" in str(seen.value)
    assert str(seen.value).endswith("wanted an engine that was built for this version and GPU")
    if cuda_absent() is not None:
        with refused("cudaError 35"):
            load_engine(trt, engine, capability)


# What follows runs on a CUDA API of host memory: here is no driver that the real one would answer to.


@pytest.fixture
def api() -> HostCuda:
    """CUDA on host memory."""
    return HostCuda(cudart)


@pytest.fixture
def fake(api: HostCuda, monkeypatch: pytest.MonkeyPatch) -> HostEngine:
    """The engine that every file now holds, on that CUDA."""
    made, said = HostEngine(trt, api), "the tactic ran out of luck"

    def runtime(log: Any) -> Any:
        log.log(trt.ILogger.INFO, "loaded")
        log.log(trt.ILogger.ERROR, said)
        return SimpleNamespace(deserialize_cuda_engine=lambda content: made)

    names = {name: getattr(trt, name) for name in dir(trt)} | {"Runtime": runtime}
    monkeypatch.setattr(engine_runner, "import_cuda", lambda runtime: api)
    monkeypatch.setattr(engine_runner, "import_trt", lambda flavour: SimpleNamespace(**names))
    return made


X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("transfers", [False, True])
def test_a_run_computes_on_its_buffers(
    engine: Path, fake: HostEngine, api: HostCuda, transfers: bool, cuda_graph: bool
) -> None:
    """With and without copies and a graph the outputs are those of the inputs, and nothing is left behind."""
    plan = Plan(batch=3, transfers=transfers, cuda_graph=cuda_graph)
    with EngineRunner(engine, RTX, plan, {"x": X}) as runner:
        runner.run()
        assert np.array_equal(runner.outputs()["y"], 2 * X + 1)
        assert (runner.device_time_ns(), device_time_ns(runner)) == (250_000, 250_000)
        api.log.clear()
        runner.run()
        copies = [] if not transfers or cuda_graph else ["cudaMemcpyAsync"]
        work = ["cudaGraphLaunch"] if cuda_graph else copies * 2
        assert api.log == ["cudaEventRecord", *work, "cudaEventRecord", "cudaStreamSynchronize"]
        assert (runner.details["cuda_graph"], runner.details["transfers"][:8]) == (cuda_graph, "included" if transfers else "not incl")  # fmt: skip # noqa: E501
        assert (runner.name, runner.inputs, runner.details["input_shapes"]) == ("relu.engine", "given", {"x": [3, 4]})
        api.log.clear()
    assert api.held == {}
    graph, pinned = ["cudaGraphExecDestroy"] * cuda_graph, ["cudaFreeHost"] * transfers
    buffers = [*pinned, "cudaFree"] * 2
    assert api.log == ["cudaStreamSynchronize", *graph, *["cudaEventDestroy"] * 2, *buffers, "cudaStreamDestroy"]
    for use in (runner.run, runner.outputs, runner.device_time_ns):
        with refused("relu.engine: its runner is closed; open it again", ProfileError):
            use()


def test_kernels_are_compiled_before_sampling(engine: Path, fake: HostEngine) -> None:
    """TensorRT for RTX would swap kernels while samples are taken; the context asks it to compile them at once."""
    with EngineRunner(engine, RTX, PLAN) as runner:
        assert fake.dynamic_shapes_kernel_specialization_strategy == trt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert (runner.inputs, runner.details["kernels"]) == ("random", "compiled when a shape is first run")


@pytest.mark.parametrize(
    "failing",
    ["cudaStreamCreateWithFlags", "cudaMalloc", "cudaMallocHost", "cudaEventCreate", "cudaMemcpyAsync",
     "cudaStreamSynchronize", "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate",
     "cudaGraphLaunch"],
)  # fmt: skip
def test_an_opening_that_fails_half_way_leaves_nothing(
    engine: Path, fake: HostEngine, api: HostCuda, failing: str
) -> None:
    """Whichever call fails, its error arrives with its name and everything that was taken is given back."""
    api.failing = failing
    with refused("CUDA: cudaErrorMemoryAllocation (out of memory)", ProfileError):
        EngineRunner(engine, RTX, Plan(batch=2, transfers=True, cuda_graph=True))
    assert api.held == {}


def test_what_tensorrt_refuses_carries_its_log(engine: Path, fake: HostEngine, api: HostCuda) -> None:
    """A refused inference says so with TensorRT's own errors, also while a graph is captured."""
    with EngineRunner(engine, RTX, PLAN) as runner:
        fake.accepts = False
        with refused("relu.engine: TensorRT refused the inference (the tactic ran out of luck)", ProfileError):
            runner.run()
        with refused("TensorRT refused the inference (it logged no error)", ProfileError):
            runner.run()
    fake.accepts, fake.capturable = True, False
    with refused("relu.engine: TensorRT cannot put this engine into a CUDA graph; set cuda_graph=False"):
        EngineRunner(engine, RTX, Plan(cuda_graph=True))
    assert api.held == {}


def test_a_fault_while_capturing_ends_the_capture(api: HostCuda) -> None:
    """The stream leaves its capture, and the fault itself arrives."""
    cuda = Cuda(api)

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        cuda.captured(fail)
    assert api.kept is None
    cuda.close()
    cuda.close()
    assert api.log.count("cudaStreamDestroy") == 1


@pytest.mark.parametrize(
    ("change", "inputs", "words"),
    [
        ({"kind": trt.DataType.BF16}, None, "input 'x' tensor(bfloat16) (?, 4): this type has no numpy equivalent"),
        ({"kind": trt.DataType.FP8}, None, "input 'x' tensor(float8e4m3fn) (?, 4): this type has no numpy equivalent"),
        ({"location": trt.TensorLocation.HOST}, None, "'x' is a shape tensor on the host"),
        ({"declared": {"x": (-1, -1), "y": (-1, 4)}}, None, "dimension 1 is dynamic and not the batch; give inputs"),
        ({"declared": {"x": (-1, 4), "y": (-1, -1)}}, None, "output 'y' tensor(float) (?, ?): its shape depends on"),
        ({}, {"x": X[:1]}, "got a batch of 1, but plan.batch is 2"),
        ({}, {"x": X[:2].astype(np.float64)}, "got float64, wanted float32"),
        ({}, [X[:2]], "got inputs as a list, wanted a dict of arrays by input name"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    engine: Path, fake: HostEngine, api: HostCuda, change: dict[str, Any], inputs: Any, words: str
) -> None:
    """Types without a numpy equivalent, shapes that depend on data and inputs that do not fit are bad input."""
    vars(fake).update(change)
    with refused(words):
        EngineRunner(engine, RTX, PLAN, inputs)
    assert api.held == {}


def test_a_batch_outside_the_profile_is_refused(engine: Path, fake: HostEngine) -> None:
    """The message names what the engine was built for."""
    with refused("input 'x': got shape (9, 4), wanted (1, 4) to (8, 4); change plan.batch"):
        EngineRunner(engine, RTX, Plan(batch=9))


def test_a_target_that_is_no_file_is_refused(fake: HostEngine, api: HostCuda) -> None:
    """A missing file and a module are bad input, before the GPU is touched."""
    with refused("absent.engine: no such file; wanted a TensorRT engine"):
        EngineRunner("absent.engine", RTX, PLAN)
    with refused("runtime rtx takes a path"):
        EngineRunner(len, RTX, PLAN)
    assert api.log == []


def test_other_inputs_take_the_place_of_the_first(engine: Path, fake: HostEngine, api: HostCuda) -> None:
    """Fed arrays are computed on, copied, captured or neither; other shapes are refused, the caller's stay as given."""
    for transfers, cuda_graph in ((False, False), (True, False), (True, True), (False, True)):
        given = X.copy()
        plan = Plan(batch=3, transfers=transfers, cuda_graph=cuda_graph)
        with EngineRunner(engine, RTX, plan, {"x": given}) as runner:
            runner.feed({"x": X + 5})
            runner.run()
            assert np.array_equal(runner.outputs()["y"], 2 * (X + 5) + 1)
            assert np.array_equal(given, X)
            with refused("got a batch of 2, but plan.batch is 3"):
                runner.feed({"x": X[:2]})
    assert api.held == {}


class Lent:
    """An array in memory that is not the runner's, as torch or CuPy would lend it."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__array_interface__ | {"version": 3}


def test_inputs_on_the_gpu_stay_there(engine: Path, fake: HostEngine, api: HostCuda) -> None:
    """An array that lies on the GPU is computed on without a copy, as it is at each run; it must be contiguous."""
    lent = Lent(X.copy())
    with EngineRunner(engine, RTX, Plan(batch=3), {"x": lent}) as runner:
        assert "cudaMemcpyAsync" not in api.log
        assert "cudaDeviceSynchronize" in api.log
        lent.array += 1
        runner.run()
        assert np.array_equal(runner.outputs()["y"], 2 * (X + 1) + 1)
        with refused("input 'x': got shape (3, 4), was opened with memory on the GPU; open it anew"):
            runner.feed({"x": X})
    assert api.held == {}
    with refused("inputs x are on the GPU already; set transfers=False"):
        EngineRunner(engine, RTX, Plan(batch=3, transfers=True), {"x": lent})
    with refused("input 'x' is not contiguous on the GPU"):
        EngineRunner(engine, RTX, Plan(batch=3), {"x": Lent(np.zeros((3, 8), np.float32)[:, ::2])})
    with refused("got float64, wanted float32"):
        EngineRunner(engine, RTX, Plan(batch=3), {"x": Lent(X.astype(np.float64))})


def test_the_plans_shapes_fill_open_dimensions(engine: Path, fake: HostEngine) -> None:
    """Random inputs take the plan's shape where the engine leaves more than the batch open."""
    vars(fake).update(declared={"x": (-1, -1), "y": (-1, 4)})
    with EngineRunner(engine, RTX, Plan(batch=2, shapes=(("x", (None, 4)),))) as runner:
        assert runner.details["input_shapes"] == {"x": [2, 4]}


def test_the_profile_that_fits_is_chosen(engine: Path, fake: HostEngine) -> None:
    """Of several optimization profiles the first that holds the shapes is set; where none does, all are named."""
    vars(fake).update(num_optimization_profiles=2)
    with EngineRunner(engine, RTX, Plan(batch=20)) as runner:
        assert (fake.profile, runner.details["optimization_profile"]) == (1, 1)
    with refused(
        "got shape (9, 4), wanted (1, 4) to (8, 4), or input 'x': got shape (9, 4), wanted (16, 4) to (32, 4)"
    ):
        EngineRunner(engine, RTX, Plan(batch=9))


def test_the_manifest_is_in_the_details(engine: Path, fake: HostEngine, tmp_path: Path) -> None:
    """With a manifest the GPU is compared with it; without one the details say that nothing was checked."""
    with EngineRunner(engine, RTX, PLAN) as runner:
        assert runner.details["manifest"].startswith("none beside the engine")
    copy = tmp_path / "relu.engine"
    copy.write_bytes(engine.read_bytes())
    told = {"schema": 2, "sha256": sha256_of(copy), "flavour": "rtx", "version": trt.__version__, "gpu": None}
    (tmp_path / "relu.engine.json").write_text(json.dumps(told | {"compute_capabilities": ["8.6"]}))
    with EngineRunner(copy, RTX, PLAN) as runner:
        assert runner.details["manifest"] == "checked"
    (tmp_path / "relu.engine.json").write_text(json.dumps(told | {"compute_capabilities": ["8.9"]}))
    with refused("got a GPU of compute capability 8.6, and the engine is for 8.9"):
        EngineRunner(copy, RTX, PLAN)


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
@pytest.mark.parametrize("flavour", [RTX, TENSORRT], ids=lambda flavour: str(flavour.runtime))
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("transfers", [False, True])
def test_an_engine_runs_on_the_gpu(tmp_path: Path, flavour: Any, transfers: bool, cuda_graph: bool) -> None:
    """A real engine gives what numpy gives, whether copied, captured or neither, and the GPU's clock runs."""
    module = pytest.importorskip(flavour.module)
    attribute = cudart.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
    if flavour is RTX and cudart.cudaDeviceGetAttribute(attribute, 0)[1] == 9:
        pytest.skip("TensorRT for RTX has no kernels for compute capability 9.0")
    path = tmp_path / "relu.engine"
    path.write_bytes(built(importlib.import_module(module.__name__)))
    x = X - 5
    with open_runner(path, flavour.runtime, Plan(batch=3, transfers=transfers, cuda_graph=cuda_graph), {"x": x}) as runner:  # fmt: skip # noqa: E501
        runner.run()
        assert isinstance(runner, EngineRunner)
        assert np.array_equal(runner.outputs()["y"], np.maximum(x, 0))
        assert runner.device_time_ns() > 0
