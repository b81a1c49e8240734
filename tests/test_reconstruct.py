"""After pruning, the weights that are left give again what the layers gave before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shipworthy.compress import layers, least_squares
from shipworthy.compress.channels import find_channels
from shipworthy.compress.prune import Prune
from shipworthy.compress.reconstruct import reconstruct
from shipworthy.compress.rewrite import remove_channels
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import FINE, NETS, captured, images, outputs, quadrants


def cut(model: Model, share: float = 0.4) -> tuple[Model, Any, set[int]]:
    """Remove the last channels of every group; return the pruned model, the analysis and what went."""
    found = find_channels(model)
    free = [g for g in found.groups if g.frozen is None]
    gone = {root for g in free for root in g.channels[len(g.channels) - int(share * len(g.channels)) :]}
    return remove_channels(model, found, gone), found, gone


def distance(left: Model, right: Model, x: Tensor) -> float:
    """Return the outputs' squared difference, of the left one's variance."""
    pairs = zip(outputs(left, x), outputs(right, x), strict=True)
    return sum(float((a - b).square().mean() / a.var(0).mean()) for a, b in pairs)


def weights(model: Model) -> dict[str, Tensor]:
    """Return a copy of all weights and statistics."""
    return {name: value.clone() for name, value in model.module.state_dict().items()}


@pytest.mark.parametrize("name", [n for n in NETS if n != "unknown"])
def test_outputs_come_nearer_to_the_original(name: str) -> None:
    """On images that were not used, the refitted model is nearer to the original than the pruned one was."""
    model = captured(name)
    pruned, found, gone = cut(model)
    refitted = pruned.copy()
    assert reconstruct(model, refitted, images(256, seed=1), found, gone)
    assert distance(model, refitted, images(256)) < 0.8 * distance(model, pruned, images(256))
    assert (refitted.inputs, refitted.outputs) == (model.inputs, model.outputs)
    same = [a.shape == b.shape for a, b in zip(weights(pruned).values(), weights(refitted).values(), strict=True)]
    assert all(same)


class Twins(nn.Module):
    """Every channel between the layers exists twice, so that half of them say all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        state = self.state_dict()
        for name in ("a.weight", "a.bias", "norm.weight", "norm.bias", "b.weight", "b.bias"):
            state[name][4:] = state[name][:4]

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        scores: Tensor = self.fc(torch.relu(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))
        return scores


def test_what_is_said_twice_can_be_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the channels left determine those removed, the original's outputs come back; a stiff fit comes close."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = capture(Twins().double().eval(), (torch.zeros(2, 3, 8, 8, dtype=torch.float64),))
    pruned, found, gone = cut(model, 0.5)
    assert distance(model, pruned, images(64)) > 0.3
    stiff, free = pruned.copy(), pruned.copy()
    reconstruct(model, stiff, images(256, seed=1), found, gone)
    assert distance(model, stiff, images(64)) < 1e-3
    monkeypatch.setattr(least_squares, "RIDGE", 1e-12)
    assert reconstruct(model, free, images(256, seed=1), found, gone) == ["b.weight", "fc.weight"]
    assert distance(model, free, images(64)) < 1e-18


def sums_of(a: Tensor, b: Tensor) -> least_squares.Sums:
    """Add up rows as if each were an example with one position, a few at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "CHUNK_BYTES", 3 * 4 * a.shape[1])
        return layers.patch_sums(lambda x: x.unsqueeze(1), a, b.unsqueeze(1))


def test_the_fit_is_ridge_regression() -> None:
    """Weights and constant minimise the squared error plus the ridge's: no small step makes it less."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, k, generator=draw, dtype=torch.float64) + 1 for k in (6, 3))
    sums = sums_of(a, b)  # the last part is shorter
    for offset in (True, False):
        change = least_squares.fit(sums, offset)
        centred = a - a.mean(0) if offset else a
        ridge = least_squares.RIDGE * centred.square().sum(0).mean()

        def loss(weight: Tensor, bias: Tensor, ridge: Tensor = ridge) -> Tensor:
            return (b - a @ weight - bias).square().sum() + ridge * weight.square().sum()

        best = loss(change.weight, change.bias)
        for _ in range(20):
            step, nudge = (torch.randn(size, generator=draw, dtype=torch.float64) * 1e-3 for size in ((6, 3), (3,)))
            assert loss(change.weight + step, change.bias + nudge * offset) > best


def test_a_fit_must_help_elsewhere() -> None:
    """Whether a change helps is the plain comparison of squared errors, over other rows than those of the fit."""
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.randn(12, k, generator=draw, dtype=torch.float64) for k in (10, 2))
    change = least_squares.fit(sums_of(a[:4], b[:4]), offset=True)

    def error(part: slice, scale: float) -> float:
        return float((b[part] - scale * (a[part] @ change.weight + change.bias)).square().sum())

    for part in (slice(0, 4), slice(4, 12)):
        helps = change.helps(sums_of(a[part], b[part]))
        assert helps == (error(part, 1.0) < error(part, 0.0))
    assert error(slice(0, 4), 1.0) < error(slice(0, 4), 0.0)
    assert error(slice(4, 12), 1.0) > error(slice(4, 12), 0.0), "the example is one of overfitting"


def test_noise_is_not_learnt() -> None:
    """From a handful of examples nothing is taken that is not confirmed on others."""
    model = captured("plain")
    pruned, found, gone = cut(model)
    before = weights(pruned)
    kept = reconstruct(model, pruned, images(4), found, gone)
    left = {name for name, value in weights(pruned).items() if not torch.equal(value, before[name])}
    assert {name for name in left if name.endswith("weight")} == set(kept)


def test_shared_and_grouped_weights_stay() -> None:
    """A kernel that is used twice, or works on groups of channels, is not refitted; norms and the rest are."""
    for name, stays in (("shared", ["both.weight"]), ("grouped", ["b.0.weight"]), ("depthwise", ["deep.0.weight"])):
        model = captured(name)
        pruned, found, gone = cut(model)
        before = weights(pruned)
        assert not set(stays) & set(reconstruct(model, pruned, images(64), found, gone))
        assert all(torch.equal(before[one], weights(pruned)[one]) for one in stays)


def test_very_wide_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer whose fit would take too much memory is left out; the others are refitted."""
    model = captured("plain")
    pruned, found, gone = cut(model)
    monkeypatch.setattr(layers, "WIDEST", 20)  # `second` has 5 x 9 weights for an output, `fc` 16, `head` 6
    assert reconstruct(model, pruned, images(64), found, gone) == ["fc.weight", "head.weight"]


def test_norms_follow_their_inputs() -> None:
    """A batch norm behind an input that did not change keeps its statistics; behind another one it standardises."""
    model = captured("residual")
    pruned, found, gone = cut(model)
    before = weights(pruned)
    reconstruct(model, pruned, images(256, seed=1), found, gone)
    after = weights(pruned)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(after[f"stem.1.{name}"], before[f"stem.1.{name}"], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(after[f"b2.1.{name}"], before[f"b2.1.{name}"], rtol=1e-3)


def test_few_examples_are_used_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of examples follows the widest place of the model; a fixed batch is taken as it is."""
    model = captured("residual")  # at its widest: two tensors of 8 x 8 x 8 beside one of its inputs
    monkeypatch.setattr(layers, "MEMORY_BYTES", 100 * 8 * 2 * 8 * 64)
    assert layers.affordable(model, 1000) in range(50, 101)
    assert layers.affordable(model, 10) == 10
    fixed = capture(nn.Conv2d(3, 8, 1), (torch.zeros(2, 3, 4, 4),), dynamic_batch=False)
    assert layers.affordable(fixed, 1000) == 2


# --- as part of the pass


def test_the_pass_refits_where_there_is_data() -> None:
    """With data it is the default; without, and with 0, weights are those of the original. Two runs are equal."""
    model, data = captured("residual", torch.float32), quadrants()
    plain = Prune(ratio=0.4, **FINE)(model)
    off = Prune(ratio=0.4, reconstruct=0, **FINE)(model, data=data)
    on, again = (Prune(ratio=0.4, **FINE)(model, data=data) for _ in range(2))
    assert "layers_refitted" not in plain.facts
    assert "layers_refitted" not in off.facts
    assert on.facts["layers_refitted"] == 6, "all but the stem, whose inputs stayed"
    same = [torch.equal(a, b) for a, b in zip(weights(plain.model).values(), weights(off.model).values(), strict=True)]
    assert all(same)
    assert all(
        torch.equal(a, b) for a, b in zip(weights(on.model).values(), weights(again.model).values(), strict=True)
    )
    x, _ = data.batch(data.test, torch.arange(len(data.test)))
    assert distance(model, on.model, x) < 0.5 * distance(model, plain.model, x)


def test_data_of_another_shape_are_refused() -> None:
    """The message says what the model takes and what the data are."""
    model = capture(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 3)), (torch.zeros(2, 1, 8, 8),))
    with pytest.raises(BadInput, match=r"the model takes \[\(1, 8, 8\)\], the data 'quadrants' \(3, 8, 8\)"):
        Prune(**FINE)(model, data=quadrants())
