"""Models of timm and transformers are what the libraries make of them, and nothing is fetched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import shipworthy as sw
from shipworthy.models.errors import BadInput
from shipworthy.pipeline.recipe_parts import ModelPart
from shipworthy.pipeline.user_files import model_hashes

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tokens(count: int, length: int) -> tuple[Tensor, Tensor]:
    """Return token numbers and a mask that leaves out the end of the first sentence."""
    ids = torch.randint(3, 50, (count, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return ids, mask


def folder_with(module: Any, folder: Path) -> Path:
    """Save a small model."""
    module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small BERT, no head."""
    torch.manual_seed(0)
    return folder_with(transformers.BertModel(transformers.BertConfig(**SMALL)), tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small DistilBERT that tells three classes apart."""
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=3, attn_implementation="eager"
    )
    return folder_with(transformers.DistilBertForSequenceClassification(config), tmp_path_factory.mktemp("classifier"))


# --- timm


def test_a_timm_model_is_timms(tmp_path: Path) -> None:
    """Random weights are those of seed 0, a file's are read, and both give what the eager module gives."""
    torch.manual_seed(0)
    eager = timm.create_model("test_resnet", num_classes=7).eval()
    model = sw.load("timm:test_resnet", classes=7)
    assert model.inputs[0].shape[1:] == eager.pretrained_cfg["input_size"]
    x = torch.rand(3, *eager.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.module(x), eager(x))
        eager.get_classifier().weight.mul_(2)
        torch.save(eager.state_dict(), tmp_path / "w.pth")
        read = sw.load("timm:test_resnet", classes=7, weights=tmp_path / "w.pth", input_shape=(3, 64, 64))
        torch.testing.assert_close(read.module(x[:, :, :64, :64]), eager(x[:, :, :64, :64]))


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("timm:resnet1888", {}, "timm has no such model; nearest: resnet18"),
        ("timm:resnet18", {"weights": "pretrained"}, "would be fetched from a model hub; give a weights file"),
        ("timm:test_resnet", {"weights": "gone.pth"}, r"gone\.pth: no such weights file"),
        ("transformers:bert-base-uncased", {}, r"would be fetched from a model hub; give a folder with config\.json"),
    ],
)
def test_what_cannot_be_had_is_said(source: str, settings: dict[str, Any], said: str) -> None:
    """Unknown names get the nearest, and nothing is fetched unasked."""
    with pytest.raises(BadInput, match=said):
        sw.load(source, **settings)


# --- transformers


def test_an_encoder_gets_a_head(encoder: Path) -> None:
    """Scores are a linear layer of the mean of the last states over the tokens there are, at any length and batch."""
    model = sw.load(f"transformers:{encoder}", classes=4)
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    assert [spec.shape for spec in model.inputs] == [("batch", "length")] * 2
    assert model.outputs[0].shape == ("batch", 4)
    weights = dict(model.module.named_parameters())
    eager = transformers.BertModel.from_pretrained(encoder).eval()
    for count, length in ((3, 11), (2, 5)):
        ids, mask = tokens(count, length)
        with torch.no_grad():
            states = eager(input_ids=ids, attention_mask=mask)[0]
            mean = torch.stack([one[: int(m.sum())].mean(0) for one, m in zip(states, mask, strict=True)])
            wanted = mean @ weights["head.weight"].T + weights["head.bias"]
            torch.testing.assert_close(model.module(ids, mask), wanted, rtol=1e-4, atol=1e-5)


def test_a_classifier_is_taken_as_it_is(classifier: Path, tmp_path: Path) -> None:
    """A folder with a head gives its scores; another number of classes gets a new one; its ONNX file says the same."""
    model = sw.load(f"transformers:{classifier}")
    eager = transformers.DistilBertForSequenceClassification.from_pretrained(classifier).eval()
    ids, mask = tokens(3, 9)
    with torch.no_grad():
        wanted = eager(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(model.module(ids, mask), wanted, rtol=1e-4, atol=1e-5)
    assert sw.load(f"transformers:{classifier}", classes=5).outputs[0].shape == ("batch", 5)
    made = sw.to_onnx(model, tmp_path / "m.onnx")
    from shipworthy.export.session import OnnxSession

    given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    torch.testing.assert_close(torch.from_numpy(OnnxSession(made.path).run(given)[0]), wanted, rtol=1e-4, atol=1e-5)


def test_wrong_folders_are_refused_in_words(encoder: Path, tmp_path: Path) -> None:
    """An encoder needs `classes`; a damaged folder, and what it has no use for, are named."""
    with pytest.raises(BadInput, match="an encoder without a classifier; say how many `classes`"):
        sw.load(f"transformers:{encoder}")
    with pytest.raises(BadInput, match="takes no `input_shape`"):
        sw.load(f"transformers:{encoder}", input_shape=(3,), classes=2)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **SMALL}))
    with pytest.raises(BadInput, match="transformers cannot load it"):
        sw.load(f"transformers:{tmp_path}", classes=2)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="transformers cannot load it"):
        sw.load(f"transformers:{tmp_path}", classes=2)


def test_a_folder_that_changes_makes_the_model_anew(encoder: Path, tmp_path: Path) -> None:
    """The hashes of a model in a folder are those of its files."""
    part = ModelPart(f"transformers:{tmp_path}", classes=2)
    (tmp_path / "config.json").write_bytes((encoder / "config.json").read_bytes())
    before = model_hashes(part)
    assert len(before) == 1
    (tmp_path / "config.json").write_text("{}")
    assert model_hashes(part) != before


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_without_the_library_the_message_says_how_to_get_it(name: str) -> None:
    """Where the extra is not installed, the pip line and the other way are named; nothing else is imported."""
    code = (
        f"import sys; sys.modules['{name}'] = None\nimport shipworthy as sw\n"
        f"try: sw.load('{name}:x')\nexcept sw.BadInput as fault: print(fault)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"needs {name}, which is not installed: pip install 'shipworthy[{name}]', or save the model as .pt2" in said


def test_a_factory_says_what_varies(tmp_path: Path) -> None:
    """Its third value is what `capture` takes; anything else in that place is refused."""
    code = "import torch\nclass N(torch.nn.Module):\n    def forward(self, x): return x.mean(1)\n"
    (tmp_path / "net.py").write_text(
        code + "def good(): return N(), (torch.rand(2, 5, 3),), {'x': {1: 'length'}}\n"
        "def bad(): return N(), (torch.rand(2, 5, 3),), [1]\n"
    )
    model = sw.load(f"{tmp_path / 'net.py'}:good")
    assert model.inputs[0].shape == ("batch", "length", 3)
    assert model.module(torch.rand(4, 9, 3)).shape == (4, 3)
    with pytest.raises(BadInput, match="what varies is a list, wanted"):
        sw.load(f"{tmp_path / 'net.py'}:bad")
