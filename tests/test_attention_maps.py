"""Scores of attention inside a graph are what the eager module computes, fused or not, and leave no trace."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipworthy.compress.attention_maps import attention_map_loss
from shipworthy.compress.features import shown
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture

HEADS, WIDTH = 2, 8


class Attention(nn.Module):
    """Attention in two heads; `seen` keeps the scores before softmax, masked ones at a large negative number."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map `(batch, tokens, width)` and a boolean mask `(batch, tokens)` to the same shape."""
        q, k, v = (one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in self.mix(x).chunk(3, -1))
        there = mask[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        if self.fused:
            found = F.scaled_dot_product_attention(q, k, v, there)
        else:
            scores = torch.where(there, q @ k.transpose(-1, -2) / math.sqrt(WIDTH / HEADS), -1e9)
            if not torch.compiler.is_compiling():
                self.seen = scores.detach()
            found = scores.softmax(-1) @ v
        return found.transpose(1, 2).flatten(2)


class Net(nn.Module):
    """Two layers of attention and a head."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.first, self.second = Attention(fused), Attention(fused)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return scores `(batch, 3)`."""
        x = x + self.first(x, mask)
        x = x + self.second(x, mask)
        found: Tensor = self.head(x.mean(1))
        return found


def inputs(count: int) -> tuple[Tensor, Tensor]:
    """Return tokens and a mask that hides two of the first example's."""
    generator = torch.Generator().manual_seed(count)
    mask = torch.ones(count, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return torch.randn(count, 5, WIDTH, generator=generator), mask


def nets() -> tuple[Net, Model, Model]:
    """The same weights: eager, captured, and captured with the fused operator."""
    torch.manual_seed(0)
    eager, fused = Net(False).eval(), Net(True).eval()
    fused.load_state_dict(eager.state_dict())
    return eager, capture(eager, inputs(2)), capture(fused, inputs(2))


def masked(scores: Tensor) -> Tensor:
    """Return scores with zeros where nothing is seen."""
    return torch.where(scores <= -1e2, 0.0, scores)


def test_scores_are_what_the_module_computes() -> None:
    """Shown scores equal the eager module's where they are seen, fused or not; the graph is as before."""
    eager, *models = nets()
    x = inputs(3)
    with torch.no_grad():
        wanted = eager(*x)
    for model in models:
        code = model.module.code
        with torch.no_grad(), shown(model.module, ["first"], ["second", "first"]):
            scores, (feature, second, first) = model.module(*x)
        torch.testing.assert_close(scores, wanted)
        assert feature.shape == (3, 5, WIDTH)
        for found, part in ((second, eager.second), (first, eager.first)):
            assert part.seen is not None
            torch.testing.assert_close(masked(found), masked(part.seen))
        assert model.module.code == code


def test_the_loss_is_the_mean_squared_difference_of_seen_scores() -> None:
    """It is zero against itself, counts masked places as zero, and compares means where heads are gone."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    a[:, :, :, 4] = b[:, :, :, 4] = -1e9
    weights = {"one": 3.0}
    assert attention_map_loss([a], [a], weights) == 0
    clear = (a[..., :4] - b[..., :4]).square().sum() / a.numel()
    torch.testing.assert_close(attention_map_loss([a], [b], weights), 3 * clear)
    few = a[:, :2]
    wanted = (masked(few).mean(1) - masked(b).mean(1)).square().mean()
    torch.testing.assert_close(attention_map_loss([few], [b], {"one": 1.0}), wanted)
    with pytest.raises(BadInput, match="does not fit"):
        attention_map_loss([a], [b[..., :3, :3]], weights)


def test_gradients_pass_through_them() -> None:
    """Training on scores moves the weights that make them, fused or not."""
    _, *models = nets()
    for model in models:
        with shown(model.module, [], ["first"]):
            _, (scores,) = model.module(*inputs(4))
            masked(scores).square().mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradient = dict(model.module.named_parameters())["first.mix.weight"].grad
        assert gradient is not None
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("path", "said"), [("head", "no attention in 'head'; there is one in"), ("", "no attention")])
def test_a_wrong_path_is_said(path: str, said: str) -> None:
    """Paths without attention are refused with those that have one."""
    _, model, _ = nets()
    with pytest.raises(BadInput, match=said), shown(model.module, [], [path or "nowhere"]):
        pass
