"""Training rounds where the int8 file will, and nowhere else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from shipworthy.compress.qat_bounds import bounds_of
from shipworthy.compress.qat_places import Places, find_places
from shipworthy.compress.qat_prepare import prepared
from shipworthy.compress.qat_ranges import grid_of, start_ranges
from shipworthy.models.errors import BadInput
from shipworthy.models.graph import aten
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import NETS, captured, images, outputs

pytestmark = pytest.mark.usefixtures("one_thread")


def _captured(net: nn.Module) -> Model:
    return capture(net.eval(), (torch.zeros(2, 3, 8, 8),))


def _operators(nodes: tuple[Node, ...]) -> list[str]:
    return [str(node.target).split(".")[1] if node.op == "call_function" else node.op for node in nodes]


# --- the graph that is rounded


@pytest.mark.parametrize("name", NETS)
def test_the_prepared_graph_computes_the_same(name: str) -> None:
    """Folding norms and taking in-place operators apart changes no output, and leaves the given model as it was."""
    model, x = captured(name), images(5)
    before = outputs(model, x)
    made = prepared(model)
    for a, b in zip(outputs(made, x), before, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, x), before, strict=True))
    targets = [str(node.target) for node in made.module.graph.nodes]
    assert not any("add_." in one or "relu_." in one or "silu" in one for one in targets)


def test_norms_become_biases_that_train() -> None:
    """What was a batch norm behind a convolution or a linear layer is a bias among the parameters; nothing is left."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4), nn.BatchNorm1d(4))
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]  # a norm
    model = _captured(net)
    made, x = prepared(model), images(5, dtype=torch.float32)
    assert torch.allclose(outputs(made, x)[0], outputs(model, x)[0], atol=1e-5)
    assert not any(node.target == aten.batch_norm.default for node in made.module.graph.nodes)
    names = dict(made.module.named_parameters())
    assert sorted(names) == ["0.weight", "0_weight_folded_bias", "3.weight", "3_weight_folded_bias"]
    assert not dict(made.module.named_buffers())


class _Edited(nn.Module):
    """A value that is changed in place after it was looked at through a view, and one read again after its change."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what both give."""
        y = x + 1
        part = y.flatten(1)
        y.relu_()
        z = x * 2
        z.relu_()
        return part.sum(1) + z.flatten(1).sum(1)


def test_changes_in_place_keep_their_effect() -> None:
    """A view sees the change of what it shows; who reads a changed value later reads the changed one."""
    model, x = _captured(_Edited()), images(5, dtype=torch.float32)
    assert torch.equal(outputs(prepared(model), x)[0], outputs(model, x)[0])


# --- places


def _places(name: str, *keep: str) -> Places:
    return find_places(prepared(captured(name, torch.float32)), keep)


def test_what_is_rounded_in_a_residual_net() -> None:
    """The input, what convolutions and sums end in, behind their ReLUs, and the head's input; not the scores."""
    found = _places("residual")
    assert len(found.weights) == 7
    kinds = ["placeholder", "relu", "relu", "conv2d", "relu", "relu", "conv2d", "conv2d", "relu", "adaptive_avg_pool2d"]
    assert sorted(_operators(found.origins)) == sorted(kinds)
    assert all(site.value is site.origin for site in found.sites)


def test_patterns_keep_layers_in_floating_point() -> None:
    """A layer that a pattern names is not rounded, by its path or its weight's; the others are."""
    every = {str(weight.source.target) for weight in _places("residual").weights}
    for pattern in ("a1.0", "a1.*"):
        assert every - {str(w.source.target) for w in _places("residual", pattern).weights} == {"a1.0.weight"}
    assert not _places("residual", "*").weights


def test_nothing_between_floating_point_operators_is_rounded() -> None:
    """A sum whose result only a layer norm reads stays in floating point, as in the file."""
    model = prepared(captured("stack", torch.float32))
    sums = [node for node in model.module.graph.nodes if node.target == aten.add.Tensor]
    rounded = {site.value for site in find_places(model).sites}
    assert sums[-1].all_input_nodes[0] in rounded
    assert sums[-1] not in rounded


class _Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 4, 1) for _ in range(4))
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return two joined pairs through one convolution."""
        alike = torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        unlike = torch.cat([F.relu6(self.c(x)), self.d(x)], 1)
        scores: Tensor = (self.last(alike) + self.last(unlike)).mean((2, 3))
        return scores


def test_joined_values_share_a_grid_where_their_bounds_allow() -> None:
    """Two ReLUs and their concatenation have one grid; a ReLU6 has its own beside a value without bounds."""
    shared = find_places(prepared(_captured(_Joined()))).shared
    groups = {frozenset(_operators(group)) for group in shared.values() if len(group) > 1}
    assert groups == {frozenset({"relu", "cat"}), frozenset({"conv2d", "cat"})}
    assert sorted(len(group) for group in set(shared.values()) if len(group) > 1) == [2, 3]
    assert {bounds_of(one)[1] for one in shared if one.target == aten.relu6.default} == {6.0}


# --- ranges to start from


def test_ranges_are_those_of_all_examples() -> None:
    """Min-max spans every value of every batch, and zero."""
    model, x = prepared(captured("plain", torch.float32)), images(150, dtype=torch.float32) + 3
    places = find_places(model)
    ranges = start_ranges(model, places, (x,), "minmax")
    low, high = ranges[places.origins[0]]
    assert low == min(0.0, x.min().item())
    assert high == x.max().item()


def test_rare_values_are_cut_off() -> None:
    """One value far out widens min-max, and neither the percentile nor the least squared error."""
    model, x = prepared(captured("plain", torch.float32)), images(200, dtype=torch.float32)
    x[0, 0, 0, 0] = 1000.0
    places = find_places(model)
    high = {
        how: start_ranges(model, places, (x,), how)[places.origins[0]][1] for how in ("minmax", "percentile", "mse")
    }
    assert high["minmax"] == 1000.0
    assert high["percentile"] < 10
    assert high["mse"] < 1000.0


def test_least_squared_error_is_less() -> None:
    """The range chosen by squared error rounds with less error than the range of all values."""
    model = prepared(captured("plain", torch.float32))
    places = find_places(model)
    x = images(2000, dtype=torch.float32)

    def error(how: str) -> float:
        grid = grid_of(*start_ranges(model, places, (x,), how)[places.origins[0]])
        return float((torch.fake_quantize_per_tensor_affine(x, grid.step, grid.zero, 0, 255) - x).square().mean())

    assert error("mse") < 0.9 * error("minmax")


def test_values_that_are_no_numbers_are_refused() -> None:
    """NaN in the examples is named with the place where it shows."""
    model, x = prepared(captured("plain", torch.float32)), images(4, dtype=torch.float32)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match="x has values that are infinite or no numbers"):
        start_ranges(model, find_places(model), (x,), "minmax")


@pytest.mark.parametrize(("low", "high", "zero"), [(0.0, 2.0, 0), (-1.0, 0.0, 255), (0.5, 1.0, 0), (-1.0, 1.0, 128)])
def test_zero_is_exact(low: float, high: float, zero: int) -> None:
    """Every grid has zero on it, and spans its range but for rounding."""
    grid = grid_of(low, high)
    assert grid.zero == zero
    assert grid.step * 255 == pytest.approx(max(high, 0) - min(low, 0))


def test_a_range_of_nothing_is_a_grid() -> None:
    """A value that is always zero has a grid that holds zero."""
    grid = grid_of(0.0, 0.0)
    assert grid.step > 0
    assert grid.zero == 0
