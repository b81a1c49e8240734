"""The analysis finds the channels that stand or fall together, and keeps what it cannot follow."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sympy  # type: ignore[import-untyped]  # it has no stubs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipworthy.compress.channels import Channels, find_channels
from shipworthy.compress.prune import Prune
from shipworthy.compress.rules_shapes import runs
from shipworthy.compress.scores import channel_scores, taylor_gradients
from shipworthy.models.model import capture
from shipworthy.tests.small_nets import NETS, captured, outputs, quadrants

BATCH = sympy.Symbol("s0", positive=True, integer=True)
# For every net the widths of its free groups, by hand.
FREE = {
    "plain": {"first.0": 8, "second": 6, "fc": 10},
    "residual": {"a2.0": 8, "a1.0": 6, "b2.0": 12, "b1.0": 10},
    "depthwise": {"project.0": 8, "deep.0": 12},
    "grouped": {"a.0 [groups]": 2, "a.0 [in a group]": 4, "b.0 [in a group]": 4, "c.0": 6},
    "dense": {"a.0": 6, "b.0": 5, "c.0": 4},
    "views": {"a.0": 8, "b.0": 6, "mix": 8},
    "squeeze-excite": {"stem.0": 8, "down": 6, "last.0": 6},
    "shared": {"both": 8},
    "two-heads": {"stem.0": 8, "trunk.0": 8},
    "unknown": {"b.0": 8, "d.0": 6},
    "scaled": {"a.0": 8},
    "rows": {"a": 8, "b": 6, "mix": 8},
    "stack": {"a.body.0": 8, "mixer.up": 12},
}


def _frozen(channels: Channels, tensor: str, dim: int = 0) -> str | None:
    """Return why a tensor's dimension is kept."""
    return next(g.frozen for g in channels.groups if any((m.tensor, m.dim) == (tensor, dim) for m in g.members))


# --- groups


@pytest.mark.parametrize("name", NETS)
def test_free_groups_are_those_found_by_hand(name: str) -> None:
    """Each network's prunable groups and widths are those that its author can name."""
    assert {g.name: len(g.channels) for g in find_channels(captured(name)).groups if g.frozen is None} == FREE[name]


def test_a_residual_stream_is_one_group() -> None:
    """All that is added to a stream, normalizes it or reads it belongs to its group."""
    stream = next(g for g in find_channels(captured("residual")).groups if g.name == "a2.0")
    norms = {(f"{bn}.{part}", 0) for bn in ("stem.1", "a2.1") for part in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip # noqa: E501
    made = {("stem.0.weight", 0), ("a2.0.weight", 0)}
    read = {("a1.0.weight", 1), ("b1.0.weight", 1), ("down.0.weight", 1)}
    assert {(m.tensor, m.dim) for m in stream.members} == norms | made | read


def test_a_flatten_gives_each_channel_all_its_pixels() -> None:
    """Behind a flatten of 6 channels of 2 x 2 pixels, columns 4 i to 4 i + 3 are channel i."""
    found = find_channels(captured("plain"))
    channel, columns = found.tensors["second.weight"][0], found.tensors["fc.weight"][1]
    assert channel is not None
    assert columns is not None
    np.testing.assert_array_equal(columns, np.repeat(channel, 4, axis=0))


def test_what_must_stay_says_why() -> None:
    """Inputs, outputs, grouped convolutions and operators without a rule each give their reason."""
    plain, unknown = find_channels(captured("plain")), find_channels(captured("unknown"))
    assert _frozen(plain, "first.0.weight", 1) == "meets a dimension that stays"
    assert _frozen(plain, "head.weight") == "an output of the model"
    assert _frozen(unknown, "c.0.weight") == "is what aten.softmax.int runs along"
    assert _frozen(unknown, "a.0.weight") == "reaches aten.renorm.default, which has no rule"
    assert unknown.unknown == ("aten.renorm.default",)


# --- operators that move over channels


class _Tokens(nn.Module):
    """Embed rows as tokens `(batch, 8, 12)`, let `mix` change them, and read them."""

    def __init__(self, mix: Callable[[Tensor], Tensor] | nn.Module, width: int = 12) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(24, 12), mix, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = self.mix(self.embed(x.permute(0, 2, 1, 3).flatten(2)))
        return torch.sin(self.head(x)).mean(1)


def _quiet_region(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


@pytest.mark.parametrize(
    ("mix", "width"),
    [
        (nn.Conv1d(8, 6, 1), 12),
        (nn.Conv1d(8, 6, 3), 10),
        (lambda x: F.avg_pool1d(x, 2), 6),
        (lambda x: F.adaptive_avg_pool1d(x, 3), 3),
        (lambda x: F.max_pool2d(x, 2), 6),
        (lambda x: x.mean(2, keepdim=True), 1),
        (_quiet_region, 12),
    ],
    ids=["conv1", "conv3", "pool1d", "adaptive", "pool2d", "mean", "no_grad"],
)
def test_channels_that_a_kernel_moves_over_stay(mix: Callable[[Tensor], Tensor], width: int) -> None:
    """Where the features of tokens are the pixels of a later operator, or its body is hidden, none is removed."""
    model = capture(_Tokens(mix, width), (torch.randn(2, 3, 8, 8),))
    found = find_channels(model)
    assert _frozen(found, "embed.weight") is not None
    assert all(g.frozen for g in found.groups)


def test_a_convolution_without_a_batch_stays() -> None:
    """A model of one unbatched image is analysed and kept: its channels are not where a batch has them."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(8 * 36, 4))
    found = find_channels(capture(net, (torch.randn(3, 8, 8),), dynamic_batch=False))
    assert all(g.frozen for g in found.groups)


def test_a_named_padding_is_pruned_like_a_number() -> None:
    """A depthwise convolution with `padding="same"` gets the group count of its new width."""
    model = Prune(ratio=0.5, round_to=1, min_channels=1)(captured("depthwise")).model
    deep = next(n for n in model.module.graph.nodes if str(n.target) == "aten.conv2d.padding")
    assert deep.args[4:] == ("same", [1, 1], 4)
    assert outputs(model, torch.zeros(5, 3, 8, 8, dtype=torch.float64))[0].shape == (5, 4)


# --- parts


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ((BATCH, 3, 4, 5), (BATCH, 60), [((0, 1), (0, 1)), ((1, 4), (1, 2))]),
        ((BATCH, 6), (BATCH, 6, 1, 1), [((0, 1), (0, 1)), ((1, 2), (1, 2)), ((2, 2), (2, 3)), ((2, 2), (3, 4))]),
        ((BATCH, 6, 5), (BATCH * 6, 5), [((0, 2), (0, 1)), ((2, 3), (1, 2))]),
        ((2, 3, 4), (6, 4), [((0, 2), (0, 1)), ((2, 3), (1, 2))]),
        ((BATCH, 12), (BATCH, 3, 4), [((0, 1), (0, 1)), ((1, 2), (1, 3))]),
        ((BATCH * 6, 5, 4), (BATCH, 6, 20), [((0, 1), (0, 2)), ((1, 3), (2, 3))]),
        ((3, 4), (4, 3), [((0, 2), (0, 2))]),
    ],
)
def test_reshapes_are_cut_into_the_shortest_runs(
    old: tuple[object, ...], new: tuple[object, ...], wanted: list[tuple[tuple[int, int], tuple[int, int]]]
) -> None:
    """Each run of old dimensions holds just the positions of its run of new ones."""
    assert runs(_symbolic(old), _symbolic(new)) == wanted


def _symbolic(sizes: tuple[object, ...]) -> tuple[Any, ...]:
    """Return sizes as a graph has them: plain numbers, or something with an expression and a hint."""
    nodes = [SimpleNamespace(node=SimpleNamespace(expr=s, hint=int(s.subs(BATCH, 7)))) if isinstance(s, sympy.Basic) else s for s in sizes]  # fmt: skip # noqa: E501
    return tuple(nodes)


# --- scores


def _two_layers() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, -4.0], [1.0, 2.0]]))  # type: ignore[operator]  # nn.Module is untyped
        net[0].bias.copy_(torch.tensor([12.0, -2.0]))  # type: ignore[operator]  # as above
        net[1].weight.copy_(torch.tensor([[0.0, 4.0], [84.0, -4.0]]))  # type: ignore[operator]  # as above
    return net


def test_norms_are_sums_over_all_layers_of_a_channel() -> None:
    """L1 and L2 of the two hidden units are those computed by hand from row, bias and column."""
    model = capture(_two_layers(), (torch.zeros(2, 2),))
    found = find_channels(model)
    hidden = next(g for g in found.groups if g.frozen is None).channels
    l1, l2 = channel_scores(model, found, "l1"), channel_scores(model, found, "l2")
    assert [l1[c] for c in hidden] == [3 + 4 + 12 + 84, 1 + 2 + 2 + 4 + 4]
    assert [l2[c] for c in hidden] == pytest.approx([(9 + 16 + 144 + 84**2) ** 0.5, (1 + 4 + 4 + 16 + 16) ** 0.5])


def test_taylor_is_the_change_when_a_channel_is_scaled() -> None:
    """Weight times gradient over a layer's inputs from a channel is the loss's slope in a factor on that channel."""
    model, data = captured("plain", torch.float32), quadrants()
    products = taylor_gradients(model, data, 64, 0)
    factor = torch.ones(6, requires_grad=True)
    work = model.copy()
    state = work.module.state_dict()
    weight = state["fc.weight"].view(10, 6, 4)
    swapped = {"fc.weight": (weight * factor.view(1, 6, 1)).view(10, 24)}
    x, y = data.batch(data.train, data.sample(64, 0))
    loss = F.cross_entropy(torch.func.functional_call(work.module, swapped, (x,)), y)
    (slope,) = torch.autograd.grad(loss, factor)
    torch.testing.assert_close(products["fc.weight"].view(10, 6, 4).sum((0, 2)), slope, rtol=1e-4, atol=1e-6)
    found = find_channels(model)
    group = next(g for g in found.groups if g.name == "second")
    scores = channel_scores(model, found, "taylor", products)
    parts = [products["second.weight"].sum((1, 2, 3)), products["second.bias"], slope]
    wanted = torch.stack(parts).abs().sum(0)
    assert [scores[c] for c in group.channels] == pytest.approx(wanted.tolist(), rel=1e-4)
