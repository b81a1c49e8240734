"""Channels chosen by what the layers behind them lose, when these may be fitted anew."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from shipworthy.compress import layers
from shipworthy.compress.channels import find_channels
from shipworthy.compress.prune import Prune
from shipworthy.compress.selection import selection_scores
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import FINE, NETS, captured, images, outputs, quadrants
from shipworthy.tests.test_reconstruct import distance


def made(net: nn.Module) -> Model:
    """Capture a net of inputs `(3, 8, 8)` in float64."""
    return capture(net.double().eval(), (torch.zeros(2, 3, 8, 8, dtype=torch.float64),))


class Pairs(nn.Module):
    """With `loud`, channels i and i + 4 say the same, one that much louder; behind them a norm and a flatten."""

    def __init__(self, loud: float = 0.0) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(32, 4)
        with torch.no_grad():
            for value in (self.a.weight, self.a.bias) if loud else ():
                assert value is not None
                value[4:] = value[:4] * torch.tensor([loud, 1 / loud, loud, 1 / loud]).view(-1, *[1] * (value.ndim - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = torch.relu(self.norm(self.b(torch.relu(self.a(x)))))
        scores: Tensor = self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))
        return scores


def taken(model: Model, keep: int, layer: str, x: Tensor) -> set[int]:
    """Return the positions of the channels of a layer's output that are taken."""
    found = find_channels(model)
    group = next(g for g in found.groups if g.name == layer)
    scores = selection_scores(model, found, x, {group: keep})
    return {i for i, root in enumerate(group.channels) if scores[root] > 0}


@pytest.mark.parametrize("loud", [0.5, 1.0, 3.0])
def test_what_another_channel_says_is_not_kept(loud: float) -> None:
    """One of each pair is taken, however loud."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = made(Pairs(loud))
    assert {place % 4 for place in taken(model, 4, "a", images(64))} == {0, 1, 2, 3}


def test_the_first_taken_explains_most_alone() -> None:
    """Against plain least squares, of every channel alone: the same winner, for a kernel and behind a flatten."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = made(Pairs())
    x = images(200)
    state = model.module.state_dict()
    with torch.no_grad():
        a = torch.relu(nn.functional.conv2d(x, state["a.weight"], state["a.bias"]))
        b = nn.functional.conv2d(a, state["b.weight"], state["b.bias"])
        rows = nn.functional.unfold(a, 3).transpose(1, 2).flatten(0, 1).view(-1, 8, 9)
        wanted = b.flatten(2).transpose(1, 2).flatten(0, 1)
        pooled = nn.functional.avg_pool2d(torch.relu(nn.functional.batch_norm(
            b, state["norm.running_mean"], state["norm.running_var"], state["norm.weight"], state["norm.bias"]
        )), 2).flatten(2)  # fmt: skip
        scores = outputs(model, x)[0]

    def errors(parts: Tensor, goal: Tensor) -> list[float]:
        goal = goal - goal.mean(0)
        centred = parts - parts.mean(0)
        return [float((goal - c @ torch.linalg.lstsq(c, goal).solution).square().sum()) for c in centred.unbind(1)]

    for layer, found in (("a", errors(rows, wanted)), ("b", errors(pooled, scores))):
        assert taken(model, 1, layer, x) == {min(range(8), key=found.__getitem__)}


def test_two_taken_are_nearly_the_best_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is chosen for what the first leaves unexplained, also where inputs are added up in parts."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = made(Pairs())
    monkeypatch.setattr(layers, "CHUNK_BYTES", 10_000)
    x = images(100)
    state = model.module.state_dict()
    with torch.no_grad():
        a = torch.relu(nn.functional.conv2d(x, state["a.weight"], state["a.bias"]))
        goal = nn.functional.conv2d(a, state["b.weight"], state["b.bias"]).flatten(2).transpose(1, 2).flatten(0, 1)
    rows = nn.functional.unfold(a, 3).transpose(1, 2).flatten(0, 1).view(-1, 8, 9)
    rows, goal = rows - rows.mean(0), goal - goal.mean(0)

    def error(pair: tuple[int, int]) -> float:
        c = rows[:, list(pair)].flatten(1)
        return float((goal - c @ torch.linalg.lstsq(c, goal, driver="gelsd").solution).square().sum())

    errors = {pair: error(pair) for pair in itertools.combinations(range(8), 2)}
    first, second = sorted(taken(model, 2, "a", x))
    assert errors[first, second] <= 1.05 * min(errors.values())


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("unknown", "rows")])
def test_every_net_comes_nearer_than_by_norms(name: str) -> None:
    """As a pass: widths as asked, and on other images no worse than the norm's choice, refitted alike."""
    model, data = captured(name, torch.float32), quadrants()
    by = {score: Prune(ratio=0.4, score=score, **FINE)(model, data=data) for score in ("l2", "reconstruction")}
    assert by["l2"].facts["widths"] == by["reconstruction"].facts["widths"]
    x, _ = data.batch(data.test, torch.arange(len(data.test)))
    assert distance(model, by["reconstruction"].model, x) < 1.1 * distance(model, by["l2"].model, x)


def test_groups_without_a_known_reader_go_by_norm() -> None:
    """One-dimensional convolutions cannot be fitted: the channels that they alone read are scored by `l2`."""
    model, data = captured("rows", torch.float32), quadrants()
    a, b = (
        Prune(ratio=0.4, score=score, reconstruct=0, **FINE)(model, data=data) for score in ("l2", "reconstruction")
    )
    weights = [made.model.module.state_dict()["a.weight"] for made in (a, b)]
    assert torch.equal(*weights)


def test_data_are_needed() -> None:
    """The score asks for training data, in so many words."""
    with pytest.raises(BadInput, match=r"prune: needs training data for the score `reconstruction`: pass `data=`"):
        Prune(score="reconstruction", **FINE)(captured("plain"))
