"""A trimmed model is the original with the blocks' branches at zero, in float64, whatever the form of the sum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shipworthy.compress.blocks import find_blocks
from shipworthy.compress.prune import Prune
from shipworthy.compress.trim import Trim
from shipworthy.export.onnx_file import to_onnx
from shipworthy.export.parity import parity
from shipworthy.models.errors import BadInput
from shipworthy.models.graph import set_training
from shipworthy.models.model import Model, capture, load_pt2, save_pt2
from shipworthy.models.sources import load
from shipworthy.tests.small_nets import FINE, Branch, captured, images, outputs, quadrants

LAST = {
    "a": ("a.body.1",),
    "b": ("b.body.1",),
    "c": ("c.body.1",),
    "mixer": ("mixer.one", "mixer.out"),
}
"""By block, the layers whose results its sums add."""


def silenced(model: Model, *blocks: str) -> Model:
    """Return the model with branches that give zero."""
    made = model.copy()
    state = made.module.state_dict()
    for block in blocks:
        for layer in LAST[block]:
            state[f"{layer}.weight"].zero_()
            state[f"{layer}.bias"].zero_()
    return made


def assert_same(left: Model, right: Model) -> None:
    """Compare outputs for several batches to 1e-12."""
    for count in (2, 5):
        for a, b in zip(outputs(left, images(count)), outputs(right, images(count)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "blocks", [("a",), ("b",), ("c",), ("mixer",), ("a", "b"), ("b", "c"), ("a", "b", "c", "mixer")]
)
def test_removing_is_zeroing_the_branch(blocks: tuple[str, ...], tmp_path: Path) -> None:
    """The law, for every form of the sum, before and after a reload; nothing of the blocks is left, the input stays."""
    model = captured("stack")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    result = Trim(blocks)(model)
    assert_same(result.model, silenced(model, *blocks))
    save_pt2(result.model, tmp_path / "trimmed.pt2")
    assert_same(load_pt2(tmp_path / "trimmed.pt2"), silenced(model, *blocks))
    left = result.model.module.state_dict()
    assert not [name for name in left if name.startswith(tuple(f"{block}." for block in blocks))]
    assert result.facts["blocks_removed"] == list(blocks)
    assert result.facts["params_after"] == sum(p.numel() for p in result.model.module.parameters())
    assert result.facts["macs_after"] < result.facts["macs_before"]
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    result.model.module.graph.lint()


class Masked(nn.Module):
    """A block and a layer behind it, both with a mask that statements fill in place, as for shifted windows."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.behind = Branch("x + y"), nn.Conv2d(3, 8, 1)

    def mask(self, x: Tensor) -> Tensor:
        """Return zeros with a corner of ones."""
        mask = x.new_zeros(x.shape[-2:])
        mask[:3, :3] = 1
        return mask

    def forward(self, x: Tensor) -> Tensor:
        """Return maps `(batch, 8, 8, 8)`."""
        x = self.behind(x)
        x = self.block(x * self.mask(x))
        return x + self.mask(x)


def test_what_is_filled_in_place_stays() -> None:
    """A statement that changes a tensor has no result that is used; it is no dead code."""
    net = Masked().double().eval()
    model = capture(net, (images(2),))
    trimmed = Trim(("block",))(model).model
    net.block = nn.Identity()  # type: ignore[assignment]  # stands for the block without its branch
    with torch.no_grad():
        assert torch.equal(outputs(trimmed, images(3))[0], net(images(3)))


def test_a_relu_of_a_relu_is_left_out() -> None:
    """Without the branch, the activation behind the sum works on what is rectified already; it goes too."""

    def relus(model: Model) -> int:
        return sum("relu" in str(node.target) for node in model.module.graph.nodes)

    model = captured("residual")
    assert relus(Trim(("c",))(captured("stack")).model) == relus(captured("stack")) - 1
    with pytest.raises(BadInput):
        Trim(("b2",))(model)  # a projection is no shortcut that keeps its input


def test_named_blocks() -> None:
    """Patterns choose by module path; sums of a projection, of constants or of inputs alone are no blocks."""
    reference = load("reference:fashion-resnet20")
    found = [block.path for block in find_blocks(reference)]
    assert found == [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2) if i == 1 or j > 0]
    assert Trim(("layer[23].2", "layer1.1"))(reference).facts["blocks_removed"] == ["layer1.1", "layer2.2", "layer3.2"]
    assert [len(block.sums) for block in find_blocks(captured("stack"))] == [1, 1, 1, 1, 2]
    assert [block.path for block in find_blocks(captured("depthwise"))] == ["add"]
    assert not find_blocks(captured("scaled"))


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("stack", "d", r"trim: the pattern 'd' matches no residual block that keeps its input's shape; there are a, b"),
        ("plain", "a", r"trim: the pattern 'a' matches no residual block .*; the model has none"),
    ],
)
def test_a_pattern_without_a_block_is_refused(name: str, pattern: str, message: str) -> None:
    """A misspelt path would silently do nothing."""
    with pytest.raises(BadInput, match=message):
        Trim((pattern,))(captured(name))


def test_layers_left_make_good_what_is_gone() -> None:
    """With data the rest is refitted: nearer to the original than the branch at zero, on other images."""
    model, data = captured("stack", torch.float32), quadrants()
    plain, refitted = Trim(("b",), reconstruct=0)(model, data=data), Trim(("b",))(model, data=data)
    assert "layers_refitted" not in plain.facts
    assert refitted.facts["layers_refitted"] >= 1
    x, _ = data.batch(data.test, torch.arange(len(data.test)))

    def error(made: Model) -> float:
        (a,), (b,) = outputs(model, x), outputs(made, x)
        return float((a - b).square().mean())

    assert error(refitted.model) < 0.5 * error(plain.model)


def test_a_branch_of_zeros_makes_nothing_good() -> None:
    """Norms that scale by zero, as fresh networks have them, are not asked to: nothing becomes infinite."""
    model, data = silenced(captured("stack", torch.float32), "b", "c"), quadrants()
    made = Trim(("a",))(model, data=data).model
    assert all(value.isfinite().all() for value in made.module.state_dict().values())
    x, _ = data.batch(data.test, torch.arange(8))
    assert all(value.isfinite().all() for value in outputs(made, x))


def test_what_follows_takes_the_trimmed_model(tmp_path: Path) -> None:
    """It is pruned, trained for a step and exported like any other."""
    data = quadrants()
    trimmed = Trim(("add",))(captured("depthwise", torch.float32), data=data).model
    made = Prune(ratio=0.5, **FINE)(trimmed, data=data).model
    onnx = to_onnx(made, tmp_path / "trimmed.onnx")
    assert parity(made, onnx).passed
    set_training(made.module, True)
    loss: Tensor = made.module(images(4, dtype=torch.float32)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert all(p.grad is not None for p in made.module.parameters())
