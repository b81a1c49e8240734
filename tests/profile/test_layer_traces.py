"""What runtimes' profilers write and report, on traces and engines whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from shipworthy.profile.errors import ProfileError
from shipworthy.profile.layer_costs import Tensor
from shipworthy.profile.layers_engine import engine_layers, layer_listener, profile_context
from shipworthy.profile.ort_graph import Node, align
from shipworthy.profile.ort_trace import inferences
from shipworthy.profile.plan import Plan
from shipworthy.profile.sampling import Turn

QUICK = Plan(warmup_s=0.0, warmup_cap_s=0.02)
RUNS = 6


def shapes(tensors: Sequence[Tensor | None]) -> list[tuple[int, ...] | None]:
    """Return the shapes alone."""
    return [None if tensor is None else tensor.shape for tensor in tensors]


# --- traces


def event(name: str, start: int, duration: int, **args: Any) -> dict[str, Any]:
    """Make an event as ONNX Runtime writes it."""
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": args}


RUN = {"cat": "Session", "name": "model_run", "ts": 0, "dur": 99, "args": {}}


def test_a_trace_is_split_into_inferences() -> None:
    """One closes when its run does; other events are passed over; durations are the middle of a microsecond."""
    noise = [{"cat": "Session", "name": "SequentialExecutor::Execute", "ts": 1, "dur": 9, "args": {}}]
    fence = [{"cat": "Node", "name": "a_fence_before", "ts": 1, "dur": 9, "args": {}}]
    first = event("b", 5, 3, op_name="Add", node_index="1", output_type_shape=[{"float": [2, 3]}, {"int64": []}])
    found = list(inferences([*noise, first, event("a", 1, 0, op_name="Neg", node_index="0"), *fence, RUN, RUN]))
    assert [[(one.name, one.own_ns) for one in run] for run in found] == [[("a", 500), ("b", 3500)], []]
    assert found[0][1].outputs == (Tensor("float32", (2, 3)), Tensor("int64", ()))


def test_an_operator_around_others_keeps_only_its_own_time() -> None:
    """Inner nodes end before the outer one and begin after it; the deepest names all around it, outermost first."""
    events = [
        event("before", 1, 2, op_name="Neg", node_index="0"),
        event("deep", 8, 1, op_name="Sin", node_index="0"),
        event("if", 7, 4, op_name="If", node_index="0"),
        event("loop", 4, 20, op_name="Loop", node_index="1"),
        RUN,
    ]
    (found,) = inferences(events)
    assert [(one.name, one.own_ns, one.inside) for one in found] == [
        ("before", 2500, ""),
        ("loop", 20500 - 4500, ""),
        ("if", 4500 - 1500, "Loop"),
        ("deep", 1500, "Loop If"),
    ]


def test_kernels_on_a_gpu_belong_to_the_node_before_them() -> None:
    """A node's device time is the sum of the kernel events that follow its own."""
    kernels = [{"cat": "Kernel", "name": "k", "ts": 3, "dur": 4, "args": {}}] * 2
    (found,) = inferences([event("a", 1, 1, op_name="Conv", node_index="0"), *kernels, RUN])
    assert found[0].device_ns == 2 * 4500


def test_inputs_that_do_not_fit_a_node_are_not_forced_into_it() -> None:
    """One too many or too few gives nothing rather than a wrong place."""
    node = Node("n", "Gemm", "", ("x", "w"), ("y",), {}, {"w": Tensor("float32", (3, 4), constant=True)})
    x, w = Tensor("float32", (2, 3)), Tensor("float32", (3, 4))
    assert [shapes(align(node, given) or ()) for given in ([x], [x, w])] == [[(2, 3), (3, 4)]] * 2
    assert align(node, []) is None
    assert align(node, [x, x]) is None


# --- engines


@pytest.fixture
def trt() -> Any:
    """TensorRT for RTX, whose profiler interface works without a GPU."""
    return pytest.importorskip("tensorrt_rtx_bindings")


def test_an_engines_layers_are_heard_through_tensorrts_own_interface(trt: Any) -> None:
    """What is reported to the listener is there in order; equal names are kept apart, and described where told."""
    listener = layer_listener(trt)
    for name, ms in (("conv", 0.5), ("copy", 0.125), ("copy", 0.25)):
        listener.report_layer_time(name, ms)
    made = {"Dimensions": [1, 4], "Format/Datatype": "Row major linear FP16"}
    told = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": [made]}
    first, *copies = engine_layers([listener.heard, [("conv", 0.75), ("copy", 0.5)]], {"conv": told})
    assert (first.name, first.samples_ns) == ("conv", (500_000, 750_000))
    assert first.operation.operator == "CaskConvolution"
    assert first.operation.outputs == (Tensor("float16", (1, 4)),)
    assert [one.samples_ns for one in copies] == [(125_000, 500_000), (250_000, 0)]


class Inspector:
    """Tells nothing, as of an engine built without detailed profiling verbosity."""

    execution_context: Any = None

    def get_engine_information(self, kind: Any) -> str:
        """Return no text."""
        return ""

    def create_engine_inspector(self) -> Inspector:
        """Be its own engine."""
        return self


class Context:
    """Runs two layers and reports them where somebody listens."""

    def __init__(self, layers: Sequence[tuple[str, float]]) -> None:
        self.profiler: Any = None
        self.engine = Inspector()
        self.layers = layers

    def run(self) -> None:
        """Do one inference."""
        for name, ms in self.layers if self.profiler else ():
            self.profiler.report_layer_time(name, ms)


def test_an_engine_runs_with_the_profiler_only_in_profiled_runs(trt: Any) -> None:
    """Settle runs are not counted, and the context has no profiler afterwards; no report at all is an error."""
    context = Context([("a", 1.0), ("b", 2.0)])
    found = profile_context(trt, context, Turn("engine", context.run), QUICK, RUNS)
    assert [(one.name, one.samples_ns) for one in found.layers] == [("a", (10**6,) * RUNS), ("b", (2 * 10**6,) * RUNS)]
    assert len(found.plain_ns) == len(found.profiled_ns) == RUNS
    assert context.profiler is None
    with pytest.raises(ProfileError, match="engine: TensorRT reported no layers"):
        profile_context(trt, context := Context([]), Turn("engine", context.run), QUICK, RUNS)
