"""A captured model is the module it was captured from, and says what it cannot capture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipworthy.models.errors import BadInput
from shipworthy.models.graph import get_tensor, module_path, put_tensor, set_training
from shipworthy.models.model import Model, TensorSpec, capture, load_pt2, save_pt2
from shipworthy.models.summary import summarize
from shipworthy.tests.small_nets import NETS, captured, eager, images, outputs


class _Noisy(nn.Module):
    """Batch norm and dropout: what differs in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(batch, 6)`."""
        scores: Tensor = self.drop(self.norm(x))
        return scores


@pytest.fixture
def noisy() -> Model:
    """A captured net with batch norm and dropout."""
    return capture(_Noisy(), (torch.zeros(2, 6),))


# --- capture


@pytest.mark.parametrize("name", NETS)
def test_a_captured_graph_is_the_module_in_evaluation(name: str) -> None:
    """The graph gives what the eager module gives in evaluation mode, at another batch size than the example's."""
    net, x = eager(name).eval(), images(5)
    with torch.no_grad():
        wanted = net(x)
    wanted = [wanted] if isinstance(wanted, Tensor) else list(wanted)
    for got, want in zip(outputs(captured(name), x), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_names_and_shapes_are_recorded() -> None:
    """Inputs carry the names of the code, outputs are numbered, and the batch has its name."""
    model = captured("two-heads")
    assert model.inputs == (TensorSpec("x", "float64", ("batch", 3, 8, 8)),)
    assert [(s.name, s.shape) for s in model.outputs] == [("output_0", ("batch", 2, 8, 8)), ("output_1", ("batch", 4))]
    assert captured("plain").outputs == (TensorSpec("output", "float64", ("batch", 4)),)
    assert model.source == "two-heads"


def test_the_users_module_stays() -> None:
    """Capturing changes neither weights nor modes, and training the graph does not reach the module."""
    net = eager("residual").train()
    net.get_submodule("a1").eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    model = capture(net, (images(2),))
    assert [n for n, part in net.named_modules() if not part.training] == ["a1", "a1.0", "a1.1"]
    set_training(model.module, True)
    model.module(images(4)).sum().backward()
    with torch.no_grad():
        for value in model.module.parameters():
            value.add_(1)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(value.grad is None for value in net.parameters())


def test_one_example_is_enough_for_a_dynamic_batch() -> None:
    """A batch of one as example does not fix the batch; without a dynamic batch the example's size is recorded."""
    net = nn.Linear(3, 2)
    free = capture(net, (torch.zeros(1, 3),))
    assert outputs(free, torch.zeros(7, 3))[0].shape == (7, 2)
    fixed = capture(net, (torch.zeros(1, 3),), dynamic_batch=False)
    assert (fixed.inputs[0].shape, fixed.outputs[0].shape) == ((1, 3), (1, 2))
    assert not fixed.dynamic_batch


def test_a_copy_shares_nothing(noisy: Model) -> None:
    """Changes to a copy's weights, shapes and modes leave the model as it was."""
    copy = noisy.copy()
    set_training(copy.module, True)
    put_tensor(copy.module, "norm.weight", torch.zeros(3))
    put_tensor(copy.module, "norm.running_mean", torch.full((3,), 9.0))
    assert isinstance(copy.module.get_parameter("norm.weight"), nn.Parameter)
    assert copy.module.get_buffer("norm.running_mean").tolist() == [9.0] * 3
    assert get_tensor(noisy.module, "norm.weight").tolist() == [1.0] * 6
    torch.testing.assert_close(outputs(noisy, torch.ones(3, 6))[0], torch.ones(3, 6))


def test_a_tensor_is_not_made_of_a_module(noisy: Model) -> None:
    """Asking for a tensor by the name of a module is an error in the program."""
    with pytest.raises(TypeError, match="norm is no tensor"):
        get_tensor(noisy.module, "norm")


# --- training and evaluation


def test_batch_norm_and_dropout_switch(noisy: Model) -> None:
    """In training the graph is the module in training mode, with its chance; in evaluation nothing is drawn."""
    x, net = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), _Noisy().train()
    set_training(noisy.module, True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trained = outputs(noisy, x)[0]
        torch.manual_seed(1)
        torch.testing.assert_close(trained, net(x))
    assert 0.3 < float((trained == 0).float().mean()) < 0.7
    set_training(noisy.module, False)
    torch.testing.assert_close(outputs(noisy, x)[0], net.eval()(x))


def test_statistics_move_in_training_only(noisy: Model) -> None:
    """Running mean and variance are those of the module after one training batch, and stay in evaluation."""
    x, net = torch.randn(32, 6) * 3 + 1, _Noisy().train()
    outputs(noisy, x)
    assert noisy.module.get_buffer("norm.running_mean").tolist() == [0.0] * 6
    set_training(noisy.module, True)
    outputs(noisy, x)
    net(x)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(noisy.module.get_buffer(f"norm.{name}"), getattr(net.norm, name))
    moved = noisy.module.get_buffer("norm.running_mean").clone()
    set_training(noisy.module, False)
    outputs(noisy, x)
    assert torch.equal(noisy.module.get_buffer("norm.running_mean"), moved)


def test_nodes_know_the_users_module() -> None:
    """A node carries the path of the module that made it."""
    nodes = captured("residual").module.graph.nodes
    assert {module_path(n) for n in nodes if "conv2d" in str(n.target)} == {f"{n}.0" for n in ("stem", "a1", "a2", "b1", "b2", "down")}  # fmt: skip # noqa: E501


# --- files


def test_pt2_gives_the_model_back(tmp_path: Path) -> None:
    """A model written and read has the same outputs, names and source; nothing else is left in the folder."""
    model = captured("two-heads")
    save_pt2(model, tmp_path / "m.pt2")
    back = load_pt2(tmp_path / "m.pt2")
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, images(3)), outputs(back, images(3)), strict=True))
    assert (back.inputs, back.outputs) == (model.inputs, model.outputs)
    assert (back.dynamic_batch, back.source) == (True, "two-heads")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]


def test_a_pt2_of_torch_itself_is_read(tmp_path: Path) -> None:
    """A file written by `torch.export.save` tells from its shapes whether the batch is free."""
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(4, 3),)), tmp_path / "fixed.pt2")
    fixed = load_pt2(tmp_path / "fixed.pt2")
    assert (fixed.dynamic_batch, fixed.inputs[0].shape, fixed.source) == (False, (4, 3), "fixed.pt2")


# --- what cannot be captured


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Look at a value."""
        if x.sum() > 0:
            return x
        return -x


class _FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Write the batch size as a number."""
        return x.reshape(4, 3) * 2


class _Fold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Lose the batch."""
        return F.relu(x).sum()


def test_an_uncapturable_model_names_its_line() -> None:
    """Python that looks at values is refused with file, line and text of the code, and how to write it."""
    with pytest.raises(BadInput, match=r"test_model\.py:\d+: `if x\.sum\(\) > 0:`.*torch\.where"):
        capture(_Branching(), (torch.ones(2, 3),))


@pytest.mark.parametrize("net", [_FixedBatch(), _Fold()])
def test_a_batch_fixed_by_the_code_is_refused(net: nn.Module) -> None:
    """A model that cannot follow its batch is refused at capture, and can be captured with that batch."""
    with pytest.raises(BadInput, match=r"fix.*batch|cannot capture"):
        capture(net, (torch.ones(4, 3),), source="mine")
    assert capture(net, (torch.ones(4, 3),), dynamic_batch=False).inputs[0].shape == (4, 3)


def test_examples_must_be_a_tuple_of_tensors() -> None:
    """A bare tensor, and a model without a tensor to give, are refused."""
    with pytest.raises(BadInput, match="example_inputs must be a tuple of tensors, got Tensor"):
        capture(nn.Identity(), torch.ones(2, 3))  # type: ignore[arg-type]  # the point


# --- summary


def test_counts_are_those_by_hand() -> None:
    """Parameters and MACs of convolutions, grouped and depthwise ones and linear layers, an example."""
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4, bias=False), nn.Conv2d(8, 8, 1, stride=2, groups=8),
        nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 5),
    )  # fmt: skip
    for batch in (2, 6):
        found = summarize(capture(net, (torch.zeros(batch, 4, 8, 8),), source="net"))
        rows = [(r.name, r.kind, r.params, r.macs) for r in found.layers]
        assert rows == [
            ("0", "conv2d", 8 * 36 + 8, 64 * 8 * 36),
            ("1", "conv2d", 8 * 18, 36 * 8 * 18),
            ("2", "conv2d", 16, 9 * 8),
            ("3", "batch_norm", 16, 0),
            ("5", "linear", 72 * 5 + 5, 72 * 5),
        ]
        assert found.params == sum(p.numel() for p in net.parameters()) == sum(r.params for r in found.layers)
        assert found.macs == sum(r.macs for r in found.layers)
        assert [r.output_shape for r in found.layers][1::3] == [("batch", 8, 6, 6), ("batch", 5)]


def test_a_shared_layer_counts_its_work_twice_and_its_weights_once() -> None:
    """A convolution used twice costs twice, and is stored once."""
    found = summarize(captured("shared"))
    assert found.params == (8 * 27 + 16) + (8 * 72 + 8) + 32 + (32 + 4)
    assert found.macs == 64 * 8 * 27 + 2 * 64 * 8 * 72 + 32
