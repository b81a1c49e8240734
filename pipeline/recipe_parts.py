"""The parts of a recipe: frozen plain values. Their types are what pydantic checks a recipe against."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import ConfigDict, Field, with_config

from ..compress.distill import Distill
from ..compress.passes import Pass
from ..compress.prune import Prune
from ..compress.quantize import Quantize
from ..compress.sparsify import Sparsify
from ..compress.surroundings import Autocast
from ..compress.transfer import Transfer
from ..compress.trim import Trim
from ..export.engine_settings import Hardware
from .recipe_metrics import FigureName, Runtime

_CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[int, Ge(1)]
Text = Annotated[str, MinLen(1)]
TokenInput = Literal["input_ids", "attention_mask", "token_type_ids"]


@with_config(_CLOSED)
@dataclass(frozen=True)
class TrainPart:
    """Where passes train.

    Attributes:
        device: `cpu`, or `cuda` or `cuda:N` for a GPU.
        autocast: the format of operators that bear it: `off`, `bf16` or `fp16`.
        devices: processes that train together, each on a CPU or a GPU of its own.
        strategy: how: `ddp` divides each batch.
        tensorboard: whether curves are written.
    """

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:[0-9]+)?)$")] = "cpu"
    autocast: Autocast = "off"
    devices: Positive = 1
    strategy: Literal["ddp"] = "ddp"
    tensorboard: bool = False


PASSES: dict[str, type[Pass]] = {
    "transfer": Transfer,
    "trim": Trim,
    "prune": Prune,
    "sparsify": Sparsify,
    "distill": Distill,
    "quantize": Quantize,
}
CLAIM_SPEED = ("trim", "prune", "quantize")
"""Passes that are dropped where they make the file no faster."""


@with_config(_CLOSED)
@dataclass(frozen=True)
class ModelPart:
    """What is compressed; in a `Recipe`, files are absolute.

    Attributes:
        source: `reference:NAME`, `torchvision:NAME`, `file.py:factory` or a `.pt2` file.
        weights: a state-dict file.
        input: the shape of one example, without the batch.
        classes: the number of classes, where the source lets one choose.
    """

    source: Text
    weights: Text | None = None
    input: Annotated[tuple[Positive, ...], MinLen(1)] | None = None
    classes: Positive | None = None


@with_config(_CLOSED)
@dataclass(frozen=True)
class DataPart:
    """What it is trained, calibrated and scored on; in a `Recipe`, files are absolute.

    Attributes:
        source: `fashion-mnist`, `cifar10`, `cifar100`, a folder with one folder of images or recordings per class, a
            table of sentences, `file.py:function` or `hf:NAME_OR_FOLDER`.
        root: where the full data set lies.
        size: height and width that images are resized to.
        mean: subtracted from pixels in 0 to 1, one number or one for each channel.
        std: then divided by, as many numbers.
        text, label, split, group: columns of a table; of recordings, `group` is a regular expression on file names.
        tokenizer: a `tokenizer.json`, or a folder with one.
        max_length: tokens beyond it are cut off.
        inputs: what a model of text takes, in its order.
        fixed_length: fill every sentence up to `max_length`.
        sample_rate: that recordings are resampled to, in Hz.
        seconds: that they are cut or filled up to.
    """

    source: Text
    root: Text | None = None
    size: tuple[Positive, Positive] | None = None
    mean: Annotated[tuple[float, ...], MinLen(1)] | None = None
    std: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] | None = None
    text: Text | None = None
    label: Text | None = None
    split: Text | None = None
    group: Text | None = None
    tokenizer: Text | None = None
    max_length: Positive | None = None
    inputs: Annotated[tuple[TokenInput, ...], MinLen(1)] | None = None
    fixed_length: bool | None = None
    sample_rate: Positive | None = None
    seconds: Annotated[float, Gt(0)] | None = None


def plain_data(part: DataPart) -> dict[str, Any]:
    """Leave out what came later where it is not given, so that recipes from before keep their hash."""
    first = ("source", "root", "mean", "std")
    return {name: value for name, value in asdict(part).items() if name in first or value is not None}


@with_config(_CLOSED)
@dataclass(frozen=True)
class OnnxPart:
    """The ONNX file: its opset, and the least and largest batch it takes (null: `profile.batch` alone).

    `keep_fp32` says what stays in fp32 in a file of lower precision: `auto`, `none`, or patterns of operator types,
    module paths or nodes.
    """

    opset: Annotated[int, Ge(18), Le(25)] = 20
    dynamic_batch: tuple[Positive, Positive] | None = (1, 32)
    keep_fp32: Literal["auto", "none"] | tuple[Text, ...] = "auto"


@with_config(_CLOSED)
@dataclass(frozen=True)
class TensorrtPart:
    """The TensorRT engine; the precision is that of `quantize` where the recipe has it, else fp16, unless it is given.

    The rest is as in `EngineSettings`, in megabytes and gigabytes of 10^6 and 10^9 bytes.
    """

    flavour: Literal["rtx", "tensorrt"] = "rtx"
    precision: Literal["int8", "int8-weights", "int4-weights", "fp16", "bf16", "mixed", "fp32"] | None = None
    compute_capabilities: tuple[Text, ...] = ()
    version_compatible: bool = False
    hardware: Hardware = "none"
    optimization_level: Annotated[int, Ge(0), Le(5)] | None = None
    workspace_mb: Annotated[float, Gt(0)] | None = None
    builds: Annotated[int, Ge(1), Le(20)] = 1
    timeout_seconds: Annotated[float, Gt(0)] = 900.0
    memory_gb: Annotated[float, Gt(0)] | None = None


@with_config(_CLOSED)
@dataclass(frozen=True)
class ExportPart:
    """Which files are made."""

    onnx: OnnxPart = field(default_factory=OnnxPart)
    tensorrt: TensorrtPart | None = None


@with_config(_CLOSED)
@dataclass(frozen=True)
class ProfilePart:
    """How latency is measured; `budget_seconds` is for each runtime, and once more for each of `figures`.

    With `allow_fallback` a file is measured on a GPU even where some of its operators run on the CPU; reports say so.
    """

    runtimes: Annotated[tuple[Runtime, ...], MinLen(1)] = ("ort-cpu",)
    batch: Positive = 1
    threads: Positive = 1
    budget_seconds: Annotated[float, Gt(0), Le(3600)] = 20.0
    figures: tuple[FigureName, ...] = ()
    allow_fallback: bool = False


@with_config(_CLOSED)
@dataclass(frozen=True)
class GoalPart:
    """A goal as it is written: one of the two bounds, and the runtime it is about."""

    min: float | None = None
    max: float | None = None
    on: Runtime | None = None


@dataclass(frozen=True)
class Step:
    """One compression pass with its settings; calling `settings` applies it.

    Attributes:
        insist: keep it even where it makes the file no faster.
        dropped: a build found that it does not pay; no recipe says so.
    """

    name: str
    settings: Pass
    insist: bool = False
    dropped: bool = False
