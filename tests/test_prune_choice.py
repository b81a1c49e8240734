"""How much goes and what: scores, targets, rounds, heads; and the errors that say what cannot be."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from shipworthy.compress.activation_scores import activation_scores
from shipworthy.compress.channels import Channels, Group, find_channels
from shipworthy.compress.costs import costs
from shipworthy.compress.distill import Distill
from shipworthy.compress.prune import Prune, Score
from shipworthy.compress.prune_choice import choose, steps_of
from shipworthy.compress.prune_goal import goals
from shipworthy.compress.rewrite import remove_channels
from shipworthy.compress.scores import channel_scores
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture
from shipworthy.models.summary import summarize
from shipworthy.tests.masked import some_gone
from shipworthy.tests.small_nets import CALM, FINE, NETS, captured, images, outputs, quadrants
from shipworthy.tests.wider_nets import WIDER

SCORES = get_args(Score)


@cache
def net(name: str) -> Model:
    """Return a captured net of either list, in float32."""
    if name in NETS:
        return captured(name, torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(WIDER[name](), (torch.zeros(2, 3, 8, 8),), source=name)


def free(channels: Channels, suffix: str = "") -> list[Group]:
    """Return the free groups whose names end so."""
    return [g for g in channels.groups if g.frozen is None and g.name.endswith(suffix)]


# --- scores


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ["plain", "residual", "grouped", "attention", "recurrent", "standardized"])
def test_every_score_prunes_every_kind_of_net(name: str, score: Score) -> None:
    """Half of the channels go whatever the score, and what is left gives finite outputs."""
    model = net(name)
    result = Prune(ratio=0.5, score=score, samples=32, reconstruct=32, **FINE)(model, data=quadrants())
    assert result.facts["params_after"] < 0.6 * result.facts["params_before"]
    assert all(y.isfinite().all() for y in outputs(result.model, images(3, dtype=torch.float32)))


@pytest.mark.parametrize("score", ["l1", "l2", "bn", "geometric_median", "activation"])
def test_a_channel_that_is_nothing_is_worth_least(score: Any) -> None:
    """Weights, scales and what reads them set to zero: no score ranks that channel above another."""
    model = net("residual").copy()
    found = find_channels(model)
    group = next(g for g in free(found) if g.name == "b1.0")
    with torch.no_grad():
        state = model.module.state_dict()
        for name in ("b1.0.weight", "b1.1.weight", "b1.1.bias"):
            state[name][3] = 0
        state["b2.0.weight"][:, 3] = 0
        if score == "geometric_median":  # what is like the others can be given by them
            others = [0, 1, 2, *range(4, 10)]
            state["b1.0.weight"][3] = state["b1.0.weight"][others].mean(0)
    x = images(32, dtype=torch.float32)
    scores = activation_scores(model, found, x) if score == "activation" else channel_scores(model, found, score)
    assert min(group.channels, key=lambda root: scores[root]) == group.channels[3]


def test_batch_norm_scales_are_the_score() -> None:
    """`bn` is the sum of |scale| of the norms that a channel passes, and `l2` where it passes none."""
    model = net("plain")
    found = find_channels(model)
    by_name = {g.name: g.channels for g in free(found)}
    scores, plain = channel_scores(model, found, "bn"), channel_scores(model, found, "l2")
    scales = model.module.state_dict()["first.1.weight"].abs().tolist()
    assert [scores[root] for root in by_name["first.0"]] == pytest.approx(scales)
    assert [scores[root] for root in by_name["second"]] == [plain[root] for root in by_name["second"]]


def test_activations_are_weighed_by_what_reads_them() -> None:
    """Root mean square of the inputs times the norm of the columns, by hand."""
    net_ = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    model, x = capture(net_, (torch.zeros(2, 3),)), torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    found = find_channels(model)
    (group,) = free(found)
    scores = activation_scores(model, found, x)
    with torch.no_grad():
        wanted = (x @ net_[0].weight.T).square().mean(0).sqrt() * net_[1].weight.norm(dim=0)  # type: ignore[operator]  # nn.Module is untyped
    assert [scores[root] for root in group.channels] == pytest.approx(wanted.tolist(), rel=1e-5)


def test_random_depends_on_the_seed_alone() -> None:
    """The same seed removes the same channels, another one others."""
    one, two, three = (Prune(score="random", seed=s, **FINE)(net("dense")).model for s in (0, 0, 1))
    weights = [m.module.state_dict()["a.1.running_mean"] for m in (one, two, three)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# --- how much


@pytest.mark.parametrize("name", [*NETS, *WIDER])
def test_costs_are_those_of_the_smaller_model(name: str) -> None:
    """Parameters and MACs told from sizes are those counted on the pruned graph."""
    model = net(name)
    found = find_channels(model)
    gone = some_gone(found, 0)
    told = costs(model, found, found.lost(gone))
    counted = summarize(remove_channels(model, found, gone))
    assert told["params"] == counted.params
    assert told["macs"] == counted.macs


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", ["residual", "dense", "attention"])
@settings(max_examples=5, derandomize=True, deadline=None)
@given(share=st.floats(0.3, 0.9))
def test_a_target_is_reached_from_below(name: str, kind: str, share: float) -> None:
    """At most the share is left, and one channel less of a group would have left more."""
    goal: dict[str, Any] = {kind: share}
    result = Prune(**goal, reconstruct=0, **FINE)(net(name))
    before, after = (result.facts[f"{kind}_{when}"] for when in ("before", "after"))
    assert after <= share * before
    assert after > 0.5 * share * before


def test_a_target_out_of_reach_says_what_is_not() -> None:
    """The smallest possible share is named, and the settings that bound it."""
    with pytest.raises(
        BadInput, match=r"prune: macs: 0\.01 cannot be reached: .* least widths allowed 0\.\d+ of the MACs"
    ):
        Prune(macs=0.01, round_to=1, min_channels=4)(net("residual"))
    with pytest.raises(BadInput, match=r"params: 0\.2 cannot be reached: .* least widths allowed 1 of the parameters"):
        Prune(params=0.2, ignore=("*",), **FINE)(net("residual"))


@pytest.mark.parametrize("rounds", [2, 3])
def test_rounds_come_to_the_same_widths(rounds: int) -> None:
    """Several rounds leave what one would, scored anew each time; the facts are of all rounds together."""
    one = Prune(ratio=0.5, **FINE)(net("plain")).facts
    some = Prune(ratio=0.5, rounds=rounds, **FINE)(net("plain")).facts
    assert all(abs(some["widths"][name] - width) <= 1 for name, width in one["widths"].items())
    assert some["channels_before"] == one["channels_before"]
    assert some["channels_removed"] == some["channels_before"] - sum(some["widths"].values())


@pytest.mark.parametrize(("what", "given"), [("ratio", 0.6), ("macs", 0.25), ("params", 0.3)])
def test_goals_of_rounds_multiply_to_the_whole(what: str, given: float) -> None:
    """What the rounds leave, one after the other, is what is wanted in the end."""
    found = goals(Prune(**{what: given}, rounds=4))  # type: ignore[arg-type]  # one of three
    left = 1.0
    for goal in found:
        left *= 1 - goal.share if goal.kind == "ratio" else goal.share
    assert left == pytest.approx(1 - given if what == "ratio" else given)


def test_training_between_rounds_is_towards_the_original() -> None:
    """With `recover` a round is followed by distillation, all but the last; without data that is refused."""
    chosen = Prune(ratio=0.5, rounds=2, recover=Distill(steps=3, **CALM), reconstruct=0, **FINE)
    plain = Prune(ratio=0.5, rounds=2, reconstruct=0, **FINE)
    trained, bare = chosen(net("plain"), data=quadrants()).model, plain(net("plain"), data=quadrants()).model
    assert not torch.equal(trained.module.state_dict()["head.bias"], bare.module.state_dict()["head.bias"])
    with pytest.raises(BadInput, match=r"needs training data to recover between rounds"):
        chosen(net("plain"))


# --- which groups


def test_heads_and_head_size_have_their_own_shares() -> None:
    """By default heads go as other channels do and keep their size; either can be set."""

    def widths(**own: Any) -> dict[str, int]:
        found: dict[str, int] = Prune(ratio=0.5, **own, **FINE)(net("attention")).facts["widths"]
        return {name.partition("[")[2]: width for name, width in found.items() if "[" in name}

    assert widths() == {"heads]": 2, "head size]": 6}
    assert widths(heads=0.0, head_size=0.5) == {"heads]": 4, "head size]": 3}
    assert widths(heads=0.75, head_size=1 / 3) == {"heads]": 1, "head size]": 4}
    assert widths(ignore=("mix.qkv",)) == {"heads]": 4, "head size]": 6}


def test_wide_heads_need_no_rounding() -> None:
    """Of heads 64 wide any number is a multiple of 8 wide; of heads 6 wide four are."""
    wide, narrow = (Group("q", (), tuple(range(12)), None, "outer", inner) for inner in (64, 6))
    assert steps_of(wide, Prune()) == (1, 1)
    assert steps_of(narrow, Prune()) == (4, 1)
    assert steps_of(narrow, Prune(round_to="tensorrt")) == (8, 1)


def test_global_ranking_takes_where_scores_are_low() -> None:
    """As many channels go as when every group loses its share, most of them from the group that is worth least."""
    model = net("residual").copy()
    with torch.no_grad():
        state = model.module.state_dict()
        for name in ("b1.0.weight", "b1.1.weight", "b1.1.bias"):
            state[name][:8] *= 1e-3
        state["b2.0.weight"][:, :8] *= 1e-3
    uniform = Prune(ratio=0.3, **FINE)(model).facts
    ranked = Prune(ratio=0.3, scope="global", **FINE)(model).facts
    assert ranked["channels_removed"] == uniform["channels_removed"]
    assert ranked["widths"]["b1.0"] == 2 < uniform["widths"]["b1.0"]


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("name", [*NETS, *WIDER])
def test_nothing_is_emptied(name: str, scope: Any) -> None:
    """However much may go, every dimension keeps a position, and the model runs."""
    model = net(name)
    found = find_channels(model)
    settings_ = Prune(ratio=0.99, scope=scope, head_size=0.9, **FINE)
    gone = choose(settings_, found, channel_scores(model, found, "random", seed=3), 0.99)
    assert gone
    assert all(y.isfinite().all() for y in outputs(remove_channels(model, found, gone), images(2, dtype=torch.float32)))


# --- what is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratio": 0.5, "macs": 0.5}, "give one of ratio, macs and params, not ratio and macs"),
        ({"scope": "global", "score": "reconstruction"}, "take scope: uniform"),
        ({"recover": {"steps": 1}}, "set rounds to 2 or more"),
        ({"macs": 1.0}, "less than 1"),
        ({"heads": 1.0}, "less than 1"),
        ({"round_to": "cup"}, "a whole number or cpu or tensorrt"),
        ({"rounds": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, Any], message: str) -> None:
    """The message names the settings and what to do."""
    with pytest.raises(ValidationError, match=message):
        Prune(**wrong)


@pytest.mark.parametrize("score", ["taylor", "activation", "reconstruction"])
def test_scores_on_data_need_data(score: Any) -> None:
    """The score is named, and how to give data."""
    with pytest.raises(BadInput, match=rf"prune: needs training data for the score `{score}`: pass `data=`"):
        Prune(score=score, **FINE)(net("plain"))
