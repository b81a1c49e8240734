"""Distances between distributions and between features, against their formulas written out."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from shipworthy.compress.attention_transfer import attention_loss, attention_map
from shipworthy.compress.distances import DISTANCES, Pair
from shipworthy.compress.distill import DistanceName, Distill
from shipworthy.compress.distill_loss import SoftTarget
from shipworthy.models.data import Dataset
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model
from shipworthy.tests.small_nets import CALM, captured, outputs

Array = NDArray[np.float64]
T = 3.0


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def _pair(classes: int = 5, beta: float = 8.0) -> Pair:
    labels = torch.eye(classes, dtype=torch.float64)[torch.arange(6) % classes]
    return Pair(_drawn(0, 6, classes), _drawn(1, 6, classes), labels, T, beta)


def _soft(scores: Tensor) -> Array:
    raised = np.exp(scores.numpy() / T)
    made: Array = raised / raised.sum(1, keepdims=True)
    return made


def _kl(p: Array, q: Array) -> Array:
    found: Array = (p * np.log(p / q)).sum(-1)
    return found


def test_every_name_has_its_distance() -> None:
    """What a recipe may say is what there is."""
    assert set(get_args(DistanceName)) == set(DISTANCES)
    with pytest.raises(ValidationError, match="distance"):
        Distill(steps=1, distance="hellinger")  # type: ignore[arg-type]  # wrong on purpose


def test_divergences_are_their_formulas() -> None:
    """Kullback and Leibler's, and the mean of both divergences from the mean distribution."""
    pair = _pair()
    q, p = _soft(pair.student), _soft(pair.teacher)
    assert float(DISTANCES["kl"](pair)) == pytest.approx(T**2 * _kl(p, q).mean())
    mean = (p + q) / 2
    assert float(DISTANCES["js"](pair)) == pytest.approx(2 * T**2 * (_kl(p, mean) + _kl(q, mean)).mean())


def test_jensen_shannon_is_alike_nearby_and_bounded_far_away() -> None:
    """As its documentation says."""
    scores = _drawn(0, 50, 8)
    near = Pair(scores + 1e-3 * _drawn(1, 50, 8), scores, scores, T)
    assert float(DISTANCES["js"](near)) == pytest.approx(float(DISTANCES["kl"](near)), rel=1e-2)
    far = Pair(torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]]), torch.tensor([[0.0, 1.0]]), 1.0)
    assert float(DISTANCES["js"](far)) == pytest.approx(4 * np.log(2))


def test_high_temperatures_lead_from_divergence_to_squares() -> None:
    """For centred logits half the mean squared difference is the limit."""
    student, teacher = (one - one.mean(1, keepdim=True) for one in (_drawn(0, 6, 5), _drawn(1, 6, 5)))
    hot = Pair(student, teacher, student, 1e5)
    assert float(DISTANCES["kl"](hot)) == pytest.approx(float(DISTANCES["mse"](hot)), rel=1e-3)


@pytest.mark.parametrize("classes", [2, 5])
def test_decoupled_with_the_teachers_own_weight_is_the_divergence(classes: int) -> None:
    """KL = TCKD + (1 - p_target) NCKD (equation 6 of the paper); beta replaces that factor, per example."""
    pair = _pair(classes)
    q, p = _soft(pair.student), _soft(pair.teacher)
    target = pair.labels.numpy().argmax(1)
    rows = np.arange(len(p))
    own_p, own_q = p[rows, target], q[rows, target]
    tckd = _kl(np.stack([own_p, 1 - own_p], 1), np.stack([own_q, 1 - own_q], 1))
    rest = (_kl(p, q) - tckd) / (1 - own_p)
    for beta in (0.0, 1.0, 8.0):
        found = DISTANCES["dkd"](_pair(classes, beta))
        assert float(found) == pytest.approx(T**2 * (tckd + beta * rest).mean(), abs=1e-9)


def test_decoupled_of_a_blend_is_between_that_of_its_parts() -> None:
    """Both classes of a blend are targets, by their shares."""
    student, teacher = _drawn(0, 1, 5), _drawn(1, 1, 5)

    def found(*labels: float) -> float:
        return float(DISTANCES["dkd"](Pair(student, teacher, torch.tensor([labels], dtype=torch.float64), T)))

    ends = found(1, 0, 0, 0, 0), found(0, 0, 1, 0, 0)
    assert found(0.3, 0, 0.7, 0, 0) == pytest.approx(0.3 * ends[0] + 0.7 * ends[1])


def test_decoupled_stays_finite_where_the_teacher_is_certain() -> None:
    """A target of all the probability leaves a distribution among the others all the same."""
    scores = torch.tensor([[200.0, 1.0, 0.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    loss = DISTANCES["dkd"](Pair(student, scores, torch.tensor([[1.0, 0.0, 0.0]]), 1.0))
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad[0, 1] < 0 < student.grad[0, 2]


def test_correlation_is_pearsons() -> None:
    """One less the mean correlation over classes, and the same over examples."""
    pair = _pair()
    q, p = _soft(pair.student), _soft(pair.teacher)
    between = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    within = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    assert float(DISTANCES["dist"](pair)) == pytest.approx(between + within)


@pytest.mark.parametrize("name", DISTANCES)
def test_agreement_is_no_distance(name: DistanceName) -> None:
    """A student that says what its teacher says has nothing to learn, and any other has."""
    same = _drawn(0, 6, 5)
    labels = torch.eye(5, dtype=torch.float64)[torch.arange(6) % 5]
    assert float(DISTANCES[name](Pair(same, same.clone(), labels, T))) == pytest.approx(0, abs=1e-9)
    assert float(DISTANCES[name](_pair())) > 1e-3


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", [name for name in DISTANCES if name != "kl"])
def test_a_student_learns_by_each(name: DistanceName, data: Dataset, teacher: Model) -> None:
    """The teacher's scores alone teach a student of another shape, whatever they are compared by."""
    student = captured("plain", torch.float32)
    result = Distill(steps=100, alpha=1.0, distance=name, **CALM)(student, data=data, teacher=teacher)
    x, y = data.batch(data.test, torch.arange(len(data.test)))
    before, after = (float((outputs(one, x)[0].argmax(1) == y).float().mean()) for one in (student, result.model))
    assert before < 0.5
    assert after > 0.7
    assert result.facts["last_loss"] < result.facts["first_loss"]


def test_the_teachers_weight_goes_to_its_end() -> None:
    """Half way the weight is the mean of both ends; the last step has the last one."""
    labels = torch.eye(5, dtype=torch.float64)[torch.arange(6) % 5]
    target, scores = SoftTarget(_drawn(1, 6, 5), labels), _drawn(0, 6, 5)

    def losses(alpha: float, end: float | None, steps: int = 3) -> list[float]:
        loss_of = Distill(steps=steps, alpha=alpha, alpha_end=end)._loss(steps)
        return [float(loss_of((scores, ()), target, step)) for step in range(steps)]

    soft, hard = losses(1.0, None)[0], losses(0.0, None)[0]
    assert losses(1.0, 0.0) == pytest.approx([soft, (soft + hard) / 2, hard])
    assert losses(1.0, 0.0, steps=1) == pytest.approx([soft])


# --- attention transfer


def test_maps_are_where_features_are_large() -> None:
    """Squares over the channels, of length one; the sign and the scale of a feature play no part."""
    feature = _drawn(0, 2, 3, 4, 5)
    energy = (feature.numpy() ** 2).sum(1)
    wanted = energy / np.sqrt((energy**2).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(attention_map("x", feature), wanted)
    torch.testing.assert_close(attention_map("x", -7 * feature), attention_map("x", feature))
    tokens = attention_map("x", feature.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens, attention_map("x", feature).flatten(1))


def test_the_loss_is_the_squared_distance_of_maps() -> None:
    """Of any number of channels; weights multiply, and the mean is over the batch."""
    a, b = _drawn(0, 2, 3, 4, 4), _drawn(1, 2, 6, 4, 4)
    first, second = (attention_map("x", one) for one in (a, b))
    single = float((first - second).square().sum() / 2)
    assert float(attention_loss([a], [second], {"x": 1.0})) == pytest.approx(single)
    assert float(attention_loss([a, a], [second, second], {"x": 2.0, "y": 0.5})) == pytest.approx(2.5 * single)


def test_maps_of_other_sizes_meet_in_the_smaller() -> None:
    """A feature of twice the resolution, each place four times, attends to the same."""
    small = _drawn(0, 2, 3, 4, 4)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(attention_loss([small], [attention_map("x", large)], {"x": 1.0})) == pytest.approx(0, abs=1e-12)
    assert float(attention_loss([large], [attention_map("x", small)], {"x": 1.0})) == pytest.approx(0, abs=1e-12)


def test_what_has_no_places_is_refused() -> None:
    """Features of a linear layer, and tokens of another number."""
    with pytest.raises(BadInput, match=r"'head' has the shape \(2, 3\), without places"):
        attention_map("head", _drawn(0, 2, 3))
    with pytest.raises(BadInput, match=r"maps at 'x' do not fit: \(2, 4\) here, \(2, 5\) in the teacher"):
        attention_loss([_drawn(0, 2, 4, 3)], [_drawn(0, 2, 5)], {"x": 1.0})


@pytest.mark.usefixtures("one_thread")
def test_attention_is_learnt(data: Dataset, teacher: Model) -> None:
    """Training brings the student's maps nearer to the teacher's, and nearer than scores alone do."""
    path = "b1"
    x, _ = data.batch(data.test, torch.arange(len(data.test)))
    start = captured("residual", torch.float32)

    def apart(model: Model) -> float:
        from shipworthy.compress.features import shown

        maps = []
        for one in (model, teacher):
            copy = one.copy()
            with shown(copy.module, [path]), torch.no_grad():
                maps.append(attention_map(path, copy.module(x)[1][0]))
        return float((maps[0] - maps[1]).square().flatten(1).sum(1).mean())

    made = [
        Distill(steps=40, alpha=1.0, features=features, feature_distance="attention", **CALM)(
            start, data=data, teacher=teacher
        ).model
        for features in ({path: 20.0}, dict[str, float]())
    ]
    assert apart(made[0]) < apart(made[1])
    assert apart(made[0]) < apart(start)
