"""The benchmark of planted faults: what it plants is there, and what it counts as right is near it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

from shipworthy.benchmarks import parity_faults

GRAPH = """<ir_version: 10, opset_import: ["" : 20]> g (float[N, 4] x) => (float[N, 2] y)
<float[4, 4] a = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, float[4] b = {1, 2, 3, 4},
 float[4, 2] c = {1, 1, 1, 1, 1, 1, 1, 1}, float[2] d = {5, 6}>
{ m = Gemm (x, a, b) s = Softmax <axis = -1> (m) r = Relu (s) y = Gemm (r, c, d) }"""


@pytest.fixture
def proto() -> ModelProto:
    """Two layers with a softmax between."""
    return parser.parse_model(GRAPH)


def weights(proto: ModelProto) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return the weights by name."""
    return {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}


def test_one_thing_is_changed(proto: ModelProto) -> None:
    """Each fault changes the layer that it names and leaves a graph that is still one."""
    before = weights(proto)
    assert parity_faults.scaled_weight(proto) == "y"
    assert parity_faults.dropped_bias(proto) == "y"
    assert parity_faults.wrong_axis(proto) == "s"
    after = weights(proto)
    assert np.array_equal(after["c"], before["c"] * np.float32(1.1))
    assert not after["d"].any()
    assert all(np.array_equal(after[name], before[name]) for name in "ab")
    assert next(n for n in proto.graph.node if n.op_type == "Softmax").attribute[0].i == -2
    onnx.checker.check_model(proto)


def test_right_is_near_the_change(proto: ModelProto) -> None:
    """The changed tensor and its reader count; what lies further does only within a layer of several operators."""
    assert parity_faults._around(proto, {"m"}, "Softmax") == {"m", "s"}
    assert parity_faults._around(proto, {"m"}, "Gemm") == {"m", "s"}
    assert parity_faults._around(proto, {"m"}, "Gemm + Softmax") == {"m", "s", "r", "y"}
    assert parity_faults._around(proto, {"m"}, "Relu + Softmax") == {"m", "s"}


def test_infinite_errors_are_null_in_the_data() -> None:
    """JSON has no infinity."""
    assert parity_faults._plain({"a": {"own": np.inf, "after": 1.0, "n": 2}}) == {
        "a": {"own": None, "after": 1.0, "n": 2}
    }
