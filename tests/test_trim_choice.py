"""Blocks and layers are weighed and chosen: least harm for what they spare, one at a time."""

from __future__ import annotations

from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.fx import Graph

from shipworthy.compress.blocks import find_layers
from shipworthy.compress.bypass import names_of, remove_blocks, without
from shipworthy.compress.candidates import find_candidates
from shipworthy.compress.harm import harm_on
from shipworthy.compress.operator_times import RUNS, WARM_UP, operator_microseconds
from shipworthy.compress.trim import Trim
from shipworthy.compress.trim_choice import Choice, Scales, choose, facts_of
from shipworthy.models.errors import BadInput
from shipworthy.models.model import capture, save_pt2
from shipworthy.models.summary import macs_by_operator, summarize
from shipworthy.tests.small_nets import NETS, captured, eager, images, outputs, quadrants


def test_macs_by_operator_are_those_of_the_summary() -> None:
    """Together they are the model's."""
    for name in NETS:
        assert sum(macs_by_operator(captured(name)).values()) == summarize(captured(name)).macs


def weigh(harms: dict[str, float], costs: dict[str, float] | None = None, wanted: int = 1) -> Choice:
    """Choose in the net `stack` by invented harms, which add up: of the operators that are gone."""
    model = captured("stack")
    whole = names_of(model.module.graph)

    def harm(graph: Graph) -> float:
        return sum(harms.get(name, 1.0) for name in whole - names_of(graph))

    return choose(find_candidates(model), wanted, Scales(model.module.graph, costs or dict.fromkeys(whole, 1.0), harm))


def convolution_of(path: str) -> str:
    """Return the name of a candidate's first convolution in the net `stack`."""
    candidate = next(c for c in find_candidates(captured("stack")) if c.path == path)
    return min(name for name in candidate.erased if name.startswith("conv"))


def paths(choice: Choice) -> list[str]:
    """Return what is removed, in the order chosen."""
    return [candidate.path for candidate in choice.removed]


def test_the_least_harm_for_what_it_spares() -> None:
    """Of equals the first of the graph is taken, harm counts, and so does cost."""
    free = {name: 0.0 for name in names_of(captured("stack").module.graph)}
    assert paths(weigh(free)) == ["a.body.0"]
    assert paths(weigh(free, wanted=2)) == ["a", "b.body.0"]
    harmful = dict.fromkeys(free, 1.0)
    b = convolution_of("b")
    assert paths(weigh(harmful | {b: 0.1})) == ["b.body.0"]
    assert paths(weigh(harmful, dict.fromkeys(free, 1.0) | {b: 50.0})) == ["b.body.0"]


def test_what_spares_nothing_comes_last() -> None:
    """Even if it does no harm; its score is infinite and None in the facts."""
    free = {name: 0.0 for name in names_of(captured("stack").module.graph)}
    costs = {convolution_of("c"): 1.0}
    choice = weigh(free, costs)
    assert paths(choice)[0] in ("c.body.0", "c")
    assert {one.score for one in choice.weighed if not one.spared} == {inf}
    rows = facts_of(choice, "macs")
    assert all((row["score"] is None) == (row["macs"] == 0) for row in rows)
    assert all((row["path"] == "c.body.0") == row["removed"] for row in rows)
    assert set(rows[0]) == {"path", "kind", "params", "harm", "macs", "score", "removed"}
    assert "microseconds" in facts_of(choice, "time")[0]


def test_the_rest_is_weighed_anew() -> None:
    """Two blocks that harm little alone and much together are not both taken."""
    model = captured("stack")
    found = {c.path: c for c in find_candidates(model)}
    a, b, c = (found[path].block.sums[0][0] for path in "abc")

    def harm(graph: Graph) -> float:
        gone = {a, b, c} - names_of(graph)
        return 100.0 if {a, b} <= gone else sum({a: 1.0, b: 1.1, c: 1.2}[name] for name in gone)

    blocks = tuple(found[path] for path in "abc")
    told: list[tuple[int, int]] = []
    costs = {a: 1.0, b: 1.0, c: 1.0}
    scales = Scales(model.module.graph, costs, harm, report=lambda done, total: told.append((done, total)))
    choice = choose(blocks, 2, scales)
    assert paths(choice) == ["a", "c"]
    assert [one.harm for one in choice.weighed] == [1.0, 100.0, 2.2]
    assert [done for done, _ in told] == [1, 2, 3, 4, 5]
    assert {total for _, total in told} == {6}


def test_a_block_takes_the_place_of_a_layer_in_it() -> None:
    """Where both are chosen they count as one, and what lies in a removed block is chosen no more."""
    model = captured("stack")
    found = {c.path: c for c in find_candidates(model)}
    few = tuple(found[path] for path in ("a.body.0", "a", "b"))
    inner, outer, other = (one.block.sums[0][0] for one in few)

    def harm(graph: Graph) -> float:
        return sum({inner: 0.1, outer: 0.1, other: 50.0}[name] for name in {inner, outer, other} - names_of(graph))

    scales = Scales(model.module.graph, dict.fromkeys((inner, outer, other), 1.0), harm)
    assert paths(choose(few, 1, scales)) == ["a.body.0"]
    assert paths(choose(few, 2, scales)) == ["a", "b"]
    with pytest.raises(BadInput, match=r"wanted 3 blocks removed, and there are 3: a.body.0, a, b, which lie in one"):
        choose(few, 3, scales)


def test_the_first_choice_by_hand() -> None:
    """For real: the lowest divergence of class probabilities for each MAC, by modules with identities and PyTorch."""
    model, data = captured("unknown", torch.float32), quadrants()
    x, _ = data.batch(data.train, data.sample(64, 5))
    teacher = eager("unknown", torch.float32).eval()
    harms = {}
    for path in ("b.0", "c.0"):
        net = eager("unknown", torch.float32).eval()
        net.set_submodule(path, nn.Identity())
        with torch.no_grad():
            p, q = teacher(x).double().softmax(1), net(x).double().softmax(1)
        harms[path] = float((p * (p / q).log()).sum(1).mean())
    facts = Trim(1, per="macs", samples=64, seed=5, reconstruct=0)(model, data=data).facts
    rows = {row["path"]: row for row in facts["candidates"]}
    assert facts["blocks_removed"] == [min(harms, key=lambda path: harms[path])]
    for path, harm in harms.items():
        assert rows[path]["harm"] == pytest.approx(harm, rel=1e-3)
        assert rows[path]["score"] == pytest.approx(harm / rows[path]["macs"], rel=1e-3)
        assert (rows[path]["macs"], rows[path]["params"]) == (36864, 576)


def test_times_that_are_nearly_equal_are_equal() -> None:
    """Of measured costs two digits count; then the first of the graph is taken, and not the one that was luckier."""
    model = captured("stack")
    a, b = (next(c for c in find_candidates(model) if c.path == f"{path}.body.0") for path in "ab")
    costs = {a.block.sums[0][0]: 10.1, b.block.sums[0][0]: 10.2}
    for measured, path in ((True, "a.body.0"), (False, "b.body.0")):
        scales = Scales(model.module.graph, costs, lambda _: 1.0, measured)
        assert paths(choose((a, b), 1, scales)) == [path]


def two(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    """Counted by MACs, a choice follows from model, data and seed; it is refitted and keeps the interface."""
    model, data = captured("stack", torch.float32), quadrants()
    results = [Trim(3, per="macs", samples=64, seed=1)(model, data=data) for _ in range(2)]
    for name, result in zip("ab", results, strict=True):
        save_pt2(result.model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    facts = [{**result.facts, "seconds": 0} for result in results]
    assert facts[0] == facts[1]
    assert len(facts[0]["blocks_removed"]) == sum(row["removed"] for row in facts[0]["candidates"]) == 3
    assert [row["path"] for row in facts[0]["candidates"]] == [c.path for c in find_candidates(model)]
    assert facts[0]["layers_refitted"] >= 1
    assert results[0].model.outputs == model.outputs


def test_by_time() -> None:
    """Every candidate has its microseconds, of two digits."""
    facts = Trim(1, samples=32)(captured("depthwise", torch.float32), data=quadrants()).facts
    assert all(row["microseconds"] == two(row["microseconds"]) > 0 for row in facts["candidates"])
    assert len(facts["blocks_removed"]) == 1


def test_operators_are_timed_one_by_one() -> None:
    """A clock that ticks once a reading gives each of them one tick; medians leave out what is rare."""
    before = torch.get_num_threads()
    model = captured("depthwise")
    ticks = count(0, 2000)
    times = operator_microseconds(model, lambda: next(ticks))
    operators = [node.name for node in model.module.graph.nodes if node.op == "call_function"]
    assert times == dict.fromkeys(operators, 2.0)
    assert next(ticks) == 2000 * 2 * len(operators) * (WARM_UP + RUNS)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dynamic", [True, False])
def test_harm_of_other_outputs_is_relative(dynamic: bool) -> None:
    """Nothing removed is no harm; without class scores it is the squared error over the outputs' variances."""
    net = eager("two-heads", torch.float32).eval()
    model, data = capture(net, (images(4, dtype=torch.float32),), dynamic_batch=dynamic), quadrants()
    harm = harm_on(model, data, 100, 0)
    assert harm(model.module.graph) == 0
    trimmed = without(model.module.graph, find_layers(model))
    x, _ = data.batch(data.train, data.sample(100, 0))
    smaller = capture(remove_blocks(model, find_layers(model)).module, (x,))
    whole = capture(net, (x,))
    parts = zip(outputs(whole, x), outputs(smaller, x), strict=True)
    wanted = sum(float((a - b).square().mean() / a.var(correction=0)) for a, b in parts) / 2
    assert harm(trimmed) == pytest.approx(wanted, rel=1e-4)


def test_a_fixed_batch_must_be_filled() -> None:
    """A model of more examples a batch than there are cannot be run."""
    net = eager("two-heads", torch.float32).eval()
    model = capture(net, (images(40, dtype=torch.float32),), dynamic_batch=False)
    with pytest.raises(BadInput, match=r"trim: the model's batch is fixed at 40, and there are 16 training examples"):
        Trim(1, reconstruct=0)(model, data=quadrants(train=16))


def test_what_is_not_finite_is_worst() -> None:
    """Harm without a value is infinite, so that such a candidate is taken last."""
    model, data = captured("two-heads", torch.float32), quadrants()
    harm = harm_on(model, data, 8, 0)
    broken = model.copy()
    broken.module.get_parameter("fc.weight").data.fill_(torch.nan)
    assert harm_on(broken, data, 8, 0)(model.module.graph) == inf
    assert harm(model.module.graph) == 0


@pytest.mark.parametrize("blocks", [0, -1, True, 1.5, (), "a", (1,), None])
def test_wrong_settings_are_refused(blocks: Any) -> None:
    """Blocks are a list of names or a number from 1."""
    with pytest.raises(ValidationError):
        Trim(blocks)


@pytest.mark.parametrize(
    ("name", "blocks", "message"),
    [
        ("two-heads", 2, r"^trim: wanted 2 blocks removed, and there are 1: trunk.0$"),
        ("plain", 1, r"^trim: wanted 1 blocks removed, and the model has none that keeps its input's shape$"),
    ],
)
def test_more_than_there_are(name: str, blocks: int, message: str) -> None:
    """The message says how many exist."""
    with pytest.raises(BadInput, match=message):
        Trim(blocks)(captured(name, torch.float32), data=quadrants())


def test_a_number_needs_data() -> None:
    """Harm cannot be measured without."""
    with pytest.raises(BadInput, match=r"^trim: needs training data to choose blocks, unless they are named"):
        Trim(1)(captured("stack"))
