"""A removed layer is the module with an identity in its place; what nobody uses goes too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node

from shipworthy.compress.blocks import Block
from shipworthy.compress.bypass import remove_dead
from shipworthy.compress.candidates import Candidate, find_candidates
from shipworthy.compress.patterns import matching
from shipworthy.compress.trim import Trim
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import NETS, captured, conv, eager, images, outputs, quadrants


class Layers(nn.Module):
    """Poolings of all sorts, functions among them, and results and inputs that others change in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.most, self.even = conv(3, 8), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)
        self.strided, self.whole = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4)
        self.seen, self.kept = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.branch, self.fc = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = self.even(self.most(self.stem(x)))
        y = self.seen(x)
        y.flatten(2).relu_()  # changes the convolution's result through another view
        x = F.avg_pool2d(x + y, 3, 1, 1)
        y = self.kept(x)
        x.view(x.shape).mul_(2.0)  # changes the convolution's input once it has been read
        x = self.whole(self.strided(x + y))
        x = F.relu(x + self.branch(x))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


def layers_net() -> nn.Module:
    """Return the net of layers, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Layers().double().eval()


def made(name: str) -> nn.Module:
    """Return a net in evaluation mode."""
    return layers_net() if name == "layers" else eager(name).eval()


NOTHING = ("plain", "dense", "views", "squeeze-excite", "rows")
"""Nets in which nothing keeps its input's shape."""


def net_of(name: str) -> Model:
    """Return the captured net."""
    return capture(layers_net(), (images(2),)) if name == "layers" else captured(name)


class Copy(nn.Module):
    """An identity with a result of its own: what changes that in place does not change what went in."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy."""
        return x.clone()


class Passed(Interpreter):
    """Run a graph, but some operators give one of their arguments."""

    def __init__(self, model: Model, block: Block) -> None:
        super().__init__(model.module)
        self._places = dict(block.sums)

    def run_node(self, n: Node) -> Any:
        """Give a copy of the argument, or the argument itself where the operator would have changed it in place."""
        if n.name not in self._places:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        place = self._places[n.name]
        itself = place == 0 and str(n.target).split(".")[1].endswith("_")
        return args[0] if itself else args[place].clone()


@pytest.mark.parametrize("name", [*NETS, "layers"])
def test_removing_is_passing_on_what_went_in(name: str) -> None:
    """The law for every candidate of every net, exactly: operators give what they got, and modules are identities."""
    model = net_of(name)
    assert bool(find_candidates(model)) == (name not in NOTHING)
    for candidate in find_candidates(model):
        result = Trim((candidate.path,))(model)
        assert result.facts["blocks_removed"] == [candidate.path]
        with torch.no_grad():
            wanted = Passed(model, candidate.block).run(images(3))
        for a, b in zip(outputs(result.model, images(3)), torch.utils._pytree.tree_leaves(wanted), strict=True):
            assert torch.equal(a, b)
        net = made(name)
        if candidate.kind != "residual block" and candidate.path in dict(net.named_modules()):
            net.set_submodule(candidate.path, Copy() if name == "layers" else nn.Identity())
            with torch.no_grad():
                there = torch.utils._pytree.tree_leaves(net(images(3)))
            assert all(map(torch.equal, outputs(result.model, images(3)), there))
        assert result.facts["params_before"] - result.facts["params_after"] == candidate.params
        assert result.facts["macs_before"] - result.facts["macs_after"] == candidate.macs
        result.model.module.graph.lint()


def test_all_are_found() -> None:
    """Modules go by their path, functions by that of the module around them; what changes the shape is none."""
    model = capture(layers_net(), (images(2),))
    found = {c.path: c.kind for c in find_candidates(model)}
    kinds = dict.fromkeys(("most", "even", "avg_pool2d_1", "whole"), "pooling")
    kinds |= dict.fromkeys(("seen", "kept", "branch.0"), "convolution")
    # Sums are written in the outermost module's code, so each goes by its own name.
    assert {path: kind for path, kind in found.items() if kind != "residual block"} == kinds
    assert [path for path, kind in found.items() if kind == "residual block"] == ["add", "add_1", "add_2"]
    places = [name for name in names_in_order(model.module.graph) if name in firsts(find_candidates(model))]
    assert [c.block.sums[0][0] for c in find_candidates(model)] == places


def names_in_order(graph: Graph) -> list[str]:
    """Return the names of all nodes."""
    return [node.name for node in graph.nodes]


def firsts(candidates: tuple[Candidate, ...]) -> set[str]:
    """Return the names of the candidates' first sums."""
    return {candidate.block.sums[0][0] for candidate in candidates}


# --- by name


@pytest.mark.parametrize(
    ("patterns", "removed"),
    [
        (("a",), ["a"]),
        (("a*",), ["a", "add_1"]),
        (("?.body.0",), ["a.body.0", "b.body.0", "c.body.0"]),
        (("a", "a.body.0"), ["a"]),
        (("?.body.*", "b"), ["a.body.0", "b", "c.body.0"]),
    ],
)
def test_names_of_layers(patterns: tuple[str, ...], removed: list[str]) -> None:
    """A pattern that matches blocks does not mean their layers, and what lies in a removed block goes with it."""
    assert Trim(patterns)(captured("stack")).facts["blocks_removed"] == removed


def test_a_layer_that_changes_the_shape_is_refused() -> None:
    """The message says what it makes of what, and which layers there are."""
    model = capture(layers_net(), (images(2),))
    message = (
        r"trim: the pattern 'strided' matches no residual block that keeps its input's shape; there are add, .*; "
        r"convolutions and poolings that do: most, even, seen, .* "
        r"\(strided makes \(8, 4, 4\) of \(8, 8, 8\): its input cannot stand for its result\)$"
    )
    with pytest.raises(BadInput, match=message):
        Trim(("strided",))(model)
    with pytest.raises(BadInput, match=r"the model has none; convolutions and poolings that do: none$"):
        Trim(("layer",))(captured("plain"))


def test_matching() -> None:
    """Names are in their order, and each once; a pattern without one is refused."""
    assert matching(("b*", "a", "?1"), ["a", "b1", "c", "b2"], "layer") == ["a", "b1", "b2"]
    assert matching((), ["a"], "layer") == []
    with pytest.raises(BadInput, match=r"^the pattern 'd\*' matches no layer; there are a, b$"):
        matching(("a", "d*"), ["a", "b"], "layer")
    with pytest.raises(BadInput, match=r"^the pattern 'a' matches no layer; the model has none$"):
        matching(("a",), [], "layer")


# --- what the refit makes of it


def test_norms_behind_a_removed_convolution_are_moved() -> None:
    """Their statistics are fitted to what they get now, be it another convolution's result, not to what that is for."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        body = (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        first, second = body[0], body[1]
        net = nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 4))
    data = quadrants(train=64)
    shown, _ = data.batch(data.train, torch.arange(64))
    with torch.no_grad():
        torch.nn.init.constant_(second.bias, 5.0)  # type: ignore[arg-type]  # it has one
        for _ in range(100):
            net(shown)  # the norm's statistics are those of this data
        wanted = first(shown)
    model = capture(net, (images(2, dtype=torch.float32),))
    left = Trim(("1",), reconstruct=64)(model, data=data).model.module.state_dict()
    torch.testing.assert_close(left["2.running_mean"], wanted.mean((0, 2, 3)), rtol=0, atol=1e-3)
    torch.testing.assert_close(left["2.running_var"], wanted.var((0, 2, 3)), rtol=1e-3, atol=0)


# --- dead code


class Littered(nn.Module):
    """Operators whose results nobody uses: a head, one that changes a tensor of its own in place, unused weights."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.fc, self.head = conv(3, 3), nn.Linear(3, 4), nn.Linear(3, 5)
        self.spare = nn.Parameter(torch.ones(7))
        self.table = nn.Module()
        self.table.register_buffer("values", torch.ones(9))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        mask = torch.zeros_like(x)
        mask[..., :3] = 1  # seen
        unseen = torch.zeros_like(x)
        unseen[..., :3].add_(self.head(x.mean((2, 3))).sum())  # changes what nobody reads
        x = self.block(x * mask)
        x.relu_()
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


def test_dead_code_goes() -> None:
    """With all weights that only it used; the outputs stay, and so do the counters of norms in use."""
    model = capture(Littered().double().eval(), (images(2),))
    result = Trim(("block.0",))(model)
    assert result.facts["dead_operators_removed"] == 6
    assert result.facts["dead_params_removed"] == 3 * 5 + 5 + 7
    assert set(result.model.module.state_dict()) == {
        *(f"block.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *("fc.weight", "fc.bias"),
        "lifted_tensor_0",  # what the mask is filled with
    }
    cleared = model.copy()
    assert remove_dead(cleared) == (6, 27)
    assert remove_dead(cleared) == (0, 0)
    assert torch.equal(outputs(cleared, images(3))[0], outputs(model, images(3))[0])
    assert set(model.module.state_dict()) - set(cleared.module.state_dict()) == {
        "spare",
        "table.values",
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize("name", NETS)
def test_what_is_used_stays(name: str) -> None:
    """Nets without dead code lose nothing."""
    kept = captured(name).copy()
    assert remove_dead(kept) == (0, 0)
    assert kept.module.code == captured(name).module.code
    assert kept.module.state_dict().keys() == captured(name).module.state_dict().keys()
