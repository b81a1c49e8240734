"""Schemes leave what others read as those read it: tables beside layers, and what branches take from around them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from shipworthy.export.int8 import Int8Settings
from shipworthy.export.parity_taps import open_graph
from shipworthy.export.quant_schemes import quantized
from shipworthy.export.quant_smooth import smoothable, smoothed
from shipworthy.export.session import OnnxSession
from shipworthy.models.schemes import Scheme
from shipworthy.tests.foreign_files import parsed
from shipworthy.tests.int8_nets import HEAD, Array, apart, noise

WITHOUT: list[Scheme] = ["dynamic", "int8-weights", "int4-weights"]
NEAR = {"dynamic": 0.03, "int8-weights": 0.015, "int4-weights": 0.15}


def draw(*shape: int) -> Array:
    """Return normally distributed weights."""
    return np.random.default_rng(0).normal(0, 0.05, shape).astype(np.float32)


def made_in(proto: ModelProto, scheme: Scheme) -> ModelProto:
    """Return a graph in a scheme."""
    return quantized(proto, None, "cpu", Int8Settings(scheme=scheme)).proto


# --- tables beside layers


def tied(body: str, **weights: Array) -> ModelProto:
    """Return a graph of words."""
    model = parsed(f"g (int64[N,L] ids) => (float y) {{ {body} }}", HEAD)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model)


def words(proto: ModelProto) -> Array:
    """Return the answer to some words."""
    return open_graph(proto, OnnxSession).run({"ids": np.arange(24).reshape(2, 12) * 40})[0]


@pytest.mark.parametrize("scheme", WITHOUT)
def test_an_embedding_may_feed_a_layer_at_once(scheme: Scheme) -> None:
    """A table whose rows a layer reads, and which is that layer's weight turned, becomes integers on either side."""
    proto = tied("e = Gather(E, ids) t = Transpose<perm=[1,0]>(E) y = MatMul(e, t)", E=draw(1024, 256))
    made = made_in(proto, scheme)
    onnx.checker.check_model(made)
    assert "E" not in {one.name for one in made.graph.initializer}
    assert made.ByteSize() < 0.6 * proto.ByteSize()
    assert apart(words(made), words(proto)) < NEAR[scheme]


def test_a_table_that_others_read_stays_whole() -> None:
    """It would be in the file twice."""
    body = (
        "e = Gather(E, ids) m = MatMul(e, w) s = Gather<axis=1>(E, one) p = Transpose<perm=[1,0]>(s) y = MatMul(m, p)"
    )
    proto = tied(body, E=draw(1024, 256), w=draw(256, 256), one=np.arange(256))
    made = made_in(proto, "dynamic")
    assert "E" in {one.name for one in made.graph.initializer}
    assert "E/whole" not in {one.name for one in made.graph.initializer}
    assert apart(words(made), words(proto)) < 0.03


def test_static_int8_of_an_embedding_that_feeds_a_layer() -> None:
    """The names of the table's rows and of the layer's input do not meet."""
    proto = tied("e = Gather(E, ids) y = MatMul(e, w)", E=draw(1024, 256), w=draw(256, 64))
    given = {"ids": np.random.default_rng(0).integers(0, 1024, (32, 12))}
    made = quantized(proto, lambda: iter([given]), "cpu").proto
    onnx.checker.check_model(made)
    assert apart(words(made), words(proto)) < 0.03


# --- subgraphs


def branching(other: str = "w") -> ModelProto:
    """Return a product whose input a branch reads, too, with the same weight or another, `v`."""

    def branch(node: NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], "b", [], [helper.make_tensor_value_info(node.output[0], 1, ["N", 320])])

    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch(helper.make_node("MatMul", ["n", other], ["z"])),
        else_branch=branch(helper.make_node("Add", ["a", "b"], ["q"])),
    )  # fmt: skip
    norm = helper.make_node("LayerNormalization", ["x", "s", "h"], ["n"])
    x, c = helper.make_tensor_value_info("x", 1, ["N", 256]), helper.make_tensor_value_info("c", 9, [])
    sizes = {"w": draw(256, 320), "v": draw(320, 256).T, "b": draw(320), "s": draw(256) * 20 + 1, "h": draw(256)}
    graph = helper.make_graph(
        [norm, helper.make_node("MatMul", ["n", "w"], ["a"]), choice], "g", [x, c],
        [helper.make_tensor_value_info("y", 1, ["N", 320])], [numpy_helper.from_array(v, n) for n, v in sizes.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("scheme", WITHOUT)
@pytest.mark.parametrize("taken", [True, False])
def test_what_branches_read_stays(scheme: Scheme, taken: bool) -> None:
    """A branch finds the weight and the bias that it reads; what is outside of it becomes integers."""
    feeds = {"x": noise(4, (256,)), "c": np.array(taken)}
    right, found = (open_graph(p, OnnxSession).run(feeds)[0] for p in (branching(), made_in(branching(), scheme)))
    assert apart(found, right) < (1e-6 if taken else NEAR[scheme])


def test_a_norm_that_a_branch_reads_is_divided_apart() -> None:
    """SmoothQuant leaves alone what a branch reads beside the product, by a weight that is not made good."""
    proto = branching("v")
    names = smoothable(proto)
    assert names
    made = smoothed(proto, {name: np.linspace(0.1, 30, 256) for name in names})
    for taken in (True, False):
        feeds = {"x": noise(4, (256,)), "c": np.array(taken)}
        right, found = (open_graph(p, OnnxSession).run(feeds)[0] for p in (proto, made))
        assert apart(found, right) < 1e-5
