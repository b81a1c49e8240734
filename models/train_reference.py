"""Train the reference model that ships with the package: `python -m shipworthy.models.train_reference --out FOLDER`.

ResNet-20 of width 32 on the 60,000 training images of Fashion-MNIST, from scratch, with a fixed number of epochs.
The images grow during training (20, 24, then 28 pixels; Howard 2018, "progressive resizing"), which halves the
cost. The last weights are kept: nothing is selected on the test images, which are read once, after the end.
An interrupted run goes on from its last finished epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from .idx import read_idx
from .resnet import SmallResNet

SIZES = (20,) * 8 + (24,) * 4 + (28,) * 6
BATCH = 128
PEAK_RATE = 0.15


def read_split(root: Path, name: str) -> tuple[Tensor, Tensor]:
    """Read one split as pixels `(images, 1, 28, 28)` in 0 to 255 and labels `(images,)`."""
    pixels = torch.tensor(read_idx(root / f"{name}-images-idx3-ubyte.gz"))
    labels = torch.tensor(read_idx(root / f"{name}-labels-idx1-ubyte.gz")).long()
    return pixels.unsqueeze(1), labels


def augment(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Flip, shift by up to 2 pixels and resize; bytes `(batch, 1, 28, 28)` become floats in 0 to 1."""
    batch = len(pixels)
    x = F.pad(pixels.float() / 255, (2, 2, 2, 2))
    rows = torch.randint(0, 5, (batch, 1), generator=generator) + torch.arange(28)
    columns = torch.randint(0, 5, (batch, 1), generator=generator) + torch.arange(28)
    flip = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    x = x[torch.arange(batch)[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)
    if size != 28:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


def accuracy(model: SmallResNet, pixels: Tensor, labels: Tensor) -> float:
    """Share of images classified rightly."""
    model.eval()
    with torch.inference_mode():
        right = 0
        for start in range(0, len(labels), 500):
            scores = model(pixels[start : start + 500].float() / 255)
            right += int((scores.argmax(1) == labels[start : start + 500]).sum())
    return right / len(labels)


def train(root: Path, out: Path) -> None:
    """Train for `len(SIZES)` epochs and write `fashion_resnet20.safetensors` and `training.json` to `out`."""
    torch.manual_seed(0)
    pixels, labels = read_split(root, "train")
    model = SmallResNet().to(memory_format=torch.channels_last)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK_RATE, momentum=0.9, nesterov=True,
    )  # fmt: skip
    steps = len(pixels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps * len(SIZES), pct_start=0.2, cycle_momentum=False
    )
    log, state = [], out / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        log = saved["log"]
    for epoch in range(len(log), len(SIZES)):
        began, seen, right, total = time.perf_counter(), 0, 0, 0.0
        generator = torch.Generator().manual_seed(1000 + epoch)
        order = torch.randperm(len(pixels), generator=generator)
        model.train()
        for step in range(steps):
            pick = order[step * BATCH : (step + 1) * BATCH]
            scores = model(augment(pixels[pick], SIZES[epoch], generator))
            loss = F.cross_entropy(scores, labels[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
            seen += len(pick)
            right += int((scores.argmax(1) == labels[pick]).sum())
            total += loss.item() * len(pick)
        log.append({"epoch": epoch, "loss": total / seen, "train_accuracy": right / seen,
                    "seconds": time.perf_counter() - began})  # fmt: skip
        print(json.dumps(log[-1]), file=sys.stderr, flush=True)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(), "log": log}, state)  # fmt: skip
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, out / "fashion_resnet20.safetensors")
    test = accuracy(model, *read_split(root, "t10k"))
    (out / "training.json").write_text(json.dumps({"test_accuracy": test, "epochs": log}, indent=1))
    print(f"accuracy on the 10,000 test images: {test:.4f}", file=sys.stderr)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args.data, args.out)


if __name__ == "__main__":
    main()
