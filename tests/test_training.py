"""The training loop trains a graph and nothing else, and says when it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipworthy.compress.augment import cutmix, flip_and_shift, mixup
from shipworthy.compress.lessons import accuracy_on
from shipworthy.compress.optimizers import Schedule, Shape
from shipworthy.compress.prune import Prune
from shipworthy.compress.surroundings import Surroundings
from shipworthy.compress.training import Batch, BatchAt, Extras, Judging, lay_out, train
from shipworthy.compress.training_state import Keep
from shipworthy.models.data import Dataset
from shipworthy.models.errors import ToolFailed
from shipworthy.models.graph import TRAINING_FLAG
from shipworthy.models.model import capture
from shipworthy.tests.small_nets import FINE, captured, quadrants

pytestmark = pytest.mark.usefixtures("one_thread")


def _batches(data: Dataset) -> BatchAt:
    parts = torch.arange(len(data.train)).view(-1, 64)

    def batch_at(step: int) -> Batch:
        part = parts[step % len(parts)]
        return data.inputs(data.train, part), data.train.labels[part]

    return batch_at


def _loss(scores: Tensor, labels: Tensor, step: int) -> Tensor:
    return F.cross_entropy(scores, labels)


@pytest.mark.parametrize("name", ["plain", "views", "rows"])
def test_training_lowers_the_loss_and_ends_in_evaluation(name: str, data: Dataset) -> None:
    """The loss falls for graphs in any memory layout; they end as they began: in evaluation, contiguous."""
    module = captured(name, torch.float32).copy().module
    said: list[tuple[int, int]] = []
    losses = train(module, _batches(data), _loss, Schedule(24, 0.05, 0.0), lambda *done: said.append(done)).losses
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert said == [(i, 24) for i in range(1, 25)]
    assert all(p.is_contiguous() for p in module.parameters())
    flags = [n.args[TRAINING_FLAG[n.target]] for n in module.graph.nodes if n.target in TRAINING_FLAG]
    assert flags
    assert not any(flags)


def test_weight_decay_is_for_kernels(data: Dataset) -> None:
    """Under a loss without gradient kernels shrink, while norms and biases stay."""
    module = captured("plain", torch.float32).copy().module
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    train(module, _batches(data), lambda scores, _, step: scores.sum() * 0, Schedule(3, 0.1, 0.1))
    for name, p in module.named_parameters():
        now, then = p.detach(), before[name]
        assert torch.equal(now, then) if p.ndim == 1 else float(now.norm()) < float(then.norm())


def test_a_loss_that_is_not_finite_names_its_step(data: Dataset) -> None:
    """Training stops at the step whose loss is not a number, and says which."""
    module = captured("plain", torch.float32).copy().module

    def loss_of(scores: Tensor, labels: Tensor, step: int) -> Tensor:
        return F.cross_entropy(scores, labels) * (float("nan") if step == 2 else 1.0)

    with pytest.raises(ToolFailed, match=r"the loss is nan at step 3 of 5 \(batch 2\); lower learning_rate"):
        train(module, _batches(data), loss_of, Schedule(5, 0.1, 0.0), extras=Extras(said_of=lambda step: f"batch {step}"))  # fmt: skip # noqa: E501


def test_the_weights_before_a_bad_batch_stay(data: Dataset, tmp_path: Path) -> None:
    """A batch of NaN leaves weights and statistics as the step before had them, in the graph and in the kept file."""
    good, bad = (captured("plain", torch.float32).copy().module for _ in range(2))
    plain = _batches(data)

    def poisoned(step: int) -> Batch:
        (x,), labels = plain(step)
        return (x * float("nan") if step == 3 else x,), labels

    schedule = Schedule(9, 0.05, 0.0, shape="constant", warm_up=0.0)
    keep = Keep(tmp_path / "kept.pt", "key", every=100)
    with pytest.raises(ToolFailed, match=r"the loss is nan at step 4 of 9.*the weights before it are kept in"):
        train(bad, poisoned, _loss, schedule, extras=Extras(keep=keep))
    train(good, plain, _loss, replace(schedule, steps=3))
    kept = keep.read()
    assert kept is not None
    for name, value in good.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, bad.state_dict()[name])
            assert torch.equal(value, kept["weights"][name])


class _Killed(Exception):
    pass


@pytest.mark.parametrize("schedule", [
    Schedule(12, 0.05, 1e-3),
    Schedule(12, 0.01, 1e-2, optimizer="adamw", shape="cosine", ema=0.8),
], ids=["sgd", "adamw"])  # fmt: skip
def test_a_killed_training_ends_with_the_same_weights(schedule: Schedule, data: Dataset, tmp_path: Path) -> None:
    """Killed at any step and begun again, training ends bit for bit where it would have ended, dropout included."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 4)
    )
    model = capture(net, (torch.zeros(2, 3, 8, 8),))

    def run(keep: Keep | None, killed_at: int | None) -> dict[str, Tensor]:
        def report(done: int, total: int) -> None:
            if done == killed_at:
                raise _Killed

        module = model.copy().module
        torch.manual_seed(7)
        judging = Judging(accuracy_on(data, data.test), 4)
        train(module, _batches(data), _loss, schedule, report, Extras(judging=judging, keep=keep))
        return {name: value.clone() for name, value in module.state_dict().items()}

    wanted = run(None, None)
    keep = Keep(tmp_path / "kept.pt", "key", every=3)
    with pytest.raises(_Killed):
        run(keep, 8)
    assert keep.path.is_file()
    found = run(keep, None)
    assert not keep.path.exists()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


def test_a_state_of_another_training_is_not_used(data: Dataset, tmp_path: Path) -> None:
    """A kept file of another key, or a damaged one, is as if there were none."""
    keep = Keep(tmp_path / "kept.pt", "one")
    keep.write({"weights": {}})
    assert keep.read() is not None
    assert Keep(keep.path, "two").read() is None
    keep.path.write_bytes(keep.path.read_bytes()[:50])
    assert keep.read() is None


def test_the_average_is_what_training_ends_with(data: Dataset) -> None:
    """With `ema` the weights are the running mean of those of every step, by its formula."""
    seen: list[Tensor] = []
    module = captured("plain", torch.float32).copy().module
    name, weight = next((name, p) for name, p in module.named_parameters() if p.ndim == 4)
    first = weight.detach().clone()
    train(
        module, _batches(data), _loss, Schedule(5, 0.05, 0.0, ema=0.5), lambda *_: seen.append(weight.detach().clone())
    )
    kept = first
    for step, value in enumerate(seen, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        kept = decay * kept + (1 - decay) * value
    torch.testing.assert_close(dict(module.named_parameters())[name].detach(), kept)


@pytest.mark.parametrize("shape", ["one-cycle", "cosine", "constant"])
def test_rates_rise_and_then_do_as_they_are_called(shape: Shape, data: Dataset) -> None:
    """The rate peaks at `learning_rate` after the warm-up; a constant one stays, the others fall near zero."""
    rates: list[float] = []
    module = captured("plain", torch.float32).copy().module
    schedule = Schedule(20, 0.01, 0.0, warm_up=0.25, shape=shape, optimizer="adamw")
    train(
        module,
        _batches(data),
        _loss,
        schedule,
        extras=Extras(around=Surroundings(log=lambda _, values: rates.append(values["learning_rate"]))),
    )
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates[0] < 0.5 * max(rates)
    assert rates[:5] == sorted(rates[:5])
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert (rates[-1] == pytest.approx(0.01)) == (shape == "constant")


def test_groups_learn_at_rates_of_their_own(data: Dataset) -> None:
    """A group's rate is the schedule's times its factor; parameters in no group stay."""
    module = captured("plain", torch.float32).copy().module
    named = dict(module.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    fast, slow, *others = [name for name, p in named.items() if p.ndim == 4]
    groups: list[dict[str, Any]] = [{"params": [named[fast]]}, {"params": [named[slow]], "lr_factor": 0.0}]
    train(module, _batches(data), _loss, Schedule(3, 0.05, 0.0), extras=Extras(groups=groups))
    moved = {name for name, p in module.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert moved == {fast}
    assert others or len(named) > 2


def test_long_gradients_are_cut(data: Dataset) -> None:
    """Without momentum a step is never longer than the rate times the longest gradient allowed."""
    module = captured("plain", torch.float32).copy().module
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    schedule = Schedule(1, 1.0, 0.0, momentum=0.0, most_gradient=0.01, shape="constant", warm_up=0.0)
    train(module, _batches(data), lambda *given: 1e3 * _loss(*given), replace(schedule, optimizer="sgd"))
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


# --- augmentation


def _drawn(seed: int, flip: bool = True, shift: int = 2) -> tuple[Tensor, Tensor]:
    pixels = torch.arange(1, 241, dtype=torch.uint8).view(5, 2, 4, 6).repeat(6, 1, 1, 1)
    return pixels, flip_and_shift(pixels, torch.Generator().manual_seed(seed), flip, shift)


def test_every_image_is_moved_or_mirrored_whole() -> None:
    """Each result is its image, mirrored or not, moved within the range; all moves occur and zeros fill the rest."""
    before, after = _drawn(0)
    assert (after.shape, after.dtype) == (before.shape, before.dtype)
    seen = set()
    for one, got in zip(before, after, strict=True):
        padded = F.pad(one, (2, 2, 2, 2))
        for move in ((r, c, m) for r in range(5) for c in range(5) for m in (False, True)):
            view = padded[:, move[0] : move[0] + 4, move[1] : move[1] + 6]
            if torch.equal(got, view.flip(2) if move[2] else view):
                seen.add(move)
                break
        else:
            pytest.fail("no move gives this image")
    assert {m for _, _, m in seen} == {False, True}
    assert len({r for r, _, _ in seen}) > 2


def test_a_seed_decides_the_moves() -> None:
    """The same seed gives the same images, another one others; without flip and shift nothing changes."""
    assert torch.equal(_drawn(4)[1], _drawn(4)[1])
    assert not torch.equal(_drawn(4)[1], _drawn(5)[1])
    before, after = _drawn(4, flip=False, shift=0)
    assert torch.equal(before, after)


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 8.0])
def test_mixup_blends_inputs_and_targets_alike(alpha: float) -> None:
    """Every result is a convex blend of two examples, with the same shares in inputs and targets; the seed decides."""
    targets = F.one_hot(torch.arange(64) % 4).float()
    x = targets.view(64, 4, 1, 1).expand(64, 4, 2, 2)
    blended, shares = mixup(x, targets, torch.Generator().manual_seed(1), alpha)
    torch.testing.assert_close(blended, shares.view(64, 4, 1, 1).expand(64, 4, 2, 2))
    assert 0 <= float(shares.min()) <= float(shares.max()) <= 1
    torch.testing.assert_close(shares.sum(1), torch.ones(64))
    assert int((shares > 0).sum(1).max()) <= 2
    again, other = (mixup(x, targets, torch.Generator().manual_seed(s), alpha)[1] for s in (1, 2))
    assert torch.equal(again, shares)
    assert not torch.equal(other, shares)


def test_cutmix_puts_boxes_in_and_counts_them() -> None:
    """Each result is one image with a box of another, and its target is the share of each, pixel by pixel."""
    targets = F.one_hot(torch.arange(64) % 4).float()
    x = torch.arange(64.0).view(64, 1, 1, 1).expand(64, 2, 9, 7).contiguous()
    mixed, shares = cutmix(x, targets, torch.Generator().manual_seed(1), 1.0)
    partners = set()
    for i, (image, share) in enumerate(zip(mixed, shares, strict=True)):
        other = image[0][image[0] != i]
        assert torch.equal(image[0], image[1])
        assert len(other.unique()) <= 1
        wanted = targets[i] * (1 - len(other) / 63)
        if len(other):
            rows, columns = (image[0] != i).nonzero().T
            assert len(other) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            partners.add(int(other[0]))
            wanted = wanted + targets[int(other[0])] * (len(other) / 63)
        torch.testing.assert_close(share, wanted)
    assert len(partners) > 30


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "last"), [(6, 1, 2, False), (8, 1, 2, True), (6, 3, 2, True), (6, 1, 1, True)]
)
def test_layouts_that_corrupt_memory_are_avoided(channels: int, kernel: int, stride: int, last: bool) -> None:
    """Images go channels last, but for the strided 1 x 1 convolutions of few channels that torch breaks there."""
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 7, kernel, stride))
    module = capture(net, (torch.zeros(2, 3, 8, 8),)).module
    assert lay_out(module) == (torch.channels_last if last else torch.contiguous_format)


def test_narrow_residual_networks_train() -> None:
    """Pruned to a few channels, a network with a strided shortcut survives many steps."""
    model, data = Prune(ratio=0.3, **FINE)(captured("residual", torch.float32)).model, quadrants()
    for _ in range(2):
        train(model.copy().module, _batches(data), _loss, Schedule(40, 0.02, 0.0))
