"""The int8 file computes what training computed: same grids, same weights, same answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor

import shipworthy as sw
from shipworthy.compress.quantize import Quantize
from shipworthy.export.artifact import Target
from shipworthy.export.float_graph import float_graph
from shipworthy.export.int8 import Int8Settings, Known, to_int8
from shipworthy.export.onnx_graph import OnnxGraph
from shipworthy.export.qat_scales import graph_with_grids
from shipworthy.export.quant_plan import plan
from shipworthy.export.quant_prepare import prepared, wiring_of
from shipworthy.models.data import Dataset
from shipworthy.models.model import Model, load_pt2, save_pt2
from shipworthy.tests.small_nets import CALM, captured, outputs
from shipworthy.tests.test_qat import SHORT

pytestmark = pytest.mark.usefixtures("one_thread")


def _file(graph: OnnxGraph, known: Known, x: Tensor, target: Target = "cpu", **settings: Any) -> ModelProto:
    name = graph.proto.graph.input[0].name

    def examples() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        yield {name: x.numpy()}

    return to_int8(graph.filled(), examples, target, Int8Settings(**settings), known).proto


def _run(proto: ModelProto, x: Tensor, as_written: bool = False) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.cat([torch.from_numpy(session.run(None, {name: part.numpy()})[0]) for part in torch.split(x, 100)])


@pytest.mark.parametrize(
    "name", ["plain", "residual", "depthwise", "grouped", "dense", "squeeze-excite", "rows", "stack"]
)
def test_the_file_computes_what_training_computed(name: str, data: Dataset) -> None:
    """Every range that the CPU's file needs is known, and its outputs differ by ties of rounding alone."""
    start = captured(name, torch.float32)
    model = Quantize(**SHORT, learn_steps=name != "residual")(start, data=data, teacher=start).model
    graph, known = graph_with_grids(model, 20)
    wanted = plan(wiring_of(prepared(graph.filled())), "cpu")
    assert not set(wanted.observed) - set(known.ranges)
    assert len(known.weight_scales) == len(wanted.products)
    x, _ = data.batch(data.test, torch.arange(128))
    simulated = outputs(model, x)[0]
    error = _run(_file(graph, known, x), x, as_written=True) - simulated
    assert error.square().mean().sqrt() < 0.005 * simulated.std()


def test_the_graph_is_plain(data: Dataset, teacher: Model) -> None:
    """No rounding is left in the fp32 graph; operators and names are those of the untrained model's."""
    model = Quantize(**SHORT)(teacher, data=data, teacher=teacher).model
    made, before = graph_with_grids(model, 20)[0].proto.graph, float_graph(teacher, 20).proto.graph
    assert [(n.op_type, n.name) for n in made.node] == [(n.op_type, n.name) for n in before.node]
    assert [v.name for v in made.output] == [v.name for v in before.output]
    assert {"stem.0.weight", "fc.weight"} <= {one.name for one in made.initializer}
    assert not [one for one in made.initializer if "scale" in one.name or "zero" in one.name]


def test_a_model_without_grids_is_exported_as_it_is(teacher: Model) -> None:
    """Nothing is known of it, and the graph is that of the exporter."""
    graph, known = graph_with_grids(teacher, 20)
    assert not known.ranges
    assert not known.weight_scales
    assert graph.filled().SerializeToString() == float_graph(teacher, 20).filled().SerializeToString()


def test_a_saved_model_gives_the_same_grids(data: Dataset, teacher: Model, tmp_path: Any) -> None:
    """Grids go through a `.pt2` file to the bit."""
    model = Quantize(**SHORT)(teacher, data=data, teacher=teacher).model
    save_pt2(model, tmp_path / "m.pt2")
    (_, one), (_, two) = graph_with_grids(model, 20), graph_with_grids(load_pt2(tmp_path / "m.pt2"), 20)
    assert one.ranges == two.ranges
    assert all(np.array_equal(one.weight_scales[name], two.weight_scales[name]) for name in one.weight_scales)


def test_both_targets_have_the_same_weights(data: Dataset, teacher: Model) -> None:
    """Weights learnt with 7 bits are the same integers in a file of 8-bit weights."""
    model = Quantize(**SHORT)(teacher, data=data, teacher=teacher).model
    graph, known = graph_with_grids(model, 20)
    x, _ = data.batch(data.train, torch.arange(32))

    def whole(target: Target) -> dict[str, np.ndarray[Any, Any]]:
        held = _file(graph, known, x, target).graph.initializer
        return {one.name: numpy_helper.to_array(one) for one in held if one.name.endswith("weight/whole")}

    cpu, tensorrt = whole("cpu"), whole("tensorrt")
    assert len(cpu) == len(known.weight_scales)
    assert all(np.array_equal(cpu[name], tensorrt[name]) for name in cpu)


def test_eight_bits_reach_the_file(data: Dataset, teacher: Model) -> None:
    """Weights learnt with 8 bits are written with 8 bits."""
    model = Quantize(**SHORT, weight_bits=8)(teacher, data=data, teacher=teacher).model
    graph, known = graph_with_grids(model, 20)
    assert model.quantization is not None
    x, _ = data.batch(data.test, torch.arange(128))
    proto = _file(graph, known, x, **model.quantization.options)
    held = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    assert max(np.abs(value.astype(int)).max() for name, value in held.items() if name.endswith("weight/whole")) > 64
    simulated = outputs(model, x)[0]
    assert (_run(proto, x, as_written=True) - simulated).square().mean().sqrt() < 0.005 * simulated.std()


def test_the_reference_model_answers_as_it_was_trained() -> None:
    """A few steps from poor calibration mend the accuracy, and the file's answers are those of the training graph."""
    data, model = sw.open_data("fashion-mnist", "bundled"), sw.load("reference:fashion-resnet20")
    x, y = data.batch(data.test, torch.arange(400))
    settings: dict[str, Any] = {**CALM, "calibration": 32, "batch": 16, "learning_rate": 0.002}
    made = Quantize(**settings, steps=3)(model, data=data, teacher=model).model
    simulated = torch.cat([outputs(made, part)[0] for part in torch.split(x, 100)]).argmax(1)
    graph, known = graph_with_grids(made, 20)
    found = _run(_file(graph, known, x[:64]), x).argmax(1)
    assert (found == simulated).float().mean() >= 0.995
    assert (found == y).float().mean() >= 0.94
