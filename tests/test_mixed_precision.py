"""The search keeps in fp32 what must stay there, and no more; its limit holds for the file that is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from shipworthy.export.quantize_file import quantize_onnx
from shipworthy.export.session import OnnxSession
from shipworthy.models.errors import BadInput
from shipworthy.pipeline.layer_choice import MixedPrecision, foremost
from shipworthy.pipeline.layer_gains import measured_gains
from shipworthy.pipeline.layer_judge import Judge, Judging
from shipworthy.pipeline.mixed_precision import _fewest, _order, search
from shipworthy.profile.plan import Plan
from shipworthy.profile.stats import Estimate
from shipworthy.tests.foreign_files import save
from shipworthy.tests.fragile_nets import MADE, READS, fragile, layers_of
from shipworthy.tests.int8_nets import fed, net, noise, outputs

X = noise(300, seed=5)
ORDER = outputs(fragile(1.0), X)[0].argsort(axis=1)
LABELS, SECOND = ORDER[:, -1], ORDER[:, -2]
QUICK = Plan(budget_s=0.3)


def judging(max_drop: float, labels: Any = None) -> Judging:
    """Judge by 300 examples."""
    return Judging(fed(X, 50), labels, max_drop)


def agreement(proto: ModelProto) -> float:
    """Return in per cent how often a graph's class is the fp32 one's."""
    return 100 * float((outputs(proto, X)[0].argmax(axis=1) == LABELS).mean())


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_the_fragile_layers_stay(target: str, tmp_path: Path) -> None:
    """They and none else go back to fp32, and the written file keeps the limit."""
    layers = layers_of(fragile(), target)
    found = search(layers, judging(5.0), None)
    assert set(found.keep) == ({MADE, READS} if target == "cpu" else {READS})
    assert [one.layer for one in found.layers if one.kept] == list(found.keep)
    assert found.met
    assert found.drop <= 5.0 < found.drop_all
    source = save(tmp_path / "a.onnx", fragile())
    made = quantize_onnx(source, tmp_path / "b.onnx", {"x": noise(64)}, target, layers.settings_with(found.keep))  # type: ignore[arg-type]  # parametrized
    assert made.kept == found.keep
    assert 100 - agreement(onnx.load(made.path)) == pytest.approx(found.drop)


def test_nothing_is_kept_where_nothing_need_be() -> None:
    """An even net is all integers; what each layer costs is still told."""
    found = search(layers_of(fragile(1.0)), judging(5.0), None)
    assert (found.keep, found.met, found.files) == ((), True, 1)
    assert found.drop == found.drop_all <= 5.0
    assert all(one.sensitivity > 0 and not one.kept for one in found.layers)
    assert found.line.startswith("all 4 layers are integers: ")


def test_by_labels_or_by_fp32s_own() -> None:
    """With labels it is accuracy: where fp32 was always wrong, integers can only gain."""
    found = search(layers_of(fragile()), judging(0.0, SECOND), None)
    assert (found.metric, found.keep, found.met) == ("accuracy", (), True)
    assert found.drop < 0
    assert " gained on 300 examples" in found.line
    assert search(layers_of(fragile(1.0)), judging(99.0), None).metric == "agreement"


def test_a_limit_that_nothing_holds() -> None:
    """With one layer there is no choice left; the file is named with what it loses, and the line says missed."""
    one = net("p = GlobalAveragePool(x) f = Flatten(p) y = Gemm(f, w)", w=(3, 5))
    found = search(layers_of(one, weight_bits=2), Judging(fed(X), None, 0.0), None)
    assert (found.met, found.keep) == (False, ())
    assert found.drop == found.drop_all > 0
    assert found.line.endswith("; MISSED: found no choice with integers that holds 0")


def test_a_limit_that_hardly_anything_holds() -> None:
    """Where even one layer loses too much, that one is left, and it is not called met."""
    found = search(layers_of(fragile(), weight_bits=2), judging(0.0), None)
    assert not found.met
    assert len(found.keep) == len(found.layers) - 1
    assert found.drop > 0


def test_a_wrong_guess_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever few examples say, what comes out holds on all."""
    monkeypatch.setattr(Judge, "holds", lambda judge, proto: True)
    found = search(layers_of(fragile()), judging(5.0), None)
    assert found.met
    assert set(found.keep) == {MADE, READS}


def test_corrected_biases_are_judged_as_they_ship() -> None:
    """What changes the file beside the choice of layers is in the judged figure."""
    layers = layers_of(fragile(), correct_bias=True, weight_bits=4)
    found = search(layers, judging(20.0), None)
    assert 100 - agreement(layers.shipped(found.keep)) == pytest.approx(found.drop)


def test_gains_are_measured_on_files() -> None:
    """Each layer has a gain within its interval; without a device there is none."""
    layers = layers_of(fragile())
    gains = measured_gains(layers, QUICK, {"x": X[:1]})
    assert set(gains) == set(layers.layers)
    for gain in gains.values():
        assert np.isfinite(gain.value)
        assert gain.low is not None
        assert gain.high is not None
        assert gain.low <= gain.value <= gain.high
    found = search(layers, judging(99.0), QUICK)
    assert all(one.gain_us is not None for one in found.layers)
    for one in search(layers_of(fragile(), "tensorrt"), judging(99.0), None).layers:
        assert (one.gain_us, one.gain_low_us, one.gain_high_us, one.gains) == (None, None, None, None)


def test_the_whole_is_told() -> None:
    """Shares go up to the end of the last part."""
    seen: list[float] = []
    search(layers_of(fragile()), judging(5.0), QUICK, lambda what, share: seen.append(share))
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] <= 1


def _sure(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1)


def test_what_costs_much_for_its_gain_comes_first() -> None:
    """Equal costs are in the order of their gains, a layer that is slower in integers first, noise in the middle."""
    gains = {"much": _sure(50.0), "slower": _sure(-3.0), "little": _sure(1.0), "noise": Estimate(-80.0, -900.0, 700.0)}
    assert _order(dict.fromkeys(gains, 1.0), gains) == ["slower", "noise", "little", "much"]
    assert _order({"a": 1.0, "b": 3.0, "c": 2.0}, {}) == ["b", "c", "a"]


@pytest.mark.parametrize("needed", [{"b"}, {"a", "d"}, {"c", "d", "e"}, {"a"}, {"f"}])
def test_the_fewest_are_kept(needed: Collection[str]) -> None:
    """Whatever must stay stays, and all others go back; the last one never stays."""
    asked: list[tuple[str, ...]] = []

    def holds(keep: tuple[str, ...]) -> bool:
        asked.append(keep)
        return set(needed) <= set(keep)

    found = _fewest("abcdef", {}, holds)
    assert set(found) == (set(needed) if "f" not in needed else set("abcde"))
    assert len(asked) <= 10


def test_what_is_slower_in_integers_does_not_go_back() -> None:
    """It would cost accuracy and time."""
    gains = {"a": _sure(-5.0), "b": _sure(9.0), "c": _sure(2.0), "d": _sure(1.0)}
    assert _fewest("abcd", gains, lambda keep: "c" in keep) == ("a", "c")


def _cut(proto: ModelProto, share: float) -> ModelProto:
    """Return the graph with an error in its last weight."""
    made = ModelProto()
    made.CopyFrom(proto)
    held = next(one for one in made.graph.initializer if one.name == "w4")
    values = np.frombuffer(held.raw_data, np.float32).copy()
    values += share * np.random.default_rng(0).normal(size=values.shape).astype(np.float32)
    held.raw_data = values.tobytes()
    return made


@pytest.mark.parametrize("labels", [None, LABELS, (LABELS + (np.arange(300) % 9 == 0)) % 5])
def test_few_examples_say_what_all_say(labels: Any) -> None:
    """For files from hardly to wholly wrong, the short judgement is that of all examples."""
    for limit in (0.0, 1.0, 5.0, 30.0):
        judge = Judge(fragile(1.0), judging(limit, labels))
        for share in (0.0, 0.001, 0.01, 0.05, 0.3, 3.0):
            proto = _cut(fragile(1.0), share)
            assert judge.holds(proto) == (judge.drop(proto) <= limit + 1e-9)


def test_few_examples_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes nothing, and one that changes all, are judged by the least certain examples alone."""
    judge = Judge(fragile(1.0), judging(1.0))
    runs: list[int] = []
    run = OnnxSession.run

    def counted(session: OnnxSession, feeds: Mapping[str, Any]) -> list[Any]:
        runs.append(len(feeds["x"]))
        return run(session, feeds)

    monkeypatch.setattr(OnnxSession, "run", counted)
    assert judge.holds(fragile(1.0))
    assert not judge.holds(_cut(fragile(1.0), 30.0))
    assert runs == [64, 64]


def test_the_least_certain_come_first() -> None:
    """What is timed and judged first are the examples whose two best scores are closest, as they were given."""
    judge = Judge(fragile(1.0), judging(1.0))
    scores = np.sort(outputs(fragile(1.0), X)[0], axis=1)
    place = int((scores[:, -1] - scores[:, -2]).argmin())
    assert np.array_equal(judge.inputs(1)["x"], X[place : place + 1])
    assert judge.inputs(700)["x"].shape == (700, 3, 8, 8)
    assert Judge(fragile(1.0, batch="4"), judging(1.0)).inputs(1)["x"].shape == (4, 3, 8, 8)


def test_what_cannot_be_judged() -> None:
    """Outputs that are no classes, and labels of another number, are refused with what to do."""
    image = net("y = Conv(x, w)", w=(4, 3, 1, 1))
    with pytest.raises(BadInput, match=r"judges by classes, .* shape \(50, 4, 8, 8\).*name the layers to keep instead"):
        search(layers_of(image), judging(1.0), None)
    with pytest.raises(BadInput, match="labels: got 9 for 300 examples"):
        Judge(fragile(), judging(1.0, LABELS[:9]))


def test_examples_in_a_file_of_one_batch_size() -> None:
    """A graph that takes four at once is searched like any other."""
    found = search(layers_of(fragile(batch="4")), judging(5.0), QUICK)
    assert set(found.keep) == {MADE, READS}


@pytest.fixture(scope="module")
def found() -> MixedPrecision:
    """Give what a search found."""
    return search(layers_of(fragile()), judging(5.0), None)


def test_plain_values_and_back(found: MixedPrecision) -> None:
    """What is written is read again, with other entries beside it."""
    assert MixedPrecision.from_dict(found.to_dict() | {"name": "quantize"}) == found


def test_the_foremost_layers(found: MixedPrecision) -> None:
    """Those that stay in fp32 come before any that cost more; the order is that of cost."""
    assert {one.layer for one in foremost(found, 2)} == {MADE, READS}
    costs = [one.sensitivity for one in foremost(found, 9)]
    assert costs == sorted(costs, reverse=True)
    assert len(costs) == 4
