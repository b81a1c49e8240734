"""What weights alone decide is computed before export, whoever reads it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shipworthy.export.constants import fold_constants
from shipworthy.models.model import capture


class _Chained(nn.Module):
    """A weight that inputs meet twice: scaled, and shifted after that."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return `(batch, 8)`."""
        scaled = self.weight * 2
        return x @ scaled + x @ (scaled + 1)


def test_a_constant_that_another_is_made_of_is_stored_too() -> None:
    """Both are weights of the folded model, which computes the same; the model itself is left as it was."""
    model, x = capture(_Chained(), (torch.rand(2, 8),)), torch.rand(3, 8)
    code = model.module.code
    folded = fold_constants(model)
    calls = [str(node.target) for node in folded.module.graph.nodes if node.op == "call_function"]
    assert sorted(calls) == ["aten.add.Tensor", "aten.matmul.default", "aten.matmul.default"]
    torch.testing.assert_close(folded.module(x), model.module(x), rtol=0, atol=0)
    assert model.module.code == code
