"""Transfer gives a model the data's classes and colours, and trains what it is told to train."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shipworthy.compress.heads import find_head
from shipworthy.compress.lessons import Lessons
from shipworthy.compress.pull import l2_sp
from shipworthy.compress.stems import find_stem, other_colours
from shipworthy.compress.thawing import depths, groups_of, thawing
from shipworthy.compress.training import Extras, train
from shipworthy.compress.transfer import Transfer
from shipworthy.models.data import Dataset
from shipworthy.models.errors import BadInput
from shipworthy.models.model import capture
from shipworthy.models.sources import load
from shipworthy.tests.small_nets import Residual, quadrants


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_heads_are_found(name: str) -> None:
    """The last layer of a classifier has as many outputs as the model has classes."""
    assert find_head(load(f"torchvision:{name}", classes=7, input_shape=(3, 64, 64)).module).classes == 7


def test_grey_stems_give_what_replicated_grey_gave() -> None:
    """A kernel summed over colours sees a grey image as the old one saw it three times."""
    weight, x = torch.rand(4, 3, 3, 3), torch.rand(2, 1, 8, 8)
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(conv(x, other_colours(weight, 1)), conv(x.repeat(1, 3, 1, 1), weight))


def test_l2_sp_has_the_gradient_of_its_formula() -> None:
    """Its gradient is alpha (w - w0) on pretrained weights, and beta w on the head."""
    w, h, start = torch.rand(3, requires_grad=True), torch.rand(3, requires_grad=True), torch.rand(3)
    l2_sp({"w": w, "h": h}, {"w": start, "h": start}, ["h"], 0.3, 0.7).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.testing.assert_close(w.grad, 0.3 * (w.detach() - start))
    torch.testing.assert_close(h.grad, 0.7 * h.detach())


def test_frozen_weights_stay_and_the_rest_moves() -> None:
    """A model of other classes comes out with the data's, and frozen weights are untouched."""
    data = quadrants()
    net = Residual()
    net.fc = torch.nn.Linear(12, 9)
    model = capture(net, (torch.rand(2, *data.input_shape),))
    made = Transfer(steps=20, batch=16, flip=False, shift=0, freeze=("stem.*",), batch_norm="frozen")(model, data=data)
    assert made.model.outputs[0].shape == ("batch", len(data.classes))
    before, after = model.module.state_dict(), made.model.module.state_dict()
    same = {name: torch.equal(value, after[name]) for name, value in before.items() if name != "fc.weight"}
    assert all(kept for name, kept in same.items() if name.startswith("stem."))
    assert not same["a1.0.weight"]


def test_transfer_learns_a_task() -> None:
    """A model of other classes learns the data's."""
    data = quadrants()
    net = Residual()
    net.fc = torch.nn.Linear(12, 9)
    model = capture(net, (torch.rand(2, *data.input_shape),))
    made = Transfer(steps=60, batch=32, flip=False, shift=0, learning_rate=0.01)(model, data=data)
    assert made.facts["last_loss"] < 0.7 * made.facts["first_loss"]


def test_rates_fall_with_the_distance_from_the_head(data: Dataset) -> None:
    """With `layer_decay` a layer's rate is the factor to the power of its distance; the head's has its own factor."""
    model = capture(Residual(), (torch.rand(2, *data.input_shape),))
    far = depths(model.module)
    assert far["fc.weight"] == 0
    assert far["stem.0.weight"] == max(far.values())
    settings = Transfer(steps=1, layer_decay=0.5, head_rate=3.0)
    by_weight = {id(g["params"][0]): g["lr_factor"] for g in groups_of(settings, model.module, ["fc.weight"])}
    for name, value in model.module.named_parameters():
        assert by_weight[id(value)] == 0.5 ** far[name] * (3.0 if name == "fc.weight" else 1.0)


def test_thawed_weights_move_only_after_their_share(data: Dataset) -> None:
    """What thaws half way stays until then and moves afterwards."""
    model = capture(Residual(), (torch.rand(2, *data.input_shape),))
    start = model.module.state_dict()["stem.0.weight"]

    def after(steps: int) -> bool:
        settings = Transfer(steps=8, batch=16, thaw={"stem.*": 0.5}, flip=False, shift=0)
        module = model.copy().module
        on_step = thawing(settings, module, 8)
        groups = groups_of(settings, module, ())
        lessons = Lessons(settings, data)
        train(module, lessons, lambda s, y, _: F.cross_entropy(s, y), settings.plan(steps), extras=Extras(groups=groups, on_step=on_step))  # fmt: skip # noqa: E501
        return not torch.equal(module.state_dict()["stem.0.weight"], start)

    assert [after(4), after(5)] == [False, True]


def test_what_cannot_be_adapted_is_refused(data: Dataset) -> None:
    """Two colours, patterns that match nothing, and models without a last layer are refused in words."""
    with pytest.raises(BadInput, match="the first convolution reads 3 colours, the data have 2; wanted grey"):
        other_colours(torch.rand(4, 3, 3, 3), 2)
    model = capture(Residual(), (torch.rand(2, *data.input_shape),))
    with pytest.raises(BadInput, match=r"transfer: .*nothing\.\*"):
        Transfer(steps=1, freeze=("nothing.*",))(model, data=data)
    with pytest.raises(BadInput, match="no head can be replaced"):
        find_head(capture(torch.nn.Softmax(1), (torch.rand(2, 3),)).module)


def test_a_stem_behind_a_border_is_found() -> None:
    """Networks that came from TensorFlow pad their images themselves; a pad of the colours is no border."""

    def net(*widths: int) -> nn.Module:
        return nn.Sequential(nn.ConstantPad3d(widths, 0.0) if len(widths) == 6 else nn.ZeroPad2d(widths), nn.LazyConv2d(4, 3))  # type: ignore[arg-type]  # four or six # fmt: skip # noqa: E501

    x = torch.rand(2, 3, 8, 8)
    padded = net(0, 1, 0, 1)
    padded(x)
    assert find_stem(capture(padded.eval(), (x,)).module).endswith("weight")
    coloured = net(0, 0, 0, 0, 0, 1)
    coloured(x)
    with pytest.raises(BadInput, match="wanted one convolution"):
        find_stem(capture(coloured.eval(), (x,)).module)
