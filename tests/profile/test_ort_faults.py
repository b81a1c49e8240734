"""A file that ONNX Runtime would die of is refused before it is opened."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shipworthy.profile.errors import BadPlan
from shipworthy.profile.layers_ort import profiling_session
from shipworthy.profile.ort_session import CPU
from shipworthy.profile.plan import Plan
from shipworthy.profile.runners import open_runner


def _file(path: Path, order: list[int], cast: bool = False, kind: int = TensorProto.FLOAT16) -> Path:
    """Write a product of a transposed value, of four values for each of two tokens, with a matrix."""
    weight = np.eye(4, dtype=np.float32 if cast else helper.tensor_dtype_to_np_dtype(kind))
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=order)]
    if cast:
        nodes.append(helper.make_node("Cast", ["t"], ["u"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("MatMul", ["u" if cast else "t", "w"], ["y"], "the product"))
    nodes.append(helper.make_node("Add", ["x", "one"], ["z"]))
    one = numpy_helper.from_array(np.ones(1, helper.tensor_dtype_to_np_dtype(kind)), "one")
    outputs = [helper.make_tensor_value_info(name, what, None) for name, what in (("y", kind), ("z", kind))]
    outputs[0].type.tensor_type.elem_type = TensorProto.FLOAT if cast else kind
    inputs = [helper.make_tensor_value_info("x", kind, [1, 4, 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weight, "w"), one])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("order", [[1, 0, 2], [1, 2, 0]])
def test_a_fatal_product_is_refused(
    order: list[int], cast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latency and profiles by layer name the product and the way out."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    path = _file(tmp_path / "m.onnx", order, cast)
    with pytest.raises(BadPlan, match=r"dies when it opens this file on an x86 CPU: the product 'the product'.*fp32"):
        open_runner(path, "ort-cpu", Plan())
    with pytest.raises(BadPlan, match="the product"):
        profiling_session(path, CPU, Plan(), tmp_path)


@pytest.mark.parametrize(
    ("order", "kind"), [([0, 2, 1], TensorProto.FLOAT16), ([1, 0, 2], TensorProto.FLOAT)], ids=["batch stays", "fp32"]
)
def test_what_is_harmless_runs(order: list[int], kind: int, tmp_path: Path) -> None:
    """Nothing else is refused."""
    with open_runner(_file(tmp_path / "m.onnx", order, kind=kind), "ort-cpu", Plan()) as runner:
        runner.run()
