"""What rounding does to outputs, what may differ on its account, and half precision computed as it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, parser

from shipworthy.export.as_written import as_written, holds_halves
from shipworthy.export.parity import parity
from shipworthy.export.parity_noise import MULTIPLE, TOLERANCE, distance, output_noises, tolerance
from shipworthy.export.parity_rounding import rounded
from shipworthy.export.parity_runs import opened, precision_of, run_all
from shipworthy.export.parity_taps import OnnxTaps
from shipworthy.export.parity_torch import TorchTaps, in_precision
from shipworthy.models.model import Model
from shipworthy.tests.small_nets import captured, images

HALF, BFLOAT = TensorProto.FLOAT16, TensorProto.BFLOAT16
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Model:
    """A small net."""
    return captured("residual", torch.float32)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an ONNX graph given as text."""

    def written(body: str, opset: int = 20) -> Path:
        text = f'<ir_version: 10, opset_import: ["" : {opset}]> g {body}'
        onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    return written


@pytest.mark.parametrize(("precision", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_rounding_is_that_of_torch(precision: str, kind: torch.dtype) -> None:
    """Values are as torch holds them in the format; integers stay, and what fp16 cannot hold is its largest."""
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * np.float32(100)
    assert np.array_equal(rounded(values, precision), torch.from_numpy(values).to(kind).float().numpy())
    assert rounded(np.array([1e6], np.float32), "fp16")[0] == 65504
    assert rounded(np.array([3]), precision).dtype == np.int64


def test_one_unit_in_the_last_place_is_little(model: Model) -> None:
    """For fp32 each value moves by one unit, up or down, and never by more."""
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    moved = np.abs(rounded(values, "fp32") - values) / np.spacing(np.abs(values))
    assert set(np.unique(moved)) <= {1.0, 2.0}


def test_tolerance_is_a_multiple_of_the_noise_within_bounds() -> None:
    """Noise sets it, a few units in the last place are its floor, and there is a most; without noise it is the most."""
    assert tolerance("fp32", 1e-5) == MULTIPLE["fp32"] * 1e-5
    assert tolerance("fp32", 0) == 2.0**-20
    assert tolerance("bf16", 1e-4) == 2.0**-6
    assert [tolerance(p, 9.0) for p in TOLERANCE] == list(TOLERANCE.values())
    assert [tolerance(p, None) for p in TOLERANCE] == list(TOLERANCE.values())
    assert tolerance("fp16", float("inf")) == TOLERANCE["fp16"]


def test_the_noise_of_fp32_is_the_distance_from_fp64(model: Model) -> None:
    """The graph computed in fp64 differs by what fp32 rounds; coarser formats have more noise, in their order."""
    x = {"x": images(16, dtype=torch.float32).numpy()}
    right = run_all(opened(model), x)
    with torch.no_grad():
        exact = in_precision(model.module, torch.float64)(torch.from_numpy(x["x"]).double()).numpy()
    (noise,) = output_noises(opened(model), x, right, "fp32")
    assert noise == distance(right[0], exact)
    found = [output_noises(opened(model), x, right, name)[0] for name in ("fp32", "fp16", "bf16")]
    assert [f for f in found if f] == sorted(f for f in found if f)
    assert 1e-8 < (found[0] or 0) < 1e-5 < (found[1] or 0) < (found[2] or 0) < 0.1
    assert output_noises(opened(model), x, right, "int8") == [None]
    assert output_noises(opened(lambda feeds: right), x, right, "fp32") == [None]


def test_a_model_is_as_its_taps(model: Model) -> None:
    """Reading tensors, and going on from them, gives what the graph gives."""
    x = images(4, dtype=torch.float32).numpy()
    taps = TorchTaps(model.export().module(check_guards=False))
    held = taps.take([taps.tensors[9].name, taps.outputs[0]], {taps.inputs[0]: x})
    again = taps.take([taps.outputs[0]], {taps.inputs[0]: x, taps.tensors[9].name: held[taps.tensors[9].name] * 2})
    assert np.array_equal(held[taps.outputs[0]], run_all(opened(model), {"x": x})[0])
    assert not np.array_equal(again[taps.outputs[0]], held[taps.outputs[0]])


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([np.nan, np.inf, 2.0], [np.nan, np.inf, 2.0], 0.0),
        ([np.nan, np.inf, 2.0], [np.nan, np.inf, 1.0], 0.5),
        ([1.0, 2.0], [np.nan, 2.0], np.inf),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
        ([1.0, 2.0], [1.0], np.inf),
    ],
)
def test_distance_by_hand(left: list[float], right: list[float], found: float) -> None:
    """The largest difference over the largest value; the same NaN and infinities are equal, others infinitely far."""
    assert distance(np.array(left), np.array(right)) == found


# --- half precision as it is written


def ran(path: Path | onnx.ModelProto, x: NDArray[Any]) -> NDArray[Any]:
    """Run a file with one input and output in ONNX Runtime."""
    held = path.SerializeToString() if isinstance(path, onnx.ModelProto) else str(path)
    session = onnxruntime.InferenceSession(held, providers=["CPUExecutionProvider"])
    found: NDArray[Any] = np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
    return found


OVERFLOW = """(float[N, 2] x) => (float[N, 2] y) <float16[1] large = {23728}> {
    h = Cast <to = 10> (x) a = Mul (h, large) b = Mul (a, large)
    c = Div (b, large) d = Div (c, large) y = Cast <to = 1> (d) }"""
"""300 * 300 / 300 / 300, which leaves fp16."""


def test_what_overflows_in_fp16_does_so_here(write: Write) -> None:
    """A CPU computes fp16 in fp32 and finds nothing; the graph as it is written gives infinity, as a GPU does."""
    path, x = write(OVERFLOW), np.array([[1.0, 0.5]], np.float32)
    with np.errstate(over="ignore"):
        h = x.astype(np.float16) * np.float16(300) * np.float16(300)
        wanted = (h / np.float16(300) / np.float16(300)).astype(np.float32)
    assert np.isfinite(ran(path, x)).all()
    assert np.isinf(wanted).any()
    assert np.array_equal(ran(as_written(onnx.load(path)), x), wanted)
    wide = write(OVERFLOW.replace("float16", "float").replace("23728", "300").replace("to = 10", "to = 1"))
    good = wide.rename(wide.with_name("wide.onnx"))
    found = parity(good, write(OVERFLOW), {"x": x})
    assert found.precision == "fp16"
    assert found.layer is not None
    assert (found.layer.tensor, found.layer.operator, found.layer.own) == ("b", "Mul", np.inf)


def test_bf16_runs_where_the_cpu_has_no_kernels(tmp_path: Path) -> None:
    """A bf16 file, which ONNX Runtime refuses here, is computed as it is written and compared."""
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    x = images(1, dtype=torch.float32).numpy().reshape(-1, 4)
    for name, kind in (("wide", TensorProto.FLOAT), ("low", BFLOAT)):
        held = helper.make_tensor("w", kind, [4, 4], weight.flatten().tolist())
        nodes = [
            helper.make_node("Cast", ["x"], ["h"], to=kind),
            helper.make_node("MatMul", ["h", "w"], ["m"]),
            helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
        ]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy"]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [held])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), tmp_path / f"{name}.onnx")  # fmt: skip # noqa: E501
    wanted = (torch.from_numpy(x).bfloat16() @ weight.bfloat16()).float().numpy()
    found = ran(as_written(onnx.load(tmp_path / "low.onnx")), x)
    assert np.abs(found - wanted).max() <= 2.0**-7 * np.abs(wanted).max()
    compared = parity(tmp_path / "wide.onnx", tmp_path / "low.onnx", {"x": x})
    assert (compared.precision, compared.passed) == ("bf16", True)


def test_a_graph_in_fp32_stays_as_it_is(write: Write) -> None:
    """Nothing is written anew where nothing is of half precision."""
    proto = onnx.load(write("(float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }"))
    assert as_written(proto) is proto
    assert not holds_halves(proto)


def test_half_inputs_take_any_floating_type(write: Write) -> None:
    """Inputs of half precision are rounded as they come in, whether they are given as fp16 or fp32."""
    path = write("(float16[N, 2] x) => (float16[N, 2] y) { y = Neg (x) }")
    x = np.array([[1.00001, 3.3]], np.float32)
    for given in (x, x.astype(np.float16)):
        assert np.array_equal(run_all(opened(path), {"x": given})[0], -x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("kinds", "found"),
    [((TensorProto.FLOAT,), "fp32"), ((HALF,), "fp16"), ((HALF, TensorProto.FLOAT), "fp16"), ((BFLOAT,), "bf16")],
)
def test_precision_is_read_from_the_weights(kinds: tuple[int, ...], found: str, tmp_path: Path) -> None:
    """The lowest type of the weights is what a file is judged by."""
    nodes = [helper.make_node("Add", [f"w{i}", f"w{i}"], [f"y{i}"]) for i in range(len(kinds))]
    weights = [helper.make_tensor(f"w{i}", kind, [1], [1.0]) for i, kind in enumerate(kinds)]
    outputs = [helper.make_tensor_value_info(f"y{i}", kind, [1]) for i, kind in enumerate(kinds)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], outputs, weights)), tmp_path / "m.onnx")
    assert precision_of(tmp_path / "m.onnx") == found


def test_parts_of_a_file_run_in_its_own_types(write: Write) -> None:
    """A tensor of half precision can be read and put in as fp32, whatever numpy knows of its type."""
    taps = OnnxTaps(onnx.load(write(OVERFLOW)))
    x = np.array([[1.0, 0.5]], np.float32)
    read = taps.take(["a", "y"], {"x": x})
    assert read["a"].dtype == np.float32
    assert np.array_equal(read["a"], x * 300)
    assert np.array_equal(taps.take(["c"], {"x": x, "b": np.array([[600, 300]], np.float32)})["c"], [[2, 1]])
