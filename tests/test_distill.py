"""A student learns what its teacher knows, the same way every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from shipworthy.compress import distill_data
from shipworthy.compress.distill import Distill
from shipworthy.compress.distill_data import teacher_batches
from shipworthy.compress.distill_loss import SoftTarget, soft_target_loss
from shipworthy.compress.lessons import Lessons
from shipworthy.compress.training import Batch
from shipworthy.models.data import Dataset
from shipworthy.models.errors import BadInput, ToolFailed
from shipworthy.models.model import Model, capture, save_pt2
from shipworthy.tests.small_nets import CALM, captured, outputs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def untrained() -> Model:
    """A model that knows nothing."""
    return captured("residual", torch.float32)


def _accuracy(model: Model, data: Dataset) -> float:
    x, y = data.batch(data.test, torch.arange(len(data.test)))
    return float((outputs(model, x)[0].argmax(1) == y).float().mean())


def _weights(model: Model) -> list[Tensor]:
    return [value.clone() for value in model.module.state_dict().values()]


# --- the loss


def _logits(seed: int) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_formula(alpha: float) -> None:
    """The loss is alpha T^2 sum p log(p / q) + (1 - alpha) cross-entropy, written out and averaged over examples."""
    student, scores, labels, t = _logits(0), _logits(1), torch.softmax(_logits(2), 1), 3.0
    total = 0.0
    for s, v, y in zip(student, scores, labels, strict=True):
        q, p, hard = ((z - z.max()).exp() / (z - z.max()).exp().sum() for z in (s / t, v / t, s))
        total += float(alpha * t**2 * (p * (p / q).log()).sum() - (1 - alpha) * (y * hard.log()).sum())
    assert float(soft_target_loss(student, SoftTarget(scores, labels), t, alpha)) == pytest.approx(total / 5)


def test_high_temperatures_match_logits() -> None:
    """With T far above the logits, the gradient is that of half the squared distance of centred logits (Hinton)."""
    student, scores = _logits(0).requires_grad_(), _logits(1)
    soft_target_loss(student, SoftTarget(scores, scores), 1e6, 1.0).backward()  # type: ignore[no-untyped-call]  # torch's own
    z, v = (x - x.mean(1, keepdim=True) for x in (student.detach(), scores))
    torch.testing.assert_close(student.grad, (z - v) / 4 / 5, rtol=1e-3, atol=1e-6)


# --- learning


def test_a_student_learns_from_the_teacher_alone(data: Dataset, untrained: Model, teacher: Model) -> None:
    """Labels teach the teacher, and the teacher's scores alone teach a student of another shape."""
    student = captured("plain", torch.float32)
    result = Distill(steps=60, alpha=1.0, **CALM)(student, data=data, teacher=teacher)
    assert _accuracy(untrained, data) < 0.5
    assert _accuracy(student, data) < 0.5
    assert _accuracy(teacher, data) > 0.9
    assert _accuracy(result.model, data) > 0.8
    assert result.facts["last_loss"] < result.facts["first_loss"]
    assert (result.facts["steps"], result.facts["epochs"]) == (60, 15.0)
    assert result.facts["params_after"] == result.facts["params_before"]


def test_one_seed_gives_one_model(data: Dataset, teacher: Model) -> None:
    """Equal seeds give equal weights to the last bit, with all augmentation on; another seed gives others."""
    student = captured("plain", torch.float32)
    runs = [_weights(Distill(epochs=0.5, seed=s)(student, data=data, teacher=teacher).model) for s in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def _batches(settings: Distill, data: Dataset, *teachers: Model) -> list[Batch]:
    with teacher_batches(Lessons(settings, data, 1.0), teachers, settings.reuse) as batch_at:
        return [batch_at(step) for step in range(settings.steps or 0)]


def test_teacher_and_input_stay(data: Dataset, teacher: Model) -> None:
    """Distilling changes neither the teacher nor the model it is given."""
    student = captured("views", torch.float32)
    before, code = [*_weights(teacher), *_weights(student)], teacher.module.code
    Distill(steps=2)(student, data=data, teacher=teacher)
    assert all(torch.equal(a, b) for a, b in zip(before, [*_weights(teacher), *_weights(student)], strict=True))
    assert teacher.module.code == code


def test_the_teacher_sees_what_the_student_sees(data: Dataset, teacher: Model) -> None:
    """Scores belong to the very images of the batch, blended or not; labels stay probabilities."""
    for (x,), target in _batches(Distill(steps=3, batch=32), data, teacher):
        torch.testing.assert_close(outputs(teacher, x)[0], target.scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(target.labels.sum(1), torch.ones(32))


def test_a_pass_over_the_data_shows_every_image_once(data: Dataset, teacher: Model) -> None:
    """Without augmentation 256 images in batches of 64 are 256 different ones every four steps, in another order."""
    batches = [x for (x,), _ in _batches(Distill(steps=8, reuse=1, **CALM), data, teacher)]
    passes = [torch.cat(batches[:4]).flatten(1), torch.cat(batches[4:]).flatten(1)]
    seen = [{tuple(image) for image in part.tolist()} for part in passes]
    assert len(seen[0]) == 256
    assert seen[0] == seen[1]
    assert not torch.equal(passes[0], passes[1])


def test_batches_are_reused(data: Dataset, teacher: Model) -> None:
    """With `reuse` 3 every third batch is new, and those between were judged before."""
    batches = [x for (x,), _ in _batches(Distill(steps=9, reuse=3, batch=32), data, teacher)]
    for step in range(9):
        before = any(torch.equal(batches[step], earlier) for earlier in batches[:step])
        assert before == (step % 3 != 0)


def test_a_step_alone_says_its_batch(data: Dataset, teacher: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was asked for before, and however little memory there is, a step gives the same batch."""
    settings = Distill(steps=9, reuse=3, batch=32)
    wanted = _batches(settings, data, teacher)
    with teacher_batches(Lessons(settings, data, 1.0), [teacher], 3) as batch_at:
        found = {step: batch_at(step) for step in (8, 4, 7, 0)}
    for step, ((x,), target) in found.items():
        assert torch.equal(x, wanted[step][0][0])
        torch.testing.assert_close(target.scores, wanted[step][1].scores)
    monkeypatch.setattr(distill_data, "MEMORY_BYTES", 0)
    alone = _batches(settings, data, teacher)
    assert all(torch.equal(alone[step][0][0], alone[step - step % 3][0][0]) for step in range(9))


def test_examples_that_never_change_are_judged_once(data: Dataset, teacher: Model) -> None:
    """Without augmentation every example's scores are the teacher's, and it is asked for one pass over the data."""
    asked: list[int] = []
    wrapped = teacher.copy()
    forward = distill_data._Teachers.__call__

    def counted(self: Any, inputs: Any) -> Any:
        asked.append(len(inputs[0]))
        return forward(self, inputs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distill_data._Teachers, "__call__", counted)
        batches = _batches(Distill(steps=12, **CALM), data, wrapped)
    assert sum(asked) == len(data.train)
    for (x,), target in batches:
        torch.testing.assert_close(outputs(teacher, x)[0], target.scores, rtol=1e-3, atol=1e-4)


def test_scores_of_several_teachers_are_averaged(data: Dataset, teacher: Model) -> None:
    """An ensemble's scores are the mean of its members'; features are compared with one teacher alone."""
    other = captured("plain", torch.float32)
    for (x,), target in _batches(Distill(steps=2, batch=32), data, teacher, other):
        wanted = (outputs(teacher, x)[0] + outputs(other, x)[0]) / 2
        torch.testing.assert_close(wanted, target.scores, rtol=1e-3, atol=1e-4)
    with pytest.raises(BadInput, match="features are compared with one teacher, and there are 2"):
        Distill(steps=1, features={"a1": 1.0})(teacher, data=data, teacher=[teacher, other])


def test_a_model_may_teach_itself(data: Dataset, teacher: Model, tmp_path: Path) -> None:
    """`self` needs no other teacher; a file's model teaches as the same model that is passed does."""
    alone = Distill(steps=3, teachers=("self",), **CALM)(teacher, data=data)
    passed = Distill(steps=3, **CALM)(teacher, data=data, teacher=teacher)
    save_pt2(teacher, tmp_path / "teacher.pt2")
    read = Distill(steps=3, teachers=(str(tmp_path / "teacher.pt2"),), **CALM)(teacher, data=data)
    for one in (alone, read):
        assert one.facts["last_loss"] == pytest.approx(passed.facts["last_loss"], rel=1e-4)


def test_held_out_examples_choose_the_weights(data: Dataset, teacher: Model) -> None:
    """With `validation` the best weights on held-out examples are kept, and patience ends training."""
    student = captured("views", torch.float32)
    told = Distill(steps=60, validation=0.25, patience=2, learning_rate=1e-9, **{k: v for k, v in CALM.items() if k != "learning_rate"})(student, data=data, teacher=teacher).facts  # fmt: skip # noqa: E501
    assert told["stopped_early"]
    assert told["best_step"] < told["steps"] < 60
    assert 0 <= told["validation_accuracy"] <= 1
    with pytest.raises(ValidationError, match="patience needs `validation`"):
        Distill(steps=1, patience=1)


# --- what is refused


def test_data_and_a_teacher_are_needed(data: Dataset, teacher: Model) -> None:
    """Without data, or without a teacher, the message says what to pass."""
    with pytest.raises(BadInput, match=r"distill: needs training data to learn from: pass `data=`"):
        Distill(steps=1)(teacher, teacher=teacher)
    with pytest.raises(BadInput, match=r"distill: needs a teacher: pass `teacher=`"):
        Distill(steps=1)(teacher, data=data)


@pytest.mark.parametrize("wrong", [nn.Linear(8, 5), nn.Linear(8, 4)], ids=["inputs", "classes"])
def test_models_that_do_not_fit_the_data_are_refused(wrong: nn.Module, data: Dataset, teacher: Model) -> None:
    """A model or teacher with other inputs or classes is refused with both shapes before anything runs."""
    other = capture(wrong, (torch.zeros(2, 3, 8, 8),))
    for model, judge in ((other, teacher), (teacher, other)):
        with pytest.raises(
            BadInput, match=r"distill: the model maps .* the data 'quadrants' has images \(3, 8, 8\) of 4"
        ):
            Distill(steps=1)(model, data=data, teacher=judge)


def test_a_loss_that_explodes_names_the_step(data: Dataset, teacher: Model) -> None:
    """With an absurd learning rate training ends with the step and the remedy."""
    with pytest.raises(
        ToolFailed,
        match=r"distill: the loss is (nan|inf) at step \d of 9 \(training examples .*\); lower learning_rate",
    ):
        Distill(steps=9, **{**CALM, "learning_rate": 1e30})(teacher, data=data, teacher=teacher)


@pytest.mark.parametrize(
    "wrong", [{}, {"epochs": 1, "steps": 1}, {"steps": 1, "alpha": 1.5}, {"steps": 0}, {"step": 1}]
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    """Exactly one length is given, and every value lies in its range."""
    with pytest.raises(ValidationError):
        Distill(**wrong)
