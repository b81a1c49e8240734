"""A graph with any choice of its layers in integers is the file that the exporter writes; what each costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from shipworthy.export.int8 import Int8Settings, to_int8
from shipworthy.export.quant_layers import COMPARED, outputs_of, sensitivities
from shipworthy.tests.fragile_nets import MADE, READS, fragile, layers_of
from shipworthy.tests.int8_nets import fed, net, noise, outputs, types

X = noise(24, seed=7)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("settings", [{}, {"equalize": True}, {"correct_bias": True}, {"keep_float": ("Gemm_7",)}])
@pytest.mark.parametrize("keep", [(), (READS,)])
def test_what_ships_is_what_was_chosen(target: str, settings: dict[str, Any], keep: tuple[str, ...]) -> None:
    """`shipped` is the exporter's own file under the settings that `settings_with` gives."""
    layers = layers_of(fragile(), target, **settings)
    made = to_int8(fragile(), fed(noise(64)), target, layers.settings_with(keep))  # type: ignore[arg-type]  # parametrized
    assert not {*keep, *settings.get("keep_float", ())} & set(made.products)
    wanted = outputs(made.proto, X)[0]
    assert np.array_equal(outputs(layers.shipped(keep), X)[0], wanted)
    if "correct_bias" not in settings:  # which is left out on the way: it is another search over all examples
        assert np.array_equal(outputs(layers.with_float(keep), X)[0], wanted)


def test_none_alone_and_all() -> None:
    """With all layers kept it is the fp32 graph; with one alone in integers, one weight is."""
    layers = layers_of(fragile())
    assert layers.layers == ("Conv_0", "Conv_2", "Conv_4", "Gemm_7")
    assert "QuantizeLinear" not in types(layers.with_float(layers.layers))
    assert np.array_equal(outputs(layers.with_float(layers.layers), X)[0], outputs(fragile(), X)[0])
    for name in layers.layers:
        held = [one for one in layers.alone(name).graph.initializer if one.name.endswith("/whole")]
        weights = [one for one in held if numpy_helper.to_array(one).dtype == np.int8]
        assert len(weights) == 1


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_the_fragile_value_costs_most(target: str) -> None:
    """On CPUs who makes it and who reads it pay; for TensorRT, whose pairs stand at inputs, who reads it."""
    found = sensitivities(layers_of(fragile(), target), fed(noise(COMPARED + 9, seed=3)))
    order = sorted(found, key=lambda name: -found[name])
    assert set(order[:2]) == {MADE, READS} if target == "cpu" else order[0] == READS
    assert found[order[0]] > 10 * found[order[2]]
    assert all(cost >= 0 for cost in found.values())


def test_an_even_net_has_no_fragile_layer() -> None:
    """The same function with even channels loses little anywhere."""
    found = sensitivities(layers_of(fragile(1.0)), fed(noise(64, seed=3)))
    worst = sensitivities(layers_of(fragile()), fed(noise(64, seed=3)))
    assert max(found.values()) < max(worst.values()) / 10


def test_the_first_examples_are_compared() -> None:
    """Beyond 256 examples none is looked at, in whatever parts they come."""
    layers, x = layers_of(fragile()), noise(COMPARED + 40, seed=3)
    other = np.concatenate([x[:COMPARED], 100 * x[COMPARED:]])
    assert sensitivities(layers, fed(x, 48)) == pytest.approx(sensitivities(layers, fed(other, 100)), rel=1e-4)


def test_outputs_without_classes_have_a_cost_too() -> None:
    """An image as output is compared by its squared error."""
    layers = layers_of(net("c = Conv(x, w) y = Relu(c)", w=(4, 3, 1, 1)))
    found = sensitivities(layers, fed(noise(32)))
    assert 0 < found["Conv_0"] < 0.01


def test_names_with_the_signs_of_patterns() -> None:
    """A layer's name names that layer alone, whatever signs it has."""
    proto = fragile()
    for node in proto.graph.node:
        node.name = f"net[{node.output[0]}]*"
    layers = layers_of(proto)
    made = to_int8(proto, fed(noise(64)), "cpu", layers.settings_with(["net[b]*"]))
    assert made.kept == ("net[b]*",)
    assert isinstance(layers.settings_with([]), Int8Settings)


def test_examples_are_given_whole() -> None:
    """Outputs of all examples come back in order, in whatever parts they go in."""
    proto = fragile()
    assert np.allclose(outputs_of(proto, fed(X, 7))[0], outputs(proto, X)[0], atol=1e-5)


def test_modules_are_named() -> None:
    """A layer's module is read from the names of its weights, else from what the exporter noted."""
    proto = fragile()
    layers = layers_of(proto)
    assert layers.module("Conv_0") == ""
    for node in proto.graph.node:
        node.input[:] = [f"block.{name}.weight" if name == "w2" else name for name in node.input]
        if node.output[0] == "a":
            node.metadata_props.add(key="module", value="stem")
    next(one for one in proto.graph.initializer if one.name == "w2").name = "block.w2.weight"
    layers = layers_of(proto)
    assert [layers.module(name) for name in ("Conv_0", "Conv_2", "Conv_4")] == ["stem", "block.w2", ""]
