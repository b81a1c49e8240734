"""Features inside a graph are what the user's own module gives, and their maps leave no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shipworthy.compress.distill import Distill
from shipworthy.compress.distill_data import Shown, teacher_batches
from shipworthy.compress.features import feature_loss, mapped, shown
from shipworthy.compress.lessons import Lessons
from shipworthy.compress.prune import Prune
from shipworthy.models.data import Dataset
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, load_pt2, save_pt2
from shipworthy.tests.small_nets import CALM, FINE, captured, eager, images, outputs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("net", "path"), [("residual", "a1"), ("residual", "b2"), ("residual", "stem.1"), ("rows", "b"), ("rows", "mix")]
)
def test_a_feature_is_what_the_module_gives(net: str, path: str) -> None:
    """What is shown equals what a hook on the eager module sees, also where it is changed in place afterwards."""
    model, module = captured(net).copy(), eager(net).eval()
    seen: list[Tensor] = []
    module.get_submodule(path).register_forward_hook(lambda _m, _i, found: seen.append(found.detach().clone()))
    x, code = images(3), model.module.code
    with torch.no_grad():
        wanted = module(x)
        with shown(model.module, [path]):
            scores, (feature,) = model.module(x)
    torch.testing.assert_close(feature, seen[0])
    torch.testing.assert_close(scores, wanted)
    assert model.module.code == code
    assert torch.equal(outputs(model, x)[0], scores)


def test_paths_survive_pruning_and_reloading(tmp_path: Any) -> None:
    """A pruned model that was saved and read again is still asked by the user's own names."""
    pruned = Prune(ratio=0.5, **FINE)(captured("residual")).model
    save_pt2(pruned, tmp_path / "m.pt2")
    model = load_pt2(tmp_path / "m.pt2")
    with shown(model.module, ["a1", "stem"]), torch.no_grad():
        _, features = model.module(images(3))
    assert [tuple(f.shape) for f in features] == [(3, 3, 8, 8), (3, 4, 8, 8)]


@pytest.mark.parametrize(("net", "path", "rank"), [("residual", "a1", 4), ("rows", "mix", 3)])
def test_maps_begin_as_the_best_fit_and_leave_no_trace(net: str, path: str, rank: int) -> None:
    """The first maps explain what is linear in the features, are trainable, and go; also after an error."""
    model, x = captured(net).copy(), images(64)
    with shown(model.module, [path]), torch.no_grad():
        _, (given,) = model.module(x)
    assert given.ndim == rank
    mix = torch.randn(
        5, given.shape[1 if rank > 3 else -1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    wanted = torch.einsum("ncij,oc->noij" if rank > 3 else "nlc,oc->nlo", given, mix) + 3
    names, code = set(model.module.state_dict()), model.module.code

    def use_and_fail() -> None:
        with mapped(model.module, [path], (x,), [wanted]):
            _, (found,) = model.module(x)
            assert feature_loss([found], [wanted], {path: 1.0}) < 1e-3
            found.square().sum().backward()
            added = {key: p for key, p in model.module.named_parameters() if key not in names}
            assert len(added) == 2
            assert all(p.grad is not None for p in added.values())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert (set(model.module.state_dict()), model.module.code) == (names, code)


def test_the_loss_is_relative_to_the_variance() -> None:
    """Each weight times the mean squared difference over the variance of what is wanted, summed."""
    a, b = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    expected = 2 * (a - b).square().mean() / b.var() + 0.5 * (b - a).square().mean() / a.var()
    torch.testing.assert_close(feature_loss([a, b], [b, a], {"x": 2.0, "y": 0.5}), expected)


# --- as part of distillation


def test_a_student_comes_to_see_what_its_teacher_sees(data: Dataset, teacher: Model) -> None:
    """With features the pruned student ends nearer to the teacher inside, after as many steps, and stays itself."""
    student = Prune(ratio=0.3, **FINE)(teacher).model
    x, _ = data.batch(data.test, torch.arange(len(data.test)))
    with shown(teacher.module, ["b2"]), torch.no_grad():
        _, wanted = teacher.module(x)

    def unexplained(features: dict[str, float]) -> float:
        made = Distill(steps=40, features=features, **CALM)(student, data=data, teacher=teacher).model
        assert set(made.module.state_dict()) == set(student.module.state_dict())
        with mapped(made.module, ["b2"], (x,), wanted), torch.no_grad():
            return float(feature_loss(made.module(x)[1], wanted, {"b2": 1.0}))

    assert unexplained({"b2": 3.0}) < 0.9 * unexplained({})


def test_judged_batches_carry_the_teachers_features(data: Dataset, teacher: Model) -> None:
    """The features of a batch are the teacher's for those very images, to 16 bits."""
    settings = Distill(steps=2, batch=32)
    with teacher_batches(Lessons(settings, data, 1.0), [teacher], inside=Shown(("a1", "b1"))) as batch_at:
        batches = [batch_at(0), batch_at(1)]
    for (x,), target in batches:
        work = teacher.copy()
        with shown(work.module, ["a1", "b1"]), torch.no_grad():
            _, features = work.module(x)
        for found, wanted in zip(target.features, features, strict=True):
            assert found.dtype == torch.float16
            torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=2e-3)


# --- what is refused


def test_features_that_cannot_be_compared_are_refused(data: Dataset, teacher: Model) -> None:
    """An unknown module, of the student or the teacher, is named with some there are; shapes that differ are told."""
    student = captured("plain", torch.float32)
    with pytest.raises(BadInput, match=r"distill: no module 'layer9' in the model; there are a1\.0, a1\.1, a2"):
        Distill(steps=1, features={"layer9": 1.0})(teacher, data=data, teacher=teacher)
    with pytest.raises(BadInput, match=r"distill: no module 'a1' in the model; there are fc, first"):
        Distill(steps=1, features={"a1": 1.0}, **CALM)(student, data=data, teacher=teacher)
    with (
        pytest.raises(BadInput, match=r"the features at 'a1' do not fit: \(2, 6, 8, 8\) here, \(2, 6, 4, 4\)"),
        mapped(teacher.copy().module, ["a1"], (images(2, dtype=torch.float32),), [torch.zeros(2, 6, 4, 4)]),
    ):
        pass
