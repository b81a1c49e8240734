"""A pruned model is the original without the removed channels' effect, in float64, whatever the network."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from shipworthy.compress.channels import Group, find_channels
from shipworthy.compress.prune import Prune
from shipworthy.compress.prune_choice import width_left
from shipworthy.compress.rewrite import remove_channels
from shipworthy.models.errors import BadInput
from shipworthy.models.graph import set_training
from shipworthy.models.model import Model, capture, load_pt2, save_pt2
from shipworthy.tests.masked import masked_outputs, some_gone, tensors, worst_difference
from shipworthy.tests.small_nets import FINE, KEEPS_ZERO, NETS, captured, images, outputs, quadrants
from shipworthy.tests.wider_nets import WIDER


def tensors_of(model: Model) -> dict[str, Tensor]:
    """Return weights and statistics, without counters."""
    return {name: value for name, value in model.module.state_dict().items() if value.is_floating_point()}


def kept_positions(before: Tensor, after: Tensor) -> list[set[int]]:
    """Return which positions of each dimension are left, found by value: no two weights of a net are equal."""
    flat, order = before.flatten(), before.flatten().argsort()
    places = order[torch.searchsorted(flat[order], after.flatten())]
    assert torch.equal(flat[places].view_as(after), after), "a weight changed or moved"
    return [set(index.tolist()) for index in torch.unravel_index(places, before.shape)]


def masked(model: Model, pruned: Model, dim: int) -> Model:
    """Return the original with zeros where the pruned model has nothing: in producers (dim 0) or consumers (dim 1)."""
    made, after = model.copy(), tensors_of(pruned)
    with torch.no_grad():
        for name, value in made.module.named_parameters():
            if value.ndim > dim:
                kept = kept_positions(value, after[name])[dim]
                value.index_fill_(dim, torch.tensor(sorted(set(range(value.shape[dim])) - kept), dtype=torch.int64), 0)
    return made


def assert_same(left: Model, right: Model, x: Tensor) -> None:
    """Compare all outputs to 1e-9 of the largest value."""
    for a, b in zip(outputs(left, x), outputs(right, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * float(a.abs().max()))


# --- the law


@pytest.mark.parametrize("name", [name for name in NETS if name != "stack"])  # which has a norm over channels
@settings(max_examples=3, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_pruned_model_equals_the_masked_one(name: str, data: st.DataObject) -> None:
    """Whatever channels go: outputs equal the original's with the removed inputs of consumers (or producers) zeroed."""
    model = captured(name)
    found = find_channels(model)
    gone: set[int] = set()
    for group in (g for g in found.groups if g.frozen is None):
        gone |= data.draw(st.sets(st.sampled_from(group.channels), min_size=1, max_size=len(group.channels) - 1))
    pruned = remove_channels(model, found, gone)
    assert_same(masked(model, pruned, 1), pruned, images(3))
    if name in KEEPS_ZERO:
        assert_same(masked(model, pruned, 0), pruned, images(3))
    assert (pruned.inputs, pruned.outputs) == (model.inputs, model.outputs)


@cache
def _wide(name: str) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in NETS:
            return captured(name)
        return capture(WIDER[name]().double(), (torch.zeros(2, 3, 8, 8, dtype=torch.float64),), source=name)


@pytest.mark.parametrize("name", [*NETS, *WIDER])
@settings(max_examples=2, derandomize=True, deadline=None)
@given(seed=st.integers(0, 1000), ratio=st.floats(0.1, 0.9))
def test_a_pruned_model_equals_the_original_with_its_tensors_masked(name: str, seed: int, ratio: float) -> None:
    """Attention, norms over channels, shuffles, gates, recurrence: zeros give what is given without them."""
    model, x = _wide(name), (images(3, seed),)
    found = find_channels(model)
    gone = some_gone(found, seed, ratio)
    pruned = remove_channels(model, found, gone)
    assert worst_difference(masked_outputs(model, found, gone, x), tensors(pruned.module(*x))) < 1e-9


@pytest.mark.parametrize("name", ["views", "attention", "chunked attention", "windows", "shuffled"])
def test_recorded_shapes_are_those_of_a_fresh_capture(name: str) -> None:
    """The sizes that pruning records for each operator are what torch finds when it captures the smaller graph anew."""
    model = _wide(name)
    found = find_channels(model)
    pruned = remove_channels(model, found, some_gone(found, 0))
    recorded = [n.meta["val"].shape[1:] for n in pruned.module.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    again = capture(pruned.module, (images(2),)).module.graph.nodes
    assert [n.meta["val"].shape[1:] for n in again if isinstance(n.meta.get("val"), Tensor)] == recorded


def _small_densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 2), 16, num_classes=10)  # type: ignore[no-any-return]  # torchvision is untyped


def test_a_torchvision_model_equals_its_mask() -> None:
    """The law holds for a published architecture, with random weights and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _small_densenet().double()
        for value in net.state_dict().values():
            if value.is_floating_point():
                nn.init.uniform_(value, -0.1 if value.ndim > 1 else 0.5, 0.1 if value.ndim > 1 else 1.5)
    model = capture(net, (torch.zeros(2, 3, 32, 32, dtype=torch.float64),))
    result = Prune(ratio=0.5, **FINE)(model)
    assert result.facts["params_after"] < 0.4 * result.facts["params_before"]
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_same(masked(model, result.model, 1), result.model, x)


# --- what a pruned model can still do


@pytest.mark.parametrize("name", ["depthwise", "views", "two-heads"])
def test_a_pruned_model_trains_prunes_again_and_reloads(name: str, tmp_path: Path) -> None:
    """After pruning a training step moves the weights, a second pruning keeps the law, and `.pt2` gives it back."""
    pruned = Prune(ratio=0.3, **FINE)(captured(name)).model
    x = images(4)
    work = pruned.copy()
    set_training(work.module, True)
    found = work.module(x)
    parts = [found] if isinstance(found, Tensor) else found
    torch.stack([y.square().sum() for y in parts]).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert all(p.grad is not None and p.grad.shape == p.shape for p in work.module.parameters())
    again = Prune(ratio=0.3, **FINE)(pruned).model
    assert_same(masked(pruned, again, 1), again, x)
    save_pt2(again, tmp_path / "m.pt2")
    back = load_pt2(tmp_path / "m.pt2")
    assert (back.inputs, back.outputs, back.dynamic_batch) == (again.inputs, again.outputs, True)
    assert all(torch.equal(a, b) for a, b in zip(outputs(again, x), outputs(back, x), strict=True))


def test_the_input_model_stays() -> None:
    """A pass changes neither the weights nor the graph of the model it is given."""
    model = captured("views")
    weights = {name: value.clone() for name, value in tensors_of(model).items()}
    code, before = model.module.code, outputs(model, images(2))
    Prune(**FINE)(model)
    assert model.module.code == code
    assert all(torch.equal(value, weights[name]) for name, value in tensors_of(model).items())
    assert torch.equal(before[0], outputs(model, images(2))[0])


# --- which channels go


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_the_smallest_channels_go(score: Any) -> None:
    """Channels whose weights are made tiny are those that are removed."""
    model = captured("plain").copy()
    state = model.module.state_dict()
    with torch.no_grad():
        for name in ("second.weight", "second.bias"):
            state[name][[1, 4]] *= 1e-3
        state["fc.weight"].view(10, 6, 4)[:, [1, 4]] *= 1e-3
    result = Prune(ratio=1 / 3, score=score, ignore=("first*", "fc"), **FINE)(model)
    kept = kept_positions(state["second.bias"], result.model.module.state_dict()["second.bias"])
    assert kept == [{0, 2, 3, 5}]
    assert result.facts["widths"] == {"first.0": 8, "second": 4, "fc": 10}
    assert result.facts["channels_removed"] == 2


def test_taylor_removes_what_the_loss_does_not_feel() -> None:
    """A channel that no later layer reads has no gradient and goes first; the scores need data."""
    model = captured("plain", torch.float32).copy()
    with torch.no_grad():
        model.module.state_dict()["fc.weight"].view(10, 6, 4)[:, [0, 3]] = 0
    settings_ = Prune(ratio=1 / 3, score="taylor", ignore=("first*", "fc"), samples=64, reconstruct=0, **FINE)
    result = settings_(model, data=quadrants())
    before, after = (m.module.state_dict()["second.bias"] for m in (model, result.model))
    assert kept_positions(before, after) == [{1, 2, 4, 5}]
    with pytest.raises(BadInput, match=r"prune: needs training data for the score `taylor`: pass `data=`"):
        settings_(model)


@given(width=st.integers(1, 300), ratio=st.floats(0.01, 0.99), step=st.integers(1, 32), least=st.integers(1, 40))
def test_widths_are_whole_steps_near_the_ratio(width: int, ratio: float, step: int, least: int) -> None:
    """A width left is the old one, or a multiple of `round_to` no less than `min_channels`, nearest to the ratio."""
    group = Group("one", (), tuple(range(width)), None)
    left = width_left(group, ratio, Prune(ratio=ratio, round_to=step, min_channels=least))
    assert 1 <= left <= width
    if left < width:
        floor = -(-max(least, step) // step) * step
        assert left % step == 0
        assert left >= least
        assert left == floor or abs(left - width * (1 - ratio)) <= step / 2 + 1e-9


def test_patterns_give_layers_their_own_ratio() -> None:
    """The first pattern that matches any layer of a group decides; 0 and `ignore` keep the group."""
    own = Prune(ratio=0.5, layers={"b1.*": 0.8, "b*": 0.25}, ignore=("a1.1",), **FINE)(captured("residual"))
    assert own.facts["widths"] == {"a1.0": 6, "a2.0": 4, "b1.0": 2, "b2.0": 9}
    none = Prune(ratio=0.5, layers={"b*": 0.0}, **FINE)(captured("residual"))
    assert none.facts["widths"] == {"a1.0": 3, "a2.0": 4, "b1.0": 10, "b2.0": 12}


def test_the_facts_are_hand_counts() -> None:
    """Parameters, MACs and channels before and after are those of the layers counted by hand."""
    facts = Prune(ratio=0.5, **FINE)(captured("plain")).facts
    assert (facts["channels_before"], facts["channels_removed"], facts["groups"]) == (24, 12, 3)
    assert facts["params_before"] == 8 * 27 + 16 + 6 * 72 + 6 + 10 * 24 + 10 + 40 + 4
    assert facts["params_after"] == 4 * 27 + 8 + 3 * 36 + 3 + 5 * 12 + 5 + 20 + 4
    assert facts["macs_before"] == 64 * 8 * 27 + 16 * 6 * 72 + 240 + 40
    assert facts["macs_after"] == 64 * 4 * 27 + 16 * 3 * 36 + 60 + 20
    assert facts["operators_without_rule"] == []
    grouped = {"a.0 [groups]": 1, "a.0 [in a group]": 4, "b.0 [in a group]": 4, "c.0": 3}
    assert Prune(ratio=0.5, **FINE)(captured("grouped")).facts["widths"] == grouped


# --- what is refused


def test_patterns_that_match_nothing_are_refused() -> None:
    """A misspelt layer is named, with layers there are."""
    with pytest.raises(BadInput, match=r"prune: the pattern 'frist\*' matches no layer; there are fc, first\.0, first"):
        Prune(ignore=("frist*",), **FINE)(captured("plain"))
    with pytest.raises(BadInput, match=r"the pattern 'layer9' matches no layer"):
        Prune(layers={"layer9": 0.1}, **FINE)(captured("plain"))


def test_nothing_to_remove_is_refused() -> None:
    """Where no width would change the message says which setting to change; where all is frozen, why."""
    with pytest.raises(BadInput, match=r"prune: nothing to remove: 3 of 4 groups are free.*lower round_to \(32\)"):
        Prune(round_to=32)(captured("plain"))
    with pytest.raises(
        BadInput, match=r"nothing to remove: 0 of 1 groups are free .* what aten.softmax.int runs along"
    ):
        Prune(**FINE)(capture(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Softmax(1)), (torch.zeros(2, 3, 4, 4),)))


@pytest.mark.parametrize(
    "wrong", [{"ratio": 0.0}, {"ratio": 1.0}, {"score": "l3"}, {"round_to": 0}, {"layers": {"a": 1.0}}, {"rato": 0.5}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """A pass cannot be made with settings that mean nothing."""
    with pytest.raises(ValidationError):
        Prune(**wrong)


def test_tied_weights_stay_tied() -> None:
    """A weight of two names is one tensor after pruning too, and counts once."""
    facts = Prune(ratio=0.5, **FINE)(_wide("tied")).facts
    assert facts["widths"] == {"a": 4}
    assert facts["params_after"] == (3 * 4 + 4) + 4 * 4 * 9 + 2 * 4 + (4 * 4 + 4)
