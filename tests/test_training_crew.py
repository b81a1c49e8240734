"""Training in two processes over gloo against one, started by the build and by `torchrun`; curves; low precision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shipworthy as sw
from shipworthy.models.errors import BadInput, ToolFailed
from shipworthy.models.model import load_pt2
from shipworthy.pipeline.curves import Curves

CODE = """
import os
import numpy as np
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval(), (torch.zeros(2, 1, 8, 8),)

def data():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 90)
    images = draw.integers(0, 60, (90, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels):
        image[label * 2 : label * 2 + 3] += 150
    return images[:60], labels[:60], images[60:], labels[60:]

def dying():
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
        os._exit(3)
    return data()
"""
RECIPE = """
shipworthy: 1
model: {source: "net.py:net"}
data: {source: "net.py:data"}
train: {TRAIN}
compress:
  - transfer: {steps: 20, batch: 15, learning_rate: 0.01, validation: 0.2, shift: 1}
  - distill: {steps: 20, batch: 15, optimizer: adamw, learning_rate: 0.005, reuse: 2}
profile: {runtimes: [ort-cpu], budget_seconds: 0.5}
goals: {size_mb: {max: 1}}
"""


def place(folder: Path, train: str, data: str = "data") -> Path:
    """Write the recipe and its code."""
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(CODE)
    (folder / "recipe.yaml").write_text(RECIPE.replace("TRAIN", train).replace("net.py:data", f"net.py:{data}"))
    return folder / "recipe.yaml"


def curve(folder: Path, name: str) -> dict[int, float]:
    """Read a curve back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {one.step: one.value for one in events.Scalars(name)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return what the build made."""
    return dict(load_pt2(folder / "model.pt2").module.state_dict())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build in one process; return the work folder."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("alone")
    sw.build(place(folder, "tensorboard: true"), folder / "out")
    return folder / "out"


def assert_same(alone: Path, other: Path) -> None:
    """Check that losses, statistics and weights are those of one process, but for the order of sums."""
    for label in ("transfer", "distill"):
        one, two = (curve(place / "tensorboard" / label, "loss") for place in (alone, other))
        assert list(one) == list(two)
        assert len(one) >= 3
        assert list(two.values()) == pytest.approx(list(one.values()), rel=2e-3)
    for name, value in weights(other).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=0.02, atol=2e-3)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(alone: Path, tmp_path: Path) -> None:
    """Started by the build itself: batch norms see the whole batch, and every gradient counts once."""
    pytest.importorskip("lightning_fabric")
    told: list[tuple[int, int]] = []

    class Hearing:
        def stage(self, name: str) -> None: ...
        def reused(self, name: str) -> None: ...
        def note(self, text: str) -> None: ...
        def advance(self, done: int, total: int) -> None:
            told.append((done, total))

    sw.build(place(tmp_path, "devices: 2, strategy: ddp, tensorboard: true"), tmp_path / "out", Hearing())
    assert_same(alone, tmp_path / "out")


@pytest.mark.slow
def test_torchrun_starts_the_same(alone: Path, tmp_path: Path) -> None:
    """The second process takes part in training alone, writes nothing, and both end well."""
    pytest.importorskip("lightning_fabric")
    recipe = place(tmp_path, "tensorboard: true")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29713",
        "-m", "shipworthy", "build", str(recipe), "--workdir", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("verdict") == 1 or "MET" in done.stdout
    assert_same(alone, tmp_path / "out")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_build(tmp_path: Path) -> None:
    """No waiting for it: one message, and the tool failed."""
    pytest.importorskip("lightning_fabric")
    with pytest.raises(ToolFailed, match="train: a process of the training failed"):
        sw.build(place(tmp_path, "devices: 2", "dying"), tmp_path / "out")


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Before anything is trained."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BadInput, match=r"train\.device cuda: torch sees no such device"):
        sw.build(place(tmp_path, "device: cuda"), tmp_path / "out")


def test_bf16_learns_as_well(alone: Path, tmp_path: Path) -> None:
    """Operators compute in 16 bits, weights stay 32 bits wide; the losses are near, not equal."""
    sw.build(place(tmp_path, "autocast: bf16, tensorboard: true"), tmp_path / "out")
    one, low = (curve(folder / "tensorboard" / "distill", "loss") for folder in (alone, tmp_path / "out"))
    assert list(low.values()) == pytest.approx(list(one.values()), rel=0.2)
    assert list(low.values()) != list(one.values())
    assert {value.dtype for value in weights(tmp_path / "out").values()} <= {torch.float32, torch.int64}


def test_curves_tell_the_rate_validation_and_size(alone: Path) -> None:
    """Each training has its own, and the model's size after each pass is there."""
    folder = alone / "tensorboard"
    assert set(curve(folder / "transfer", "validation_accuracy")) == set(range(1, 21))
    assert set(curve(folder / "distill", "learning_rate")) == {1, 10, 20}
    learnt = sum(p.numel() for p in load_pt2(alone / "model.pt2").module.parameters())
    assert curve(folder / "model", "parameters") == {1: learnt, 2: learnt}


def test_a_training_that_goes_on_writes_over_what_came_after(tmp_path: Path) -> None:
    """Points of steps that are done again are there once."""
    pytest.importorskip("tensorboard")
    for start, value in ((1, 1.0), (21, 2.0)):
        curves = Curves(tmp_path)
        for step in range(start, 41):
            curves(step, {"loss": value})
        curves.close()
    assert curve(tmp_path, "loss") == {1: 1.0, 10: 1.0, 20: 1.0, 30: 2.0, 40: 2.0}
