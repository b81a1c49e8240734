"""What `quantization_accuracy.py` quantizes: trained models with their data, behind one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from numpy.typing import NDArray

import shipworthy as sw
from shipworthy.benchmarks.accuracy_images import held_out, image_data, trained
from shipworthy.benchmarks.common import fewer_tests
from shipworthy.export.artifact import Target
from shipworthy.export.engine_settings import Bounds
from shipworthy.export.int8 import Int8Settings, in_parts, settings_of

if TYPE_CHECKING:
    from shipworthy.models.data import Dataset
    from shipworthy.models.model import Model

Array = NDArray[Any]
Files = dict[Target, Path]
Told = Callable[[int, int], object]

TARGETS: tuple[Target, ...] = get_args(Target)
AS_IT_COMES, LAYERS, TRAINED = "as it comes", "max_drop", "steps"
TEXT = "minilm"
GOALS = {"reference:fashion-resnet20": 0.3, "efficientnet_lite0": 1.0, "mobilenet_v2": 1.0, TEXT: 0.5}
"""By model: points of accuracy that int8 may lose."""

PASSES: dict[str, dict[str, Any]] = {
    AS_IT_COMES: {},
    "percentile": {"method": "percentile"},
    "entropy": {"method": "entropy"},
    "mse": {"method": "mse"},
    "equalize": {"equalize": True},
    "correct_bias": {"correct_bias": True},
    LAYERS: {},
    TRAINED: {"steps": 200},
}
SCHEMES = {
    AS_IT_COMES: Int8Settings(),
    "smooth 0.5": Int8Settings(smooth=0.5),
    "dynamic": Int8Settings(scheme="dynamic"),
    "int8-weights": Int8Settings(scheme="int8-weights"),
}
_CALIBRATION = 512
_TEXTS = 256
_JUDGED = 2000
_QUICK_STEPS, _QUICK_TESTS = 8, 200
_SEARCH_S = 20.0


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model.

    Attributes:
        name: a key of `GOALS`.
        settings: what is tried, in the order in which it is to be taken.
        labels: the right classes of `test` and of `held`, examples that were not learnt from.
        classes: gives a file's classes for one of the two.
        write: writes the files of a setting into a folder, by target.
        write_float: writes the fp32 file.
        example: what latency is measured on; None: random numbers.
        shapes: of an engine's inputs, where the batch is not all that varies.
    """

    name: str
    settings: tuple[str, ...]
    labels: Mapping[str, Array]
    classes: Callable[[Path, str], Array]
    write: Callable[[str, Path], Files]
    write_float: Callable[[Path], object]
    example: Mapping[str, Array] | None = None
    shapes: Mapping[str, Bounds] = field(default_factory=dict)


def subject(name: str, workdir: Path, quick: bool, told: Told) -> Subject:
    """Return a model with its data; it is trained first where `workdir` does not hold it."""
    return _sentences(workdir, quick, told) if name == TEXT else _images(name, workdir, quick, told)


def _images(name: str, workdir: Path, quick: bool, told: Told) -> Subject:
    from shipworthy.export.score import predict

    model = trained(name, workdir, _QUICK_STEPS if quick else None, told)
    parts = {"test": image_data(name), "held": held_out(name)}
    parts["held"] = fewer_tests(parts["held"], _JUDGED)
    parts = {part: fewer_tests(data, _QUICK_TESTS) if quick else data for part, data in parts.items()}

    def write(setting: str, folder: Path) -> Files:
        change = PASSES[setting] | ({"steps": _QUICK_STEPS} if quick and setting == TRAINED else {})
        marked = sw.Quantize(calibration=_CALIBRATION, **change)(model, data=parts["test"], teacher=model).model
        if setting == LAYERS:
            marked = _with_layers(marked, parts["test"], GOALS[name] / 2)
        files = {target: folder / f"{target}.onnx" for target in TARGETS}
        for target, path in files.items():
            sw.to_onnx(marked, path, target=target)
        return files

    return Subject(
        name, tuple(PASSES), {part: data.test.labels.numpy() for part, data in parts.items()},
        lambda path, part: predict(path, parts[part], parts[part].test), write,
        lambda path: sw.to_onnx(model, path, "fp32"),
    )  # fmt: skip


def _with_layers(marked: Model, data: Dataset, most: float) -> Model:
    """Return the model with the layers named that a recipe's `max_drop` keeps in fp32, as the build finds them."""
    from shipworthy.export.qat_scales import graph_with_grids
    from shipworthy.export.quant_layers import QuantLayers
    from shipworthy.pipeline.layer_judge import Judging
    from shipworthy.pipeline.mixed_precision import search

    asked = marked.quantization
    assert asked is not None
    graph, known = graph_with_grids(marked, 20)
    name = graph.proto.graph.input[0].name
    layers = QuantLayers(graph.filled(), in_parts({name: asked.calibration[0].numpy()}), "cpu", settings_of(asked), known)  # fmt: skip # noqa: E501
    x, y = data.batch(data.train, data.sample(_CALIBRATION + _JUDGED, 0)[_CALIBRATION:])
    found = search(layers, Judging(in_parts({name: x.numpy()}), y.numpy(), most), sw.Plan(budget_s=_SEARCH_S))
    return replace(marked, quantization=replace(asked, options={**asked.options, "keep_float": found.keep}))


def _sentences(workdir: Path, quick: bool, told: Told) -> Subject:
    from shipworthy.benchmarks.accuracy_text import TOKENS, predicted, texts, trained_text, typical
    from shipworthy.export.quantize_file import quantize_onnx

    model = trained_text(workdir, _QUICK_STEPS if quick else None, told)
    given = {part: one.first(_QUICK_TESTS) if quick else one for part, one in texts().items()}

    def write(setting: str, folder: Path) -> Files:
        chosen = SCHEMES[setting]
        sw.to_onnx(model, folder / "fp32.onnx", "fp32")
        shown = given["train"].mixed().inputs(_TEXTS) if chosen.scheme == "int8" else None
        targets = TARGETS if chosen.scheme != "dynamic" else ("cpu",)
        files: Files = {target: folder / f"{target}.onnx" for target in targets}
        for target, path in files.items():
            quantize_onnx(folder / "fp32.onnx", path, shown, target, chosen)
        return files

    example = typical(given["test"])
    return Subject(
        TEXT, tuple(SCHEMES), {part: given[part].labels for part in ("test", "held")},
        lambda path, part: predicted(path, given[part]), write, lambda path: sw.to_onnx(model, path, "fp32"), example,
        {name: ((1, 1), (1, array.shape[1]), (32, TOKENS)) for name, array in example.items()},
    )  # fmt: skip


__all__ = ["AS_IT_COMES", "GOALS", "PASSES", "SCHEMES", "TARGETS", "TEXT", "Subject", "subject"]
