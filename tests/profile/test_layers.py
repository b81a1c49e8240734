"""Profiles by layer of real files and modules, and their tables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, ProfileError
from shipworthy.profile.layer_costs import Operation, Tensor
from shipworthy.profile.layer_profile import MOST_SAMPLES, Layer, LayerProfile, Seen, make_layers
from shipworthy.profile.layer_table import NUMBERS, by_operator, layer_rows, operator_rows, summary_lines, time_text
from shipworthy.profile.layers import profile_layers
from shipworthy.profile.layers_ort import WARM_RUNS, profile_file
from shipworthy.profile.ort_trace import Ran
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner

QUICK = Plan(warmup_s=0.0, warmup_cap_s=0.02)
RUNS = 6
Write = Callable[[str, str], Path]


def profiled(path: Path, batch: int = 1, **inputs: Any) -> LayerProfile:
    """Profile a file in a few runs."""
    return profile_layers(path, "ort-cpu", replace(QUICK, batch=batch), inputs or None, RUNS)


def named(profile: LayerProfile, operator: str) -> Layer:
    """Return the only layer of an operator."""
    (found,) = (layer for layer in profile.layers if layer.operator == operator)
    return found


def shapes(tensors: Sequence[Tensor | None]) -> list[tuple[int, ...] | None]:
    """Return the shapes alone."""
    return [None if tensor is None else tensor.shape for tensor in tensors]


@pytest.fixture
def convolutions(tmp_path: Path) -> Path:
    """Two convolutions with user's names, the first with an activation; 12 and 20 channels fill no block."""
    generator = np.random.default_rng(0)
    weights = {"net.first.weight": (12, 3, 3, 3), "net.first.bias": (12,), "net.second.weight": (20, 12, 1, 1)}
    initializers = [
        numpy_helper.from_array(generator.standard_normal(shape, np.float32), name) for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "net.first.weight", "net.first.bias"], ["a"], pads=[1, 1, 1, 1], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="two"),
        helper.make_node("Conv", ["b", "net.second.weight"], ["y"], name="three"),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["N", 3, 8, 8])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, None)], initializers)
    path = tmp_path / "convolutions.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


# --- files in ONNX Runtime


def test_each_node_that_runs_is_a_layer_with_what_it_costs(chain: Callable[[int], Path]) -> None:
    """Three products of a dynamic batch of 5 are three layers; all numbers per run are there and add up."""
    seen = profiled(chain(3), batch=5)
    assert [layer.operator for layer in seen.layers] == ["MatMul"] * 3
    assert seen.flops == 3 * 2 * 5 * 64 * 64
    for layer in seen.layers:
        assert layer.provider == "CPUExecutionProvider"
        assert shapes(layer.inputs) == [(5, 64), (64, 64)]
        assert layer.bytes == 4 * (5 * 64 + 64 * 64 + 5 * 64)
        assert len(layer.samples_ns) == RUNS
        assert layer.total_ns == sum(layer.samples_ns)
    assert sum(layer.share for layer in seen.layers) == pytest.approx(1)
    assert len(seen.plain_ns) == len(seen.profiled_ns) == RUNS
    assert list(seen.attributed_ns) == [sum(times) for times in zip(*(x.samples_ns for x in seen.layers), strict=True)]
    assert all(whole > parts > 0 for whole, parts in zip(seen.profiled_ns, seen.attributed_ns, strict=True))
    assert 0 < seen.unattributed_ns < seen.profiled_median_ns
    assert seen.overhead == pytest.approx(seen.profiled_median_ns / seen.plain_median_ns - 1)
    assert seen.details["intra_op_threads"] == 1


def test_weights_that_a_kernel_packs_away_are_still_counted(write: Write) -> None:
    """ONNX Runtime's trace leaves out packed weights; they come from its graph, in their places."""
    w, r = ", ".join(["0.1"] * 48), ", ".join(["0.1"] * 64)
    weights = f"float[1, 16, 3] W = {{{w}}}, float[1, 16, 4] R = {{{r}}}"
    graph = f"main (float[5, N, 3] x) => (float[5, 1, N, 4] y) <{weights}> {{ y, h, c = LSTM<hidden_size=4>(x, W, R) }}"
    layer = named(profiled(write("lstm", graph), 5, x=np.ones((5, 2, 3), np.float32)), "LSTM")
    assert layer.flops == 2 * 5 * 2 * 16 * (3 + 4)
    assert shapes(layer.inputs) == [(5, 2, 3), (1, 16, 3), (1, 16, 4)]
    assert [tensor.constant for tensor in layer.inputs if tensor] == [False, True, True]


def test_inputs_left_out_keep_their_place(write: Write) -> None:
    """A clip without a lower bound has its upper one in the third place."""
    path = write("clip", "main (float[N, 4] x) => (float[N, 4] y) <float most = {1}> { y = Clip(x, , most) }")
    assert shapes(named(profiled(path), "Clip").inputs) == [(1, 4), None, ()]


def test_fused_layers_in_blocked_layout_say_so_and_have_the_users_names(convolutions: Path) -> None:
    """A fused activation is no layer of its own; padded channels count, since they are computed; weights give names."""
    seen = profiled(convolutions, batch=2)
    convs = [layer for layer in seen.layers if layer.operator in ("Conv", "FusedConv")]
    assert [layer.module for layer in convs] == ["net.first", "net.second"]
    assert [layer.title for layer in convs] == ["net.first", "net.second"]
    assert not [layer for layer in seen.layers if layer.operator == "Relu"]
    assert "fused: Relu" in convs[0].facts
    for layer, kernel in zip(convs, (9, 1), strict=True):
        x, weight = layer.inputs[:2]
        assert x is not None
        assert weight is not None
        assert layer.flops == 2 * layer.outputs[0].size * weight.shape[1] * kernel
        assert layer.outputs[0].shape[1] >= (12 if kernel == 9 else 20)
    if any("blocked layout" in layer.facts for layer in convs):  # where the processor has blocks of 8 or 16 channels
        reorders = [layer for layer in seen.layers if layer.operator == "ReorderOutput"]
        assert reorders
        assert all("reorder" in layer.facts for layer in reorders)


def test_quantized_layers_are_seen_in_int8(convolutions: Path, tmp_path: Path) -> None:
    """A Q/DQ file runs as quantized convolutions; the model's own shapes and int8 are told."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # the package has no types
        def __init__(self) -> None:
            self.left = [{"x": np.ones((1, 3, 8, 8), np.float32)}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    path = tmp_path / "int8.onnx"
    kinds = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
    quantization.quantize_static(str(convolutions), str(path), Reader(), **kinds)
    convs = [layer for layer in profiled(path, batch=2).layers if layer.operator == "QLinearConv"]
    assert [layer.flops for layer in convs] == [2 * 2 * 64 * 12 * 27, 2 * 2 * 64 * 20 * 12]
    assert {layer.dtype for layer in convs} == {"int8"}
    assert all("int8" in layer.facts for layer in convs)
    assert [layer.module for layer in convs] == ["net.first", "net.second"]


def test_control_flow_does_not_count_what_is_inside_it_twice(write: Write) -> None:
    """The nodes of the branch taken are layers inside the If; times of all layers stay below the whole."""
    taken, other = "t () => (float[N, 4] a) { m = Exp(x) a = Sin(m) }", "e () => (float[N, 4] b) { b = Cos(x) }"
    branches = f"then_branch = {taken}, else_branch = {other}"
    path = write("branch", f"main (float[N, 4] x, bool c) => (float[N, 4] y) {{ h = If (c) <{branches}> y = Neg(h) }}")
    seen = profiled(path, x=np.ones((1, 4), np.float32), c=np.array(True))
    assert [layer.operator for layer in seen.layers] == ["If", "Exp", "Sin", "Neg"]
    assert named(seen, "Sin").facts == ("inside If",)
    assert named(seen, "Sin").flops == 4
    assert all(parts < whole for parts, whole in zip(seen.attributed_ns, seen.profiled_ns, strict=True))


def test_without_the_onnx_package_costs_are_unknown(
    chain: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trace alone does not tell which inputs are missing from it, so that nothing is counted by guess."""
    path = chain(1)
    monkeypatch.setitem(sys.modules, "onnx", None)
    seen = profiled(path)
    assert named(seen, "MatMul").flops is None
    assert seen.not_counted == ("MatMul",)
    assert "the onnx package is not installed, so that costs are not counted" in seen.notes


def test_a_profile_is_plain_data(model: Path) -> None:
    """It survives JSON, with what is derived."""
    seen = profiled(model)
    data = json.loads(json.dumps(seen.to_dict()))
    assert data["schema"] == 1
    assert data["flops"] == seen.flops
    assert data["layers"][0]["intensity"] == seen.layers[0].intensity
    assert data["layers"][0]["inputs"][1] == {"dtype": "float32", "shape": [64, 64], "constant": True}


@pytest.mark.parametrize(
    ("runtime", "plan", "runs", "words"),
    [
        ("ort", QUICK, 1, "runtime 'ort' is unknown"),
        ("callable", QUICK, 1, "layers in runtime 'callable' cannot be profiled, wanted one of ort-cpu"),
        ("ort-cpu", QUICK, 0, "got 0 runs, wanted a whole number of at least 1"),
        ("ort-cpu", replace(QUICK, cuda_graph=True), 1, "layers inside a CUDA graph cannot be told apart"),
        ("ort-cpu", replace(QUICK, streams=2), 1, "layers are profiled one inference at a time; set streams=1"),
    ],
)
def test_what_cannot_be_profiled_is_refused(model: Path, runtime: str, plan: Plan, runs: int, words: str) -> None:
    """Each refusal says what is wrong before anything runs."""
    with pytest.raises(BadPlan, match=words):
        profile_layers(model, runtime, plan, None, runs)


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        ([], r"trace holds 0 whole timed inferences, wanted 1; it keeps a million events: ask for fewer runs"),
        (
            [[Ran("n", "Conv", "CUDAExecutionProvider", 0, 1, 500, (), ())]] * (WARM_RUNS + 2),
            "records launches, not kernels, on a GPU, so that layers cannot be timed",
        ),
    ],
)
def test_a_trace_that_does_not_hold_what_it_should_is_an_error(
    model: Path, trace: list[list[Ran]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inferences that are missing, and times of launches in place of kernels, give no profile."""
    monkeypatch.setattr("shipworthy.profile.layers_ort.inferences", lambda events: trace)
    with pytest.raises(ProfileError, match=words):
        profile_layers(model, "ort-cpu", QUICK, None, 1)


def test_a_file_that_cannot_be_profiled_is_bad_input(model: Path, tmp_path: Path) -> None:
    """It may have changed since the runner opened it."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with open_runner(model, "ort-cpu", QUICK) as runner, pytest.raises(BadPlan, match="cannot profile it"):
        profile_file(runner, broken, None, 1)


# --- modules in torch


class Net(torch.nn.Module):
    """Convolutions of both kinds, a nested module, functions and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.body = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1, groups=4), torch.nn.ReLU())
        self.up = torch.nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.pool = torch.nn.MaxPool2d(2)
        self.head = torch.nn.Linear(4 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Go through all of it."""
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.softmax(self.pool(self.up(x + self.body(x))), 1)
        return torch.matmul(self.head(x.flatten(1)), torch.ones(10, 2))


@pytest.fixture(scope="module")
def module_profile() -> tuple[LayerProfile, int]:
    """The profile of `Net` on a batch of 2, and torch's own count of its operations."""
    net, x = Net().eval(), torch.ones(2, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return profile_layers(net, "torch", QUICK, (x,), RUNS), counter.get_total_flops()


def test_a_modules_operators_stand_under_its_paths(module_profile: tuple[LayerProfile, int]) -> None:
    """Each operator is listed once, in order, with the module that calls it."""
    seen, _ = module_profile
    assert [(layer.module, layer.operator) for layer in seen.layers if layer.operator != "ones"] == [
        ("stem", "conv2d"),
        ("norm", "batch_norm"),
        ("", "relu"),
        ("body.0", "conv2d"),
        ("body.1", "relu"),
        ("", "add"),
        ("up", "conv_transpose2d"),
        ("pool", "max_pool2d"),
        ("", "softmax"),
        ("", "flatten"),
        ("head", "linear"),
        ("", "matmul"),
    ]
    assert all(len(layer.samples_ns) == RUNS and layer.median_ns > 0 for layer in seen.layers)
    assert all(parts < whole for parts, whole in zip(seen.attributed_ns, seen.profiled_ns, strict=True))
    assert len(seen.plain_ns) == len(seen.profiled_ns) == RUNS


def test_a_modules_products_are_those_that_torch_counts(module_profile: tuple[LayerProfile, int]) -> None:
    """Convolutions and products together have the number of operations of torch's own counter."""
    seen, counted = module_profile
    products = ("conv2d", "conv_transpose2d", "linear", "matmul")
    assert sum(layer.flops or 0 for layer in seen.layers if layer.operator in products) == counted
    assert named(seen, "softmax").flops is None
    assert named(seen, "softmax").bytes == 2 * 4 * 2 * 4 * 64
    assert named(seen, "max_pool2d").flops == 2 * 4 * 64 * 4
    assert named(seen, "flatten").bytes == 0


def test_a_module_is_left_as_it_was() -> None:
    """No hook stays behind, nor anything in the environment."""
    net, before = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval(), dict(os.environ)
    profile_layers(net, "torch", QUICK, (torch.ones(1, 3),), 1)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert dict(os.environ) == before


def test_attention_is_counted_in_torchs_fused_block() -> None:
    """Two heads over 5 tokens of 8: projections to queries, keys and values, two products, and the last projection."""
    net, x = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.ones(3, 5, 8)
    seen = profile_layers(net, "torch", QUICK, (x,), 2)
    by_hand = 2 * 3 * (5 * 8 * 24 + 2 * (5 * 5 * 8) + 5 * 8 * 8)
    assert sum(layer.flops or 0 for layer in seen.layers if layer.module.startswith("self_attn")) == by_hand


def test_a_second_call_of_a_module_is_another_layer() -> None:
    """A shared module counts twice, once for each call; of a list of tensors the type is not known."""

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.fc(self.fc(x)), x])

    seen = profile_layers(Twice().eval(), "torch", QUICK, (torch.ones(1, 4),), 2)
    assert [(layer.module, layer.operator) for layer in seen.layers] == [
        ("fc", "linear"),
        ("fc", "linear"),
        ("", "cat"),
    ]
    assert seen.layers[2].outputs == (Tensor("unknown", (2, 4)),)
    assert seen.layers[2].bytes is None


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_a_module_on_a_gpu_is_timed_there() -> None:
    """Times are those of kernels: a large product takes longer than a small one."""
    net = torch.nn.Sequential(torch.nn.Linear(4096, 4096), torch.nn.Linear(4096, 8)).cuda().eval()
    seen = profile_layers(net, "torch", QUICK, (torch.ones(512, 4096, device="cuda"),), RUNS)
    large, small = seen.layers
    assert large.provider == "cuda"
    assert large.median_ns > small.median_ns > 0


# --- tables


def test_samples_beyond_the_limit_are_not_kept() -> None:
    """Medians and sums stay."""
    many = Seen("a", "cpu", Operation("Relu", (), ()), (3,) * (MOST_SAMPLES + 1))
    (layer,) = make_layers([many])
    assert layer.samples_ns == ()
    assert (layer.median_ns, layer.total_ns) == (3, 3 * (MOST_SAMPLES + 1))


def test_tables_show_the_slowest_first_and_sum_up_the_rest(module_profile: tuple[LayerProfile, int]) -> None:
    """Every row has the columns of the head; operators are summed; a sum without a count for all has none."""
    seen, _ = module_profile
    rows = layer_rows(seen, top=3)
    assert rows[0] == ("layer", "operator", "time", "share", "MFLOP", "FLOP/B", "GFLOP/s", "GB/s")
    assert {len(row) for row in rows} == {8}
    assert rows[-1][0] == f"and {len(seen.layers) - 3} more"
    assert len(layer_rows(seen, top=None)) == len(seen.layers) + 1
    slowest = max(seen.layers, key=lambda layer: layer.median_ns)
    assert rows[1][:2] == (slowest.title, slowest.operator)
    totals = {total.operator: total for total in by_operator(seen.layers)}
    assert (totals["conv2d"].count, totals["conv2d"].flops) == (
        2,
        sum(x.flops or 0 for x in seen.layers if x.operator == "conv2d"),
    )
    assert totals["softmax"].flops is None
    assert {len(row) for row in operator_rows(seen)} == {8}
    assert max(NUMBERS) < 11
    assert summary_lines(seen)[3].endswith("MFLOP, without softmax")


def test_times_are_told_in_their_own_unit() -> None:
    """Three digits, in the unit that keeps them readable."""
    assert [time_text(ns) for ns in (0, 812.4, 999.6, 41_520, 3_214_000, 2.5e9)] == [
        "0 ns", "812 ns", "1.00 us", "41.5 us", "3.21 ms", "2.50 s",
    ]  # fmt: skip
