"""A folded model is the same function with fewer operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shipworthy.compress.folding import fold_batch_norm
from shipworthy.models.graph import aten
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import NETS, captured, images, outputs

# Batch norms left, by hand: behind a concatenation, and behind a convolution that is used twice.
LEFT = {"dense": 1, "shared": 2}


def _norms(model: Model) -> int:
    return sum(node.target == aten.batch_norm.default for node in model.module.graph.nodes)


@pytest.mark.parametrize("name", NETS)
def test_folding_keeps_the_function(name: str) -> None:
    """Folded and unfolded agree to 1e-10 in float64, and only norms that follow a convolution of their own go."""
    model, before = captured(name), _norms(captured(name))
    folded = fold_batch_norm(model)
    for got, want in zip(outputs(folded, images(3)), outputs(model, images(3)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert _norms(folded) == LEFT.get(name, 0)
    assert _norms(model) == before


class _Both(nn.Module):
    """The convolution's result is used with and without its norm; the norm has no weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)
        self.last, self.plain = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(batch, 4, height, width)`."""
        y = self.conv(x)
        scores: Tensor = self.plain(self.last(y + self.norm(y)))
        return scores


def test_a_result_with_other_users_stays() -> None:
    """A convolution whose result is used elsewhere keeps its norm; a norm without weights is folded all the same."""
    net = _Both().double()
    with torch.no_grad():
        net(images(8))
    model = capture(net, (images(2),))
    folded = fold_batch_norm(model)
    assert (_norms(model), _norms(folded)) == (2, 1)
    torch.testing.assert_close(outputs(folded, images(3))[0], outputs(model, images(3))[0], rtol=1e-10, atol=1e-10)
