"""A project small enough to build in seconds: a model of a few thousand parameters, 8x8 images, and a recipe."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import yaml

MODEL = '''\
import torch
from torch import nn

from tiny_data import data


class Net(nn.Module):
    """Two convolutions with a residual sum, and a linear layer."""

    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


def factory():
    """Return a network that has learnt a little."""
    net, (images, labels, *_) = Net(), data()
    x, y = torch.from_numpy(images)[:, None] / 255, torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, torch.zeros(2, 1, 8, 8)
'''

DATA = '''\
import numpy as np


def data(seed=0):
    """Return four classes of noisy images: plain, with rows, with columns, and with both."""
    numbers = np.random.default_rng(seed)

    def side(count):
        labels = np.arange(count) % 4
        images = numbers.integers(0, 150, (count, 8, 8), dtype=np.uint8)
        images[:, ::2] += 60 * (labels % 2).astype(np.uint8)[:, None, None]
        images[:, :, ::2] += 40 * (labels // 2).astype(np.uint8)[:, None, None]
        return images, labels

    return (*side(160), *side(80))
'''

RECIPE: dict[str, Any] = {
    "shipworthy": 1,
    "model": {"source": "tiny_model.py:factory"},
    "data": {"source": "tiny_data.py:data"},
    "compress": [
        {"prune": {"ratio": 0.5, "score": "taylor", "round_to": 4, "min_channels": 4, "samples": 64, "insist": True}},
        {"distill": {"steps": 60, "batch": 32, "flip": False, "shift": 0, "mixup": 0.0}},
        {"quantize": {"calibration": 32, "insist": True}},  # so small a net is no faster in integers
    ],
    "export": {"onnx": {"dynamic_batch": [1, 8]}, "tensorrt": {"flavour": "rtx"}},
    "profile": {"runtimes": ["ort-cpu"], "budget_seconds": 0.5},
    "goals": {"size_mb": {"max": 1000}},
}


def write_project(folder: Path, **changes: Any) -> Path:
    """Write model, data and recipe into a folder; return the recipe's path.

    Args:
        folder: made if absent.
        **changes: sections of the recipe instead of those of `RECIPE`; None leaves a section out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny_model.py").write_text(MODEL)
    (folder / "tiny_data.py").write_text(DATA)
    return write_recipe(folder, **changes)


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write only the recipe; return its path."""
    recipe = {key: value for key, value in (copy.deepcopy(RECIPE) | changes).items() if value is not None}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@final
@dataclass
class Recorder:
    """A progress that remembers which stages were made and which reused."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    advanced: int = 0

    def stage(self, name: str) -> None:
        """Remember a stage that begins."""
        self.made.append(name)

    def reused(self, name: str) -> None:
        """Remember a stage that was there."""
        self.kept.append(name)

    def advance(self, done: int, total: int) -> None:
        """Check that the share is one."""
        assert 0 <= done <= total
        self.advanced += 1

    def note(self, text: str) -> None:
        """Take no note."""
