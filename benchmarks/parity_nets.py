"""Small networks of many kinds, with random weights that show what a network does: what parity is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

from shipworthy.benchmarks.zoo_weights import initialise
from shipworthy.models.model import Model, capture

IMAGE = (3, 32, 32)


class Encoder(nn.Module):
    """A transformer encoder over tokens of 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.embed, self.encoder = nn.Linear(16, 32), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 10)` of tokens `(batch, 12, 16)`."""
        scores: Tensor = self.fc(self.encoder(self.embed(x)).mean(1))
        return scores


class Recurrent(nn.Module):
    """Two LSTM layers over tokens, the last one's state scored."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(16, 32, 2, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 10)` of tokens `(batch, 12, 16)`."""
        scores: Tensor = self.fc(self.lstm(x)[0][:, -1])
        return scores


class Rows(nn.Module):
    """One-dimensional convolutions, their gates, and a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(16, 32, 3, padding=1), nn.BatchNorm1d(32), nn.Conv1d(32, 32, 3, padding=1)
        self.gate, self.fc = nn.Conv1d(32, 32, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 10)` of series `(batch, 16, 32)`."""
        x = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
        scores: Tensor = self.fc((x * self.gate(x).softmax(1)).mean(2))
        return scores


@dataclass(frozen=True)
class Net:
    """A network: what makes it, the shape of one input, and the module around which numbers are blown up."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    inner: str


_CONVNEXT = [CNBlockConfig(24, 48, 2), CNBlockConfig(48, None, 2)]
_VIT_BLOCK = "encoder.layers.encoder_layer_1"

NETS: dict[str, Net] = {
    "resnet18": Net(partial(zoo.resnet18, num_classes=10), IMAGE, "layer2.0.relu"),
    "mobilenet_v2": Net(partial(zoo.mobilenet_v2, num_classes=10), IMAGE, "features.8"),
    "mobilenet_v3": Net(partial(zoo.mobilenet_v3_small, num_classes=10), IMAGE, "features.5"),
    "shufflenet": Net(partial(zoo.shufflenet_v2_x0_5, num_classes=10), IMAGE, "stage3.2"),
    "squeezenet": Net(partial(zoo.squeezenet1_1, num_classes=10), (3, 64, 64), "features.7"),
    "densenet": Net(partial(zoo.DenseNet, 8, (3, 3, 3), 16, num_classes=10), IMAGE, "features.transition1"),
    "efficientnet": Net(partial(zoo.efficientnet_b0, num_classes=10), IMAGE, "features.4"),
    "convnext": Net(partial(zoo.ConvNeXt, _CONVNEXT, num_classes=10), IMAGE, "features.3"),
    "vit": Net(partial(zoo.VisionTransformer, 32, 8, 4, 4, 64, 128, num_classes=10), IMAGE, _VIT_BLOCK),
    "swin": Net(partial(zoo.SwinTransformer, [2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=10), IMAGE, "features.2"),
    "encoder": Net(Encoder, (12, 16), "encoder.layers.1"),
    "lstm": Net(Recurrent, (12, 16), "fc"),
    "conv1d": Net(Rows, (16, 32), "gate"),
}


class BlownUp(nn.Module):
    """A module whose result is multiplied by large powers of two and divided by them again: nothing in fp32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """Return what the module gives."""
        large = (self.inner(*args, **options) * 2.0**14) * 2.0**13
        found: Tensor = (large / 2.0**14) / 2.0**13
        return found


def net(name: str, blown_up: bool = False) -> tuple[Model, Tensor]:
    """Return a captured network with seeded weights, and 64 inputs."""
    torch.manual_seed(0)
    made, kind = NETS[name].make(), NETS[name]
    x = torch.randn(64, *kind.shape, generator=torch.Generator().manual_seed(1))
    initialise(made, 1, (x[:32],))
    if blown_up:
        owner, _, leaf = kind.inner.rpartition(".")
        setattr(made.get_submodule(owner), leaf, BlownUp(made.get_submodule(kind.inner)))
    return capture(made.eval(), (x[:2],), source=name), x
