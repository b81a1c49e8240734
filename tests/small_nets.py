"""Tiny networks, one for each way in which channels travel, and tiny data made in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipworthy.models.data import Dataset, Preprocessing, in_memory
from shipworthy.models.model import Model, capture

FINE: dict[str, Any] = {"round_to": 1, "min_channels": 1}
"""Settings that prune such narrow nets."""

CALM: dict[str, Any] = {"flip": False, "shift": 0, "mixup": 0.0, "batch": 64, "learning_rate": 0.02}
"""Settings that distil on `quadrants`, where mirrored corners are other classes."""


def conv(wide: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Make a convolution with its batch norm; with stride 1 it keeps the size."""
    return nn.Sequential(
        nn.Conv2d(wide, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)
    )


class Plain(nn.Module):
    """Convolutions with and without bias, both poolings, and a flatten of channels times pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), nn.Conv2d(8, 6, 3, padding=1)
        self.fc, self.head = nn.Linear(24, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.avg_pool2d(F.relu(self.second(x), inplace=True), 2)
        scores: Tensor = self.head(F.relu(self.fc(x.flatten(1))))
        return scores


class Residual(nn.Module):
    """Two blocks that add in place, the second with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a1, self.a2 = conv(8, 6), conv(6, 8)
        self.b1, self.b2, self.down = conv(8, 10, stride=2), conv(10, 12), conv(8, 12, 1, stride=2)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.relu(self.stem(x))
        y = self.a2(F.relu(self.a1(x), inplace=True))
        y += x
        x = F.relu(y, inplace=True)
        x = F.relu(self.b2(F.relu(self.b1(x))).add_(self.down(x)), inplace=True)
        scores: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


class Depthwise(nn.Module):
    """Inverted residual: expand, depthwise (one with named padding), project."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = conv(3, 8), conv(8, 12, 1)
        self.deep, self.project = conv(12, 12, groups=12), conv(12, 8, 1)
        self.same, self.fc = nn.Conv2d(8, 8, 3, padding="same", groups=8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.relu6(self.stem(x))
        x = x + self.project(F.relu6(self.deep(F.relu6(self.expand(x)))))
        scores: Tensor = self.fc(F.hardswish(self.same(x)).mean((2, 3)))
        return scores


class Grouped(nn.Module):
    """A grouped convolution between plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8, groups=2), conv(8, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        scores: Tensor = self.fc(x.mean((-2, -1)))
        return scores


class Dense(nn.Module):
    """Every layer sees the input and all layers before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 6), conv(9, 5), conv(14, 4)
        self.norm, self.fc = nn.BatchNorm2d(18), nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        for layer in (self.a, self.b, self.c):
            x = torch.cat([x, F.relu(layer(x))], dim=1)
        scores: Tensor = self.fc(F.relu(self.norm(x)).mean((2, 3)))
        return scores


class Views(nn.Module):
    """Sizes as plain numbers in the code, and a transpose back and forth."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 6, stride=4)
        self.mix, self.fc = nn.Linear(8, 8), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.relu(self.a(x)).view(x.shape[0], 8, 64).transpose(1, -1)
        x = F.relu(self.mix(x)).permute(0, 2, 1).reshape(-1, 8, 8, 8).contiguous()
        scores: Tensor = self.fc(F.relu(self.b(x)).view(-1, 24))
        return scores


class SqueezeExcite(nn.Module):
    """Channels that are multiplied by gates made of their own means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = conv(3, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.last, self.fc = conv(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.silu(self.stem(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        x = x * gate.view(x.shape[0], 8, 1, 1)
        scores: Tensor = self.fc(F.relu(self.last(x)).mean((2, 3)))
        return scores


class Shared(nn.Module):
    """One convolution used twice, each time with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.two, self.fc = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.relu(self.stem(x))
        x = F.relu(self.two(self.both(F.relu(self.one(self.both(x))))))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


class TwoHeads(nn.Module):
    """A map of scores and a vector of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.trunk, self.map, self.fc = conv(3, 8), conv(8, 8), nn.Conv2d(8, 2, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a map `(batch, 2, 8, 8)` and scores `(batch, 4)`."""
        x = F.leaky_relu(self.trunk(F.relu(self.stem(x))), 0.1)
        return self.map(x), self.fc(x.mean((2, 3)))


class Unknown(nn.Module):
    """Between prunable layers an operator without a rule, and a softmax over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.relu(self.a(x)).renorm(2, 1, 5.0)
        x = self.c(F.relu(self.b(x))).softmax(1)
        scores: Tensor = self.fc(self.d(x).mean((2, 3)))
        return scores


class Scaled(nn.Module):
    """Operators that make something of nothing (sigmoid, a learned shift), and sums with a broadcast side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gate = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.scale, self.shift = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(1, 8, 1, 1))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = torch.sigmoid(self.a(x)) * self.scale + self.shift
        x = 2.0 * x - self.b(x).clamp(-1, 1) / 3.0
        scores: Tensor = self.fc((x * torch.sigmoid(self.gate(x))).mean((2, 3)))
        return scores


class Rows(nn.Module):
    """One-dimensional convolutions over the rows' pixels, and a tensor of rank three in a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(24, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Conv1d(8, 6, 3, padding=1)
        self.mix, self.fc = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        x = F.elu(self.b(F.gelu(self.norm(self.a(x.flatten(1, 2))))))
        scores: Tensor = self.fc(torch.tanh(self.mix(x.transpose(1, 2)))).mean(1)
        return scores


class Branch(nn.Module):
    """A residual block of one convolution: `x + y`, `y += x` or `x += y`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = conv(8, 8), how

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, of the input's shape."""
        y: Tensor = self.body(x)
        if self.how == "y += x":
            y += x
            return y
        if self.how == "x += y":
            x += y
            return x
        total: Tensor = x + y
        return total


class Mixer(nn.Module):
    """Two sums in one block, over the pixels' channels, as in a transformer; dropout before the second."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.up, self.out = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the input's shape `(batch, pixels, 8)`."""
        x = x + self.one(self.norm(x))
        x = x + self.drop(self.out(F.gelu(self.up(x))))
        return x


class Stack(nn.Module):
    """Residual blocks of all kinds; what the first gives is added once more far behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = conv(3, 8), Branch("y += x"), Branch("x + y"), Branch("x += y")
        self.mixer, self.fc = Mixer(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        early = F.relu(self.a(F.relu(self.stem(x), inplace=True)), inplace=True)
        x = F.relu(self.c(F.relu_(self.b(early))))
        x = self.mixer((x + early).flatten(2).transpose(1, 2))
        scores: Tensor = self.fc(x.mean(1))
        return scores


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "depthwise": Depthwise,
    "grouped": Grouped,
    "dense": Dense,
    "views": Views,
    "squeeze-excite": SqueezeExcite,
    "shared": Shared,
    "two-heads": TwoHeads,
    "unknown": Unknown,
    "scaled": Scaled,
    "rows": Rows,
    "stack": Stack,
}
# A channel of zeros stays zero in these, up to the layer that reads it.
KEEPS_ZERO = ("plain", "residual", "depthwise", "grouped", "views", "shared", "two-heads")


def eager(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a net with seeded weights and statistics, all different, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = NETS[name]()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                for values in (part.weight, part.running_mean, part.running_var, part.bias):
                    torch.nn.init.uniform_(values, 0.5, 1.5)  # type: ignore[arg-type]  # none is None here
        return net.to(dtype)


@cache
def captured(name: str, dtype: torch.dtype = torch.float64) -> Model:
    """Return the captured net; it is shared, and no pass changes it."""
    return capture(eager(name, dtype), (torch.zeros(2, 3, 8, 8, dtype=dtype),), source=name)


def images(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random inputs `(count, 3, 8, 8)` of the nets."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def outputs(model: Model, x: Tensor) -> list[Tensor]:
    """Return what a model gives, as a list."""
    with torch.no_grad():
        found = model.module(x)
    return [found] if isinstance(found, Tensor) else list(found)


def quadrants(train: int = 256, test: int = 128) -> Dataset:
    """Return noise `(3, 8, 8)` with one bright corner, which is the class (of 4)."""
    draw = np.random.default_rng(3)
    labels = np.arange(train + test) % 4
    pixels = draw.integers(0, 160, (train + test, 3, 8, 8), dtype=np.uint8)
    for one, label in zip(pixels, labels, strict=True):
        row, column = divmod(int(label), 2)
        one[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 60
    splits = in_memory(pixels[:train], labels[:train]), in_memory(pixels[train:], labels[train:])
    mean = Preprocessing(mean=(0.4,), std=(0.2,))
    return Dataset("quadrants", ("a", "b", "c", "d"), *splits, mean, (3, 8, 8), "quadrants", {})
