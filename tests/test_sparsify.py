"""A sparse model is the original with its smallest weights at zero."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from shipworthy.compress.sparsify import Sparsify
from shipworthy.compress.sparsity import is_two_of_four, kernels, smallest, smallest_of_four, sparse_model
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import NETS, captured, images, outputs

TWO_OF_FOUR = Sparsify(pattern="2:4")
LEFT_BY_TWO_OF_FOUR = {"plain": 2, "depthwise": 3, "two-heads": 1, "residual": 3}
"""Some nets, and how many of their layers have inputs that are no multiple of four."""


def sparse_weights(model: Model) -> dict[str, Tensor]:
    """Return the weights that are marked as sparse."""
    assert model.sparsity is not None
    return {name: model.module.state_dict()[name].clone() for name in model.sparsity.patterns}


def zeros(model: Model) -> dict[str, Tensor]:
    """Return where the zeros of those weights are."""
    return {name: value == 0 for name, value in sparse_weights(model).items()}


# --- which weights


@given(st.lists(st.floats(0, 9, width=16), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_the_smallest_are_found(numbers: list[float], ratio: float) -> None:
    """Exactly round(ratio n) are found, and none of the others is smaller."""
    sizes = torch.tensor(numbers)
    found = smallest(sizes, ratio)
    assert int(found.sum()) == round(ratio * len(numbers))
    assert not found.any() or found.all() or float(sizes[found].max()) <= float(sizes[~found].min())


@given(st.data(), st.integers(0, 3))
def test_two_of_every_four_are_found(data: st.DataObject, along: int) -> None:
    """Along any dimension, in every four neighbours the two smallest are found and no others."""
    others = [data.draw(st.integers(1, 3)) for _ in range(3)]
    shape = (*others[:along], 4 * data.draw(st.integers(1, 3)), *others[along:])
    sizes = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))).float()
    found = smallest_of_four(sizes, along)
    rows, marks = (np.moveaxis(x.numpy(), along, -1).reshape(-1, 4) for x in (sizes, found))
    for row, mark in zip(rows, marks, strict=True):
        assert mark.sum() == 2
        assert row[mark].max() <= row[~mark].min()
    assert is_two_of_four(sizes.masked_fill(found, 0), along)
    assert not is_two_of_four(sizes + 1, along)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scope", ["layer", "global"])
@settings(max_examples=3, derandomize=True, deadline=None)
@given(ratio=st.floats(0.2, 0.95))
def test_magnitude(name: str, scope: Any, ratio: float) -> None:
    """The law: round(ratio n) zeros where the ratio holds, the largest kept as they are, and the input as it is."""
    model = captured(name)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    made, _ = sparse_model(model, Sparsify(ratio=ratio, scope=scope))
    after = made.module.state_dict()
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())
    assert model.sparsity is None
    names = [kernel.weight for kernel in kernels(model)]
    assert all(torch.equal(before[key], after[key]) for key in before if key not in names)
    old, new = ([state[key].flatten() for key in names] for state in (before, after))
    if scope == "global":
        old, new = [torch.cat(old)], [torch.cat(new)]
    for then, now in zip(old, new, strict=True):
        gone = now == 0
        assert int(gone.sum()) == round(ratio * len(then))
        assert torch.equal(now[~gone], then[~gone])
        assert not gone.any() or gone.all() or float(then[gone].abs().max()) <= float(then[~gone].abs().min())


@pytest.mark.parametrize("name", [name for name in NETS if name != "dense"])
def test_two_of_four(name: str) -> None:
    """The law: in every four neighbours along the input, written out, two are zero and those kept are the largest."""
    model = captured(name)
    result = TWO_OF_FOUR(model)
    before, after = model.module.state_dict(), result.model.module.state_dict()
    assert result.model.sparsity is not None
    marked = result.model.sparsity.patterns
    assert set(marked.values()) == {"2:4"}
    for kernel in kernels(model):
        old, new = before[kernel.weight], after[kernel.weight]
        if kernel.weight not in marked:
            assert torch.equal(old, new)
            assert result.facts["layers_left"][kernel.layer] == f"input width {old.shape[1]}, no multiple of 4"
            continue
        for start in range(0, old.shape[1], 4):
            ours, theirs = new[:, start : start + 4], old[:, start : start + 4]
            assert ((ours == 0).sum(1) == 2).all()
            assert torch.equal(ours[ours != 0], theirs[ours != 0])
            lost = torch.where(ours == 0, theirs.abs(), 0).amax(1)
            assert (lost <= torch.where(ours == 0, torch.inf, theirs.abs()).amin(1)).all()
    assert len(result.facts["layers_left"]) == LEFT_BY_TWO_OF_FOUR.get(name, len(result.facts["layers_left"]))
    assert result.facts["sparsity_by_pattern"] == {"2:4": 0.5}


class Products(nn.Module):
    """A product with a constant, one with an addition, attention's joint weight, and one weight read both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.bias = (nn.Parameter(torch.randn(*s)) for s in ((8, 12), (12, 8), (8,)))
        self.both, self.zero = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.zeros_(self.zero.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens' means `(batch, 8)` of tokens `(batch, n, 8)`."""
        x = self.both(self.attention(x, x, x)[0])
        x = torch.relu(x @ self.one).mean(1)
        return self.zero(torch.addmm(self.bias, x, self.two) @ self.both.weight)  # type: ignore[no-any-return]  # torch's


def test_products_with_constants_are_layers() -> None:
    """Groups run along the summed dimension; a weight summed along both, and one of zeros, is left with its reason."""
    model = capture(Products(), (torch.randn(2, 5, 8),))
    result = TWO_OF_FOUR(model)
    assert result.facts["layers_left"] == {"both": "read along two dimensions", "zero": "all zero already"}
    found = sparse_weights(result.model)
    assert is_two_of_four(found.pop("one"), 0)
    assert is_two_of_four(found.pop("two"), 0)
    assert sorted(found) == ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert all(is_two_of_four(value, 1) for value in found.values())


# --- settings


def test_layers_are_left_by_name() -> None:
    """Patterns leave layers; one that matches none is refused."""
    result = Sparsify(ignore=("f*",))(captured("plain"))
    assert result.facts["layers_left"] == {"first.0": "ignored", "fc": "ignored"}
    assert list(result.facts["sparsity_by_layer"]) == ["second", "head"]
    with pytest.raises(BadInput, match=r"sparsify: the pattern 'cf' matches no layer; there are first\.0, second, fc"):
        Sparsify(ignore=("cf",))(captured("plain"))


@pytest.mark.parametrize(
    ("net", "how", "message"),
    [
        (NETS["dense"](), {"pattern": "2:4"}, r"\(input width 3, .*width 9, .*width 14, .*fc \(input width 18"),
        (nn.Conv2d(3, 8, 3), {"pattern": "2:4"}, r"nothing to sparsify: weight \(input width 3, no multiple of 4\)"),
        (nn.Conv2d(3, 8, 3), {"ratio": 1e-3}, r"nothing to sparsify: weight \(too few weights for this ratio\)"),
        (nn.BatchNorm2d(3), {"scope": "global"}, "nothing to sparsify: the model has no convolution and no linear"),
    ],
)
def test_nothing_to_sparsify_is_refused(net: nn.Module, how: dict[str, Any], message: str) -> None:
    """A pass that would do nothing says why."""
    with pytest.raises(BadInput, match=message):
        Sparsify(**how)(capture(net, (torch.zeros(2, 3, 8, 8),)))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"ratio": 0.0}, {"ratio": 1.0}, {"pattern": "1:4"}, {"scope": "all"}, {"seed": 1}),
        *({"pattern": "2:4", "ratio": 0.7}, {"pattern": "2:4", "scope": "global"}),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """A pass cannot be made with settings that mean nothing."""
    with pytest.raises(ValidationError):
        Sparsify(**wrong)


def test_facts_tell_what_sizes_become() -> None:
    """Bytes stay; what gzip makes of them shrinks, by about what it makes of a file of them."""
    model = captured("residual", torch.float32)
    result = Sparsify(ratio=0.8)(model)
    facts, after = result.facts, result.model.module.state_dict()
    values = [after[kernel.weight] for kernel in kernels(model)]
    assert facts["weights"] == sum(value.numel() for value in values)
    assert facts["zeros"] == sum(int((value == 0).sum()) for value in values)
    assert facts["sparsity"] == facts["sparsity_by_pattern"]["unstructured"] == pytest.approx(0.8, abs=0.01)
    assert len(facts["sparsity_by_layer"]) == len(values)
    assert facts["weight_bytes_before"] == facts["weight_bytes_after"]
    assert facts["macs_before"] == facts["macs_after"]
    assert facts["compressed_bytes_after"] < 0.5 * facts["compressed_bytes_before"]
    plain = b"".join(value.numpy().tobytes() for value in model.module.state_dict().values())
    assert facts["compressed_bytes_before"] == pytest.approx(len(gzip.compress(plain, 6)), abs=64)


def test_a_sparse_model_is_what_its_facts_say() -> None:
    """Outputs are the original's with those weights at zero: no other tensor and no operator has changed."""
    model = captured("squeeze-excite")
    result = Sparsify(ratio=0.5)(model)
    masked = model.copy()
    with torch.no_grad():
        for name, gone in zeros(result.model).items():
            masked.module.get_parameter(name).masked_fill_(gone, 0)
    for a, b in zip(outputs(result.model, images(3)), outputs(masked, images(3)), strict=True):
        assert torch.equal(a, b)
