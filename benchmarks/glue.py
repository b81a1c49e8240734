"""The off-the-shelf pipeline that an engineer would glue together by hand, as the tools' own documentation shows.

Torch-Pruning to half width, distillation with plain settings, `torch.onnx.export`, ONNX Runtime's static int8. Only the
trained model and the images come from this package.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shipworthy.benchmarks.common import pruning_tool
from shipworthy.models.checkpoints import load_weights
from shipworthy.models.data import Dataset
from shipworthy.models.files import sha256_of
from shipworthy.models.resnet import SmallResNet
from shipworthy.models.sources import ASSETS

T = TypeVar("T")

WEIGHTS = ASSETS / "fashion_resnet20.safetensors"
FLOAT, S8S8, U8S8, U8S7 = (f"glue_{name}.onnx" for name in ("fp32", "int8_s8s8", "int8_u8s8", "int8_u8s7"))


@dataclass(frozen=True)
class Glue:
    """Its settings: steps and batch are given, so that both pipelines recover for equally long."""

    steps: int
    batch: int
    calibration: int = 512
    temperature: float = 4.0
    alpha: float = 0.9
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    seed: int = 0


def build_glue(settings: Glue, data: Dataset, folder: Path) -> dict[str, Any]:
    """Make the float file and the int8 files in `folder`, unless they are there from equal settings.

    Returns:
        Facts: the settings, parameters left, and the seconds of each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"settings": asdict(settings), "weights": sha256_of(WEIGHTS), "data": data.fingerprint}
    done = folder / "glue.json"
    if done.is_file() and (found := json.loads(done.read_text(encoding="utf-8")))["wanted"] == wanted:
        return dict(found["facts"])
    teacher = SmallResNet().eval()
    load_weights(teacher, WEIGHTS)
    student, prune_s = _timed(lambda: prune(teacher, len(data.classes), torch.rand(1, *data.input_shape)))
    _, distill_s = _timed(lambda: distill(student, teacher, data, settings))
    _, export_s = _timed(lambda: export(student, data, folder / FLOAT))
    _, quantize_s = _timed(lambda: quantize(folder, data, settings))
    facts = {
        **asdict(settings),
        "params": sum(p.numel() for p in student.parameters()),
        "seconds": {"prune": prune_s, "distill": distill_s, "export": export_s, "quantize": quantize_s},
    }
    done.write_text(json.dumps({"wanted": wanted, "facts": facts}), encoding="utf-8")
    return facts


def prune(teacher: nn.Module, classes: int, example: Tensor) -> nn.Module:
    """Halve every width, as Torch-Pruning's README shows: https://github.com/VainF/Torch-Pruning."""
    tools, student = pruning_tool(), copy.deepcopy(teacher)
    kept = [m for m in student.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    pruner = tools.pruner.MagnitudePruner(
        student, example, importance=tools.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=kept, round_to=8,
    )  # fmt: skip
    pruner.step()
    return student


def distill(student: nn.Module, teacher: nn.Module, data: Dataset, settings: Glue) -> None:
    """Train by Hinton's loss with SGD under a one-cycle rate on flipped and cropped images."""
    torch.manual_seed(settings.seed)
    student.train().to(memory_format=torch.channels_last)
    teacher.eval().to(memory_format=torch.channels_last)
    rate, decay = settings.learning_rate, settings.weight_decay
    optimizer = torch.optim.SGD(student.parameters(), rate, momentum=0.9, weight_decay=decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=settings.steps + 1)
    for step, (x, labels) in enumerate(batches(data, settings), 1):
        with torch.no_grad():
            wanted = teacher(x)
        loss = distillation_loss(student(x), wanted, labels, settings)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"glue: step {step} of {settings.steps}, loss {loss.item():.4f}", flush=True)
    student.eval().to(memory_format=torch.contiguous_format)


def distillation_loss(scores: Tensor, wanted: Tensor, labels: Tensor, settings: Glue) -> Tensor:
    """Return `alpha T^2 KL + (1 - alpha) cross-entropy` of scores `(batch, classes)` and labels `(batch,)`."""
    t = settings.temperature
    soft = F.kl_div(F.log_softmax(scores / t, 1), F.log_softmax(wanted / t, 1), reduction="batchmean", log_target=True)
    return settings.alpha * t * t * soft + (1 - settings.alpha) * F.cross_entropy(scores, labels)


def batches(data: Dataset, settings: Glue) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `settings.steps` batches in shuffled passes over the training images; each image is changed by itself."""
    from torchvision.transforms import v2

    change = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(data.input_shape[1:], padding=2)])
    done = 0
    while done < settings.steps:
        order = torch.randperm(len(data.train))
        for start in range(0, len(order) - settings.batch + 1, settings.batch):
            if done == settings.steps:
                break
            indices = order[start : start + settings.batch]
            pixels = torch.stack([change(one) for one in data.train.pixels(indices)])
            x = data.preprocessing.inputs(pixels)[0].contiguous(memory_format=torch.channels_last)
            yield x, data.train.labels[indices]
            done += 1


def export(student: nn.Module, data: Dataset, path: Path) -> None:
    """Write the float file, weights inside, with a dynamic batch."""
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        student.eval(), (torch.rand(2, *data.input_shape),), path, input_names=["x"], output_names=["output"],
        dynamic_shapes=({0: batch},), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def quantize(folder: Path, data: Dataset, settings: Glue) -> None:
    """Write the int8 files.

    `S8S8` is ONNX Runtime's default, `U8S8` what its documentation advises for x86-64, and `U8S7` (`reduce_range`) what
    it advises for processors without VNNI.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    indices = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(settings.seed))
    images, _ = data.batch(data.train, indices[: settings.calibration])
    for name, activations in ((S8S8, QuantType.QInt8), (U8S8, QuantType.QUInt8), (U8S7, QuantType.QUInt8)):
        quantize_static(
            folder / FLOAT, folder / name, Examples(images.numpy()), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=activations, weight_type=QuantType.QInt8, reduce_range=name == U8S7,
        )  # fmt: skip


class Examples:
    """Calibration images `(count, ...)` in the form that ONNX Runtime reads them."""

    def __init__(self, images: NDArray[Any], batch: int = 64) -> None:
        self._parts = iter(np.array_split(images, max(1, len(images) // batch)))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch, or None at the end."""
        part = next(self._parts, None)
        return None if part is None else {"x": part}


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began
