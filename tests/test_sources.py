"""Model sources give captured models, and explain what they cannot load."""

from __future__ import annotations

import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shipworthy.models.checkpoints import load_weights
from shipworthy.models.data import open_data
from shipworthy.models.errors import BadInput
from shipworthy.models.metrics import accuracy
from shipworthy.models.model import save_pt2
from shipworthy.models.sources import load
from shipworthy.models.user_code import call_user

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

def net():
    return Net()

def with_example():
    return Net(), torch.rand(2, 3, 10, 12)
"""


@pytest.fixture
def net_file(tmp_path: Path) -> Path:
    """A file with two factories."""
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def _small() -> nn.Module:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), bn=nn.BatchNorm2d(2), fc=nn.Linear(4, 3)))


# --- sources


def test_reference_model_recognises_fashion() -> None:
    """The reference takes any batch and does far better than chance on test images."""
    model, data = load("reference:fashion-resnet20"), open_data("fashion-mnist", "bundled")
    x, y = data.batch(data.test, torch.arange(300))
    with torch.no_grad():
        scores = model.module(x)
    assert scores.shape == (300, 10)
    assert accuracy(scores.argmax(1), y).low > 0.5
    assert model.inputs[0].shape == ("batch", 1, 28, 28)
    assert model.source == "reference:fashion-resnet20"


def test_torchvision_weights_are_seeded_and_loaded(tmp_path: Path) -> None:
    """Random weights are the same each time; a state dict from torchvision's own model replaces them."""
    from torchvision.models import squeezenet1_1

    options: dict[str, Any] = {"input_shape": (3, 48, 48), "classes": 7}
    first, state = load("torchvision:squeezenet1_1", **options), torch.random.get_rng_state()
    second = load("torchvision:squeezenet1_1", **options)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.outputs[0].shape == ("batch", 7)
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)
    trained = squeezenet1_1(num_classes=7).eval()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    found = load("torchvision:squeezenet1_1", weights=tmp_path / "w.pt", **options)
    x = torch.rand(3, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), trained(x))


def test_factories_give_modules_with_or_without_examples(net_file: Path, tmp_path: Path) -> None:
    """A factory's own examples set the shape, `input_shape` does otherwise, and `weights` are read."""
    assert load(f"{net_file}:with_example").inputs[0].shape == ("batch", 3, 10, 12)
    wanted = call_user(f"{net_file}:net").state_dict()
    save_file({name: value + 1 for name, value in wanted.items()}, tmp_path / "w.safetensors")
    model = load(f"{net_file}:net", input_shape=(3, 8, 8), weights=tmp_path / "w.safetensors")
    assert model.inputs[0].shape == ("batch", 3, 8, 8)
    assert torch.equal(model.module.get_parameter("fc.bias"), wanted["fc.bias"] + 1)


def test_pt2_files_load_without_their_class(net_file: Path, tmp_path: Path) -> None:
    """What was saved as .pt2 computes the same when loaded by its path."""
    model = load(f"{net_file}:with_example")
    save_pt2(model, tmp_path / "m.pt2")
    again, x = load(str(tmp_path / "m.pt2")), torch.rand(5, 3, 10, 12)
    with torch.no_grad():
        torch.testing.assert_close(again.module(x), model.module(x))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("resnet18", {}, "give reference:fashion-resnet20, torchvision:NAME"),
        ("torchvison:resnet18", {}, "did you mean torchvision:"),
        ("reference:resnet20", {}, "did you mean reference:fashion-resnet20"),
        ("reference:fashion-resnet20", {"classes": 5}, "takes no `classes`"),
        ("torchvision:resnet19", {}, "nearest: .*resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "not an image classifier"),
        ("torchvision:resnet18", {"weights": "ResNet18_Weights.IMAGENET1K_V1"}, "SHIPWORTHY_ONLINE=1"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "would be downloaded from https"),
        ("torchvision:resnet18", {"weights": "absent.pt"}, r"absent\.pt: no such weights file"),
        ("torchvision:resnet18", {"input_shape": (3, 0, 8)}, "must be positive"),
        ("torchvision:squeezenet1_1", {"input_shape": (1, 32, 32)}, r"fails on inputs of shape \(2, 1, 32, 32\)"),
        ("absent.pt2", {}, "no such file"),
        ("m.pt2", {"weights": "w.pt"}, r"a \.pt2 file fixes it"),
        ("absent.py:net", {}, r"absent\.py: no such file"),
    ],
)
def test_bad_sources_are_explained(
    source: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wrong source or option has one message with its remedy."""
    monkeypatch.delenv("SHIPWORTHY_ONLINE", raising=False)
    with pytest.raises(BadInput, match=message):
        load(source, **options)


# --- code of the user's


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def made():\n    return 5", "returned int, wanted a torch.nn.Module"),
        ("from torch import nn\ndef made():\n    return nn.Linear(3, 2)", "gives no example inputs; set input_shape"),
        ("from torch import nn\ndef made():\n    return nn.Linear(3, 2), [1]", "must be a tensor or a tuple"),
        ("def mode():\n    return 5", "no function 'made'; it has mode"),
        ("made = 5", "no function 'made'; it has none"),
        ("def made(:\n    pass", r"own\.py:1: SyntaxError"),
        ("import sys\ndef made():\n    sys.exit(0)", r"own\.py:3, in made: SystemExit: 0"),
        ("x = 1\nimport no_such_module_at_all", r"own\.py:2, in <module>: ModuleNotFoundError"),
        ("import helper\ndef made():\n    return helper.fail()", r"helper\.py:2, in fail: ZeroDivisionError"),
        ("def made(size):\n    pass", "missing 1 required positional argument"),
        ("import torch\nfrom torch import nn\nclass N(nn.Module):\n    def forward(self, x):\n        return x @ x\n"
         "def made():\n    return N(), torch.rand(2, 3)", r"shape \(2, 3\) at .*own\.py:5, in forward"),
    ],
)  # fmt: skip
def test_faulty_factories_show_the_users_line(tmp_path: Path, body: str, message: str) -> None:
    """Whatever goes wrong in the user's file is told with the user's file and line."""
    (tmp_path / "own.py").write_text(body)
    (tmp_path / "helper.py").write_text("def fail():\n    return 1 / 0\n")
    with pytest.raises(BadInput, match=message):
        load(f"{tmp_path / 'own.py'}:made")


def test_user_files_keep_to_themselves(tmp_path: Path) -> None:
    """Neighbours can be imported, those of another folder never stand in for them, edits count, nothing is left."""
    path = list(sys.path)
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "neighbour.py").write_text(f"NAME = {name!r}\n")
        (folder / "own.py").write_text("import neighbour\ndef made(): return neighbour.NAME, __name__\n")
    first, second = (call_user(f"{tmp_path / name / 'own.py'}:made") for name in ("one", "two"))
    assert (first[0], second[0]) == ("one", "two")
    assert first[1] != second[1]
    (tmp_path / "two" / "neighbour.py").write_text("NAME = 'new'\n")
    assert call_user(f"{tmp_path / 'two' / 'own.py'}:made")[0] == "new"
    assert sys.path == path
    assert not list(tmp_path.rglob("__pycache__"))


# --- checkpoints


@pytest.mark.parametrize("form", ["plain", "legacy", "state_dict", "model", "module.", "_orig_mod.", "safetensors"])
def test_checkpoints_of_every_form_are_read(tmp_path: Path, form: str) -> None:
    """Wrapped, prefixed, old and new files all restore the weights, and the module's mode stays."""
    source, target = _small(), _small().eval()
    state = source.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form.endswith("."):
        torch.save({"state_dict": {form + name: value for name, value in state.items()}, "epoch": 3}, path)
    elif form in ("state_dict", "model"):
        torch.save({form: state, "epoch": 3}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "plain")
    load_weights(target, path)
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    assert not any(part.training for part in target.modules())


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_with_code_are_never_run(tmp_path: Path, zipped: bool) -> None:
    """A pickle that holds more than weights is refused, and what it would have run has not run."""
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    if zipped:
        torch.save({"fc.weight": _Payload(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"fc.weight": _Payload(trace)}, protocol=2))
    with pytest.raises(BadInput, match=r"is not unpickled.*torch\.save\(model\.state_dict"):
        load_weights(_small(), path)
    assert not trace.exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    """A pickled module is not weights; the message names the class that it holds."""
    torch.save(_small(), tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"holds more than weights \(torch\.nn\.modules"):
        load_weights(_small(), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 3, 60, -30])
def test_damaged_checkpoints_are_explained(tmp_path: Path, suffix: str, keep: int) -> None:
    """A file cut off anywhere is one message about that file."""
    path = tmp_path / f"w{suffix}"
    save_file(_small().state_dict(), path) if suffix == ".safetensors" else torch.save(_small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match=rf"w\{suffix}: (cut off or no|damaged)"):
        load_weights(_small(), path)


def test_text_is_no_checkpoint(tmp_path: Path) -> None:
    """A page saved in place of a file, and a list in place of a mapping, are refused."""
    (tmp_path / "w.pt").write_text("<html>not found</html>")
    with pytest.raises(BadInput, match=r"w\.pt"):
        load_weights(_small(), tmp_path / "w.pt")
    torch.save([torch.zeros(2)], tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"holds no weights by name \(list\)"):
        load_weights(_small(), tmp_path / "w.pt")


def test_wrong_architecture_lists_differences(tmp_path: Path) -> None:
    """Unequal shapes, missing and unexpected names are all told, the first ten of many, and nothing is loaded."""
    target = _small()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = _small().state_dict()
    state["conv.weight"] = torch.zeros(5, 1, 3, 3)
    state["other"] = state.pop("fc.bias")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"3 differences: conv\.weight is \(5, 1, 3, 3\), wanted \(2, 1, 3, 3\); "
                                       r"missing fc\.bias; unexpected other"):  # fmt: skip
        load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    torch.save({f"layer{i}": torch.zeros(1) for i in range(40)}, tmp_path / "w.pt")
    with pytest.raises(BadInput, match=r"48 differences: .* and 38 more"):
        load_weights(target, tmp_path / "w.pt")


def test_ignored_names_and_missing_counters_are_no_differences(tmp_path: Path) -> None:
    """Auxiliary heads may be in the file only, and batch counters of old files may be missing."""
    state = {name: value for name, value in _small().state_dict().items() if "num_batches" not in name}
    torch.save({**state, "aux1.fc.weight": torch.zeros(2)}, tmp_path / "w.pt")
    load_weights(_small(), tmp_path / "w.pt", ignore=("aux1.",))
    with pytest.raises(BadInput, match=r"unexpected aux1\.fc\.weight"):
        load_weights(_small(), tmp_path / "w.pt")
