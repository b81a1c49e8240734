"""A graph learns under the rounding of its int8 file: what is learnt, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import shipworthy.compress.qat as qat
from shipworthy.compress.distill import Distill
from shipworthy.compress.qat_modules import FollowedGrid, LearntGrid, LearntSteps
from shipworthy.compress.qat_nodes import finish, insert
from shipworthy.compress.qat_places import find_places
from shipworthy.compress.qat_prepare import prepared
from shipworthy.compress.qat_ranges import start_ranges
from shipworthy.compress.quantize import Quantize
from shipworthy.compress.sparsify import Sparsify
from shipworthy.models.data import Dataset
from shipworthy.models.errors import BadInput, ToolFailed
from shipworthy.models.fake_quantize import PER_CHANNEL, PER_TENSOR
from shipworthy.models.graph import aten, get_tensor
from shipworthy.models.model import Model, capture, load_pt2, save_pt2
from shipworthy.models.summary import summarize
from shipworthy.tests.small_nets import CALM, captured, images, outputs
from shipworthy.tests.test_sparsify import zeros

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT: dict[str, Any] = {**CALM, "steps": 3, "calibration": 32, "learning_rate": 0.005}


def _accuracy(model: Model, data: Dataset) -> float:
    x, y = data.batch(data.test, torch.arange(len(data.test)))
    return float((outputs(model, x)[0].argmax(1) == y).float().mean())


def _weights(model: Model) -> list[Tensor]:
    return [value.clone() for value in model.module.state_dict().values()]


def _rounded(model: Model, data: Dataset, narrow: float = 1.0) -> Model:
    """Return the model with fake quantization by ranges so many times as wide as they should be, untrained."""
    made = prepared(model)
    places = find_places(made)
    x, _ = data.batch(data.train, torch.arange(64))
    ranges = {n: (low * narrow, high * narrow) for n, (low, high) in start_ranges(made, places, (x,), "minmax").items()}
    finish(made.module, insert(made.module, places, ranges, 7, True))
    return made


# --- what training does


@pytest.mark.parametrize("learn_steps", [True, False])
def test_training_mends_bad_ranges(
    learn_steps: bool, data: Dataset, teacher: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges two fifths as wide as they should be cost a fifth of the accuracy; training from there brings it back."""
    assert _accuracy(_rounded(teacher, data), data) > 0.95
    assert _accuracy(_rounded(teacher, data, 0.4), data) < 0.8

    def narrow(*given: Any) -> Any:
        return {node: (low * 0.4, high * 0.4) for node, (low, high) in start_ranges(*given).items()}

    monkeypatch.setattr(qat, "start_ranges", narrow)
    result = Quantize(**{**SHORT, "steps": 40}, learn_steps=learn_steps)(teacher, data=data, teacher=teacher)
    assert result.facts["last_loss"] < 0.25 * result.facts["first_loss"]
    assert _accuracy(result.model, data) > 0.95


@pytest.mark.parametrize("learn_steps", [True, False])
def test_the_same_seed_gives_the_same_weights(learn_steps: bool, data: Dataset, teacher: Model) -> None:
    """Two runs of one seed agree to the bit, another seed differs, and the model given stays as it was."""
    before = _weights(teacher)

    def trained(seed: int) -> list[Tensor]:
        settings = Quantize(**SHORT, seed=seed, learn_steps=learn_steps)
        return _weights(settings(teacher, data=data, teacher=teacher).model)

    first = trained(1)
    assert all(map(torch.equal, first, trained(1)))
    assert not all(map(torch.equal, first, trained(2)))
    assert all(map(torch.equal, before, _weights(teacher)))


def test_labels_alone_teach(data: Dataset) -> None:
    """Without a teacher the labels teach."""
    start = captured("residual", torch.float32)
    start = Distill(**{**CALM, "steps": 10, "alpha": 0.0})(start, data=data, teacher=start).model
    result = Quantize(**{**SHORT, "steps": 60, "learning_rate": 0.02})(start, data=data)
    assert result.facts["learns_from"] == "labels"
    assert _accuracy(result.model, data) > _accuracy(start, data) + 0.3


def test_progress_is_told(data: Dataset, teacher: Model) -> None:
    """Every step is reported."""
    told: list[tuple[int, int]] = []
    Quantize(**SHORT)(teacher, data=data, teacher=teacher, report=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- what comes out


@pytest.mark.parametrize("learn_steps", [True, False])
@pytest.mark.parametrize("name", ["residual", "dense", "squeeze-excite", "rows", "stack"])
def test_the_grids_are_in_the_graph(
    name: str, learn_steps: bool, data: Dataset, teacher: Model, tmp_path: Path
) -> None:
    """ATen's operators hold the grids; what went through them lies on them, also of the file that is read back."""
    result = Quantize(**SHORT, learn_steps=learn_steps)(captured(name, torch.float32), data=data, teacher=teacher)
    model, nodes = result.model, result.model.module.graph.nodes
    activations = [node for node in nodes if node.target == PER_TENSOR]
    weights = [node for node in nodes if node.target == PER_CHANNEL]
    assert (len(activations), len(weights)) == (result.facts["grids"], result.facts["rounded_weights"])
    assert all(node.args[1] > 0 and 0 <= node.args[2] <= 255 and node.args[3:] == (0, 255) for node in activations)
    assert all(node.args[4:] == (-64, 63) for node in weights)
    assert not any(node.op == "call_module" for node in nodes)
    assert not any(node.target == aten.dropout.default and node.args[2] for node in nodes)
    save_pt2(model, tmp_path / "m.pt2")
    x = images(5, dtype=torch.float32)
    assert torch.equal(outputs(load_pt2(tmp_path / "m.pt2"), x)[0], outputs(model, x)[0])
    assert summarize(model).macs == summarize(captured(name, torch.float32)).macs
    kinds = {row.kind for row in summarize(model).layers if row.params}
    assert not any("fake" in kind for kind in kinds)


def test_no_more_than_64_integers_on_either_side(data: Dataset, teacher: Model) -> None:
    """A channel's rounded weights are whole multiples of its step, 7 bits of them, or 8 if asked for."""
    for settings, most in ((Quantize(**SHORT), 63), (Quantize(**SHORT, weight_bits=8), 127)):
        model = settings(teacher, data=data, teacher=teacher).model
        for node in (node for node in model.module.graph.nodes if node.target == PER_CHANNEL):
            weight, steps, zero = (get_tensor(model.module, str(one.target)) for one in node.args[:3])
            whole = PER_CHANNEL(weight, steps, zero, *node.args[3:]) / steps.view(-1, *[1] * (weight.ndim - 1))
            assert torch.allclose(whole, whole.round(), atol=1e-3)
            assert whole.min() >= -most - 1.001
            assert most // 2 < whole.abs().max() <= most + 1.001


@pytest.mark.parametrize("pattern", [{"pattern": "2:4"}, {"ratio": 0.7}])
def test_zeros_stay_zeros(pattern: dict[str, Any], data: Dataset, teacher: Model) -> None:
    """Folding and training leave the zeros of sparse weights, and their marks."""
    sparse = Sparsify(**pattern)(teacher).model
    made = Quantize(**SHORT)(sparse, data=data, teacher=teacher).model
    assert sparse.sparsity is not None
    assert made.sparsity is not None
    assert made.sparsity.patterns == sparse.sparsity.patterns
    now = zeros(made)
    assert all(torch.equal(then, now[name]) for name, then in zeros(sparse).items())


# --- the grids that learn


def test_gradients_of_steps_are_those_of_the_paper() -> None:
    """Inside, `round(v) - v`; outside, the end; times `1 / sqrt(n q)` (Esser et al. 2020, section 2)."""
    draw = torch.Generator().manual_seed(0)
    x, pull = torch.randn(2, 3, 50, 50, generator=draw), torch.randn(2, 3, 50, 50, generator=draw)
    grid = LearntGrid((-1.0, 1.5), (-9.0, 9.0))
    (grid(x) * pull).sum().backward()
    v = x.double() / grid.step.item()
    low, high = -grid.grid().zero, 255 - grid.grid().zero
    slope = torch.where((v.round() >= low) & (v.round() <= high), v.round() - v, v.clamp(low, high).round())
    wanted = (slope * pull).sum() / (7500 * high) ** 0.5
    assert grid.step.grad is not None
    assert grid.step.grad.item() == pytest.approx(wanted.item(), rel=1e-3)

    weight, pull = torch.randn(4, 25, generator=draw, requires_grad=True), torch.randn(4, 25, generator=draw)
    steps = LearntSteps(weight * 0.8, 0, 63)
    (steps(weight) * pull).sum().backward()
    v = (weight.detach() / steps.step.detach()[:, None]).double()
    inside = (v.round() >= -64) & (v.round() <= 63)
    slope = torch.where(inside, v.round() - v, v.clamp(-64, 63))
    assert steps.step.grad is not None
    assert torch.allclose(steps.step.grad.double(), (slope * pull).sum(1) / (25 * 63) ** 0.5, rtol=1e-3, atol=1e-5)
    assert weight.grad is not None
    assert torch.equal(weight.grad, pull * inside)


def test_steps_stay_steps() -> None:
    """A step that training made negative comes back above zero; one behind a ReLU6 never spans more than 6."""
    grid = LearntGrid((0.0, 3.0), (0.0, 6.0))
    for given, wanted in ((-1.0, 3 / 255 / 100), (1.0, 6 / 255), (0.02, 0.02)):
        grid.step.data.fill_(given)
        grid.settle()
        assert grid.step.item() == pytest.approx(wanted)


def test_moving_averages_follow_and_stand_still() -> None:
    """A range moves a twentieth of the way with each batch, together with those that share it, until it is frozen."""
    one, other = FollowedGrid((0.0, 1.0), 0.05), FollowedGrid((-1.0, 0.0), 0.05)
    one.join((one, other))
    other.join((one, other))
    assert one.grid() == other.grid()
    one(torch.tensor([-0.5, 2.0]))
    assert other.grid().step * 255 == pytest.approx(1.05 + 1.0)
    one.frozen = True
    before = one.grid()
    one(torch.tensor([-5.0, 20.0]))
    assert one.grid() == before


# --- what is refused


def test_data_and_layers_are_needed(data: Dataset, teacher: Model) -> None:
    """Training says which data it misses, that they do not fit, and that there is nothing to round."""
    with pytest.raises(BadInput, match="quantize: needs training data"):
        Quantize(**SHORT)(teacher)
    with pytest.raises(BadInput, match="quantize: the model maps"):
        Quantize(**SHORT)(captured("two-heads", torch.float32), data=data)
    with pytest.raises(BadInput, match=r"quantize: nothing to train: .* keep_float leaves"):
        Quantize(**SHORT, keep_float=("*",))(teacher, data=data)


def test_a_loss_without_end_is_an_error(data: Dataset, teacher: Model) -> None:
    """Training that diverges fails, with the step."""
    with pytest.raises(ToolFailed, match=r"quantize: the loss is .* at step .* lower learning_rate"):
        Quantize(**{**SHORT, "steps": 40, "learning_rate": 1e38})(teacher, data=data, teacher=teacher)


@pytest.mark.parametrize("late", [{"equalize": True}, {"correct_bias": True}, {"smooth": 0.5}])
def test_weights_are_not_changed_after_they_learnt(late: dict[str, Any]) -> None:
    """What would change weights for their grids once more is refused with training, and taken without it."""
    with pytest.raises(ValidationError, match="for quantization after training"):
        Quantize(steps=1, **late)
    Quantize(**late)


@pytest.mark.parametrize(
    "wrong", [{"steps": -1}, {"weight_bits": 6}, {"smooth": 2.0}, {"alpha": 2.0}, {"method": "kl"}]
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    """Every value lies in its range."""
    with pytest.raises(ValidationError):
        Quantize(**wrong)


def test_the_exporter_is_told_what_is_not_the_default(data: Dataset, teacher: Model) -> None:
    """Settings that the exporter carries out go with the model, by name; defaults do not."""
    plain = Quantize(calibration=16)(teacher, data=data).model.quantization
    told = Quantize(calibration=16, keep_float=("fc",), correct_bias=True, method="mse", weight_bits=8)(
        teacher, data=data
    )
    assert plain is not None
    assert not plain.options
    assert told.model.quantization is not None
    assert told.model.quantization.method == "mse"
    assert told.model.quantization.options == {"keep_float": ("fc",), "correct_bias": True, "weight_bits": 8}


def test_dropout_acts_in_training_only(data: Dataset) -> None:
    """A net with dropout trains, and its result is the same every time it is called."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
    model = Quantize(**SHORT)(capture(net, (torch.zeros(2, 3, 8, 8),)), data=data).model
    x = images(5, dtype=torch.float32)
    assert torch.equal(outputs(model, x)[0], outputs(model, x)[0])


def test_distillation_is_that_of_the_distill_pass(data: Dataset, teacher: Model) -> None:
    """The first batch's loss is the distill pass's for the rounded model: same batch, same formula."""
    settings = {**CALM, "steps": 1, "seed": 3}
    rounded = Quantize(**settings, calibration=64)(teacher, data=data, teacher=teacher).facts["first_loss"]
    plain = Distill(**settings)(prepared(teacher), data=data, teacher=teacher).facts["first_loss"]
    assert rounded == pytest.approx(plain, rel=0.05)
