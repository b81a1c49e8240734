"""The training loop trains a graph and nothing else, and says when it fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipworthy.compress.augment import flip_and_shift, mixup
from shipworthy.compress.prune import Prune
from shipworthy.compress.training import Batch, Schedule, lay_out, train
from shipworthy.models.data import Dataset
from shipworthy.models.errors import ToolFailed
from shipworthy.models.graph import TRAINING_FLAG
from shipworthy.models.model import capture
from shipworthy.tests.small_nets import FINE, captured, quadrants

pytestmark = pytest.mark.usefixtures("one_thread")


def _batches(data: Dataset) -> Iterator[Batch]:
    while True:
        for part in torch.arange(len(data.train)).view(-1, 64):
            yield data.batch(data.train, part)


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels)


@pytest.mark.parametrize("name", ["plain", "views", "rows"])
def test_training_lowers_the_loss_and_ends_in_evaluation(name: str, data: Dataset) -> None:
    """The loss falls for graphs in any memory layout; they end as they began: in evaluation, contiguous."""
    module = captured(name, torch.float32).copy().module
    said: list[tuple[int, int]] = []
    losses = train(module, _batches(data), _loss, Schedule(24, 0.05, 0.0), lambda *done: said.append(done))
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
    train(module, _batches(data), lambda scores, _: scores.sum() * 0, Schedule(3, 0.1, 0.1))
    for name, p in module.named_parameters():
        now, then = p.detach(), before[name]
        assert torch.equal(now, then) if p.ndim == 1 else float(now.norm()) < float(then.norm())


def test_a_loss_that_is_not_finite_names_its_step(data: Dataset) -> None:
    """Training stops at the step whose loss is not a number, and says which."""
    module, seen = captured("plain", torch.float32).copy().module, iter(range(9))
    with pytest.raises(ToolFailed, match="the loss is nan at step 3 of 5; lower learning_rate"):
        train(module, _batches(data), lambda scores, _: scores.sum() * (float("nan") if next(seen) == 2 else 0.0), Schedule(5, 0.1, 0.0))  # fmt: skip # noqa: E501


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
