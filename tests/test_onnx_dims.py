"""Dimensions that may vary are named by the user, and the names reach the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from shipworthy.export.onnx_file import to_onnx
from shipworthy.export.session import OnnxSession
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture, load_pt2, save_pt2


class _Encoder(nn.Module):
    """Tokens and a mask of any length to a vector for each token, all neighbours, and one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(batch, length, 3)`, `(batch, 2 * length, 6)` and `(batch, 3)`."""
        x = self.table(input_ids) * attention_mask.unsqueeze(-1)
        return self.fc(x), torch.cat([x, x], 1), self.fc(x.mean(1))


LENGTH = {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}


def _inputs(batch: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 11, (batch, length)), torch.ones(batch, length)


def _encoder(**options: Any) -> Model:
    torch.manual_seed(0)
    return capture(_Encoder(), _inputs(2, 5), dynamic=LENGTH, **options)


def test_named_dimensions_reach_the_file(tmp_path: Path) -> None:
    """One file takes any batch and length; the names, and terms of them, stand at its inputs and outputs."""
    model = _encoder()
    file = to_onnx(model, tmp_path / "m.onnx")
    graph = onnx.load(file.path).graph
    shapes = [
        tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.output)
    ]
    pair = ("batch", "length")
    assert shapes == [pair, pair, (*pair, 3), ("batch", "2*length", 6), ("batch", 3)]
    assert [spec.shape for spec in (*model.inputs, *model.outputs)] == shapes
    for batch, length in ((1, 1), (3, 9)):
        given = _inputs(batch, length)
        feeds = {spec.name: x.numpy() for spec, x in zip(file.inputs, given, strict=True)}
        for found, wanted in zip(OnnxSession(file).run(feeds), model.module(*given), strict=True):
            np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-6)


def test_named_dimensions_are_kept_on_disk(tmp_path: Path) -> None:
    """A model saved and read again has the same names, also at a fixed batch, and exports to the same shapes."""
    for dynamic_batch in (True, False):
        model = _encoder(dynamic_batch=dynamic_batch)
        save_pt2(model, tmp_path / "m.pt2")
        back = load_pt2(tmp_path / "m.pt2")
        assert (back.inputs, back.outputs, back.dynamic_batch) == (model.inputs, model.outputs, dynamic_batch)
        assert back.inputs[0].shape == ("batch" if dynamic_batch else 2, "length")
        assert back.module(*_inputs(2, 8))[0].shape == (2, 8, 3)


def test_open_dimensions_of_other_files_are_kept(tmp_path: Path) -> None:
    """A `.pt2` file of torch's own with an open length keeps it, under a name made of its input's."""
    shapes = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in LENGTH}
    program = torch.export.export(_Encoder().eval(), _inputs(2, 5), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "m.pt2")
    back = load_pt2(tmp_path / "m.pt2")
    assert [spec.shape for spec in back.inputs] == [("batch", "input_ids_1")] * 2
    assert back.outputs[0].shape == ("batch", "input_ids_1", 3)


class _Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Return `(batch, 5)`: its code knows one length only."""
        return x + torch.arange(5.0)


@pytest.mark.parametrize(
    ("module", "inputs", "dynamic", "message"),
    [
        (_Encoder(), _inputs(2, 5), {"inputids": {1: "n"}}, "no input 'inputids'; the nearest .* is 'input_ids'"),
        (_Encoder(), _inputs(2, 5), {"input_ids": {2: "n"}}, "'input_ids' has no dimension 2; it has 2, counted from"),
        (_Encoder(), _inputs(2, 5), {"input_ids": {0: "n"}}, "dimension 0 of 'input_ids' is 'batch' already"),
        (_Encoder(), _inputs(2, 5), {"input_ids": {1: "batch"}}, "'batch' cannot name dimension 1"),
        (_Fixed(), (torch.ones(2, 5),), {"x": {1: "n"}}, r"fixes dimension 1 \(n\) of 'x' at 5"),
    ],
)
def test_dimensions_that_cannot_vary_are_refused(module: Any, inputs: Any, dynamic: Any, message: str) -> None:
    """An unknown input or dimension, the batch named anew, and a length that the code fixes are errors."""
    with pytest.raises(BadInput, match=message):
        capture(module, inputs, dynamic=dynamic)


def test_one_name_is_one_size() -> None:
    """Examples that give one name two sizes are an error that says both."""
    given = (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 6))
    with pytest.raises(BadInput, match="'length' is 5 in 'input_ids' and 6 in 'attention_mask'"):
        capture(_Encoder(), given, dynamic=LENGTH)
