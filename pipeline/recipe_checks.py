"""What a recipe's parts must be to each other and to the disk; torch-free, so faults come at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..compress.distill import ITSELF, ORIGINAL, Distill
from ..compress.passes import Pass
from ..compress.prune import Prune
from ..compress.quantize import Quantize
from ..compress.trim import Trim
from ..export.engine_settings import check_settings
from ..export.opsets import LEAST
from ..models.errors import BadInput
from ..models.schemes import QUANTIZED, precision_of
from ..profile.goals import Goal
from .engine_part import engine_settings
from .recipe_faults import Key, show, suggest
from .recipe_metrics import METRICS, Runtime
from .recipe_parts import CLAIM_SPEED, DataPart, ExportPart, GoalPart, ModelPart, ProfilePart, Step, TensorrtPart

Say = Callable[..., None]
"""`say(key, message, at_key=False)` notes a fault."""

REFERENCES = ("fashion-resnet20",)
DATA_SETS = ("fashion-mnist", "cifar10", "cifar100")
TABLE = re.compile(r"\.(csv|tsv|parquet)(\.(gz|bz2|xz))?$", re.IGNORECASE)
"""How the name of a table ends."""
BUNDLED = "bundled"
"""The `data.root` that asks for the images in the package."""
SOURCES = ("reference", "torchvision", "timm", "transformers")
_FORMS = "`reference:NAME`, `torchvision:NAME`, `timm:NAME`, `transformers:FOLDER`, `path/to/file.py:factory` or a `.pt2` file"  # fmt: skip # noqa: E501
PRETRAINED = "pretrained"


def absolute(text: str, folder: Path) -> str:
    """Return a path of the recipe as an absolute one; relative paths start at the recipe's folder."""
    return str((folder / Path(text).expanduser()).resolve())


def model_source(source: str, folder: Path, say: Say, key: Key = ("model", "source")) -> str:
    """Check the form of a model source; return it with its file, if it has one, made absolute."""
    if code := _python(source):
        return _code_file(code, folder, key, "factory", say)
    name, colon, rest = source.partition(":")
    if source.endswith(".pt2"):
        return _file(source, folder, key, "a .pt2 file", say)
    if name == "transformers" and (Path(absolute(rest, folder)) / "config.json").is_file():
        return f"{name}:{absolute(rest, folder)}"
    if colon and name not in SOURCES:
        say(key, f"got {show(source)}, wanted {_FORMS}; {suggest(name, SOURCES)}")
    elif name == "reference" and rest not in REFERENCES:
        say(key, f"got {show(source)}, no such reference model; {suggest(rest, REFERENCES)}")
    elif not colon or (name == "torchvision" and not rest.isidentifier()):
        near = suggest(source, REFERENCES)
        say(key, f"got {show(source)}, wanted {_FORMS}{'; ' + near if 'mean' in near else ''}")
    return source


def teacher_sources(settings: Pass, folder: Path, say: Say, key: Key) -> tuple[str, ...]:
    """Check who teaches in a pass; return them with files made absolute."""
    if not isinstance(settings, Distill):
        return (ORIGINAL,)
    known = (ORIGINAL, ITSELF)
    places = enumerate(settings.teachers)
    return tuple(n if n in known else model_source(n, folder, say, (*key, "teachers", i)) for i, n in places)


def data_source(source: str, folder: Path, say: Say) -> str:
    """Check the form of a data source; return it with its file or folder, if it has one, made absolute."""
    key: Key = ("data", "source")
    if source in DATA_SETS:
        return source
    if code := _python(source):
        return _code_file(code, folder, key, "function", say)
    if source.startswith("hf:"):
        near_by = absolute(source.removeprefix("hf:"), folder)
        return f"hf:{near_by}" if Path(near_by).is_dir() else source
    if TABLE.search(source):
        return _file(source, folder, key, "a table of sentences", say)
    place = absolute(source, folder)
    if not Path(place).is_dir():
        near = suggest(source, DATA_SETS)
        hint = (
            near
            if "mean" in near
            else "give `fashion-mnist`, a folder of images or recordings per class, a table of sentences (.csv, .tsv, "
            ".parquet), or `file.py:function`"
        )
        say(key, f"got {show(source)}, and there is no folder {place}; {hint}")
    return place


def _python(source: str) -> re.Match[str] | None:
    return re.fullmatch(r"(.+\.py)(?::(.*))?", source)


def _code_file(code: re.Match[str], folder: Path, key: Key, what: str, say: Say) -> str:
    file, name = code[1], code[2] or ""
    if not name.isidentifier():
        say(key, f"got {show(code[0])}, wanted the {what}'s name after the file: `{file}:NAME`")
    return f"{_file(file, folder, key, 'a Python file', say)}:{name}"


def _file(text: str, folder: Path, key: Key, what: str, say: Say) -> str:
    place = absolute(text, folder)
    if not Path(place).is_file():
        say(key, f"no such file: {place}; wanted {what} (paths start at the recipe's folder)")
    return place


def model_part(part: ModelPart, folder: Path, say: Say) -> ModelPart:
    """Check the model's files; return the part with absolute paths."""
    weights = part.weights
    if weights and weights != PRETRAINED:
        weights = _file(weights, folder, ("model", "weights"), "a state-dict file", say)
    return ModelPart(model_source(part.source, folder, say), weights, part.input, part.classes)


def data_part(part: DataPart, folder: Path, say: Say) -> DataPart:
    """Check the data's files; return the part with absolute paths."""
    bundled = part.root == BUNDLED
    root = part.root if bundled else part.root and absolute(part.root, folder)
    if root and not bundled and not Path(root).is_dir():
        say(("data", "root"), f"no such folder: {root}; give the one that holds the data files, or leave `root` out")
    if part.mean and part.std and len(part.mean) != len(part.std):
        say(("data", "std"), f"got {len(part.std)} numbers, and `mean` has {len(part.mean)}; give one for each channel")
    tokenizer = part.tokenizer and absolute(part.tokenizer, folder)
    if tokenizer and not Path(tokenizer).exists():
        say(("data", "tokenizer"), f"no such file: {tokenizer}; give a tokenizer.json, or a folder with one")
    if TABLE.search(part.source) and not tokenizer:
        say(("data", "source"), "a table of sentences needs `tokenizer`: a tokenizer.json, or a folder with one")
    return replace(part, source=data_source(part.source, folder, say), root=root, tokenizer=tokenizer)


def check_steps(steps: Sequence[tuple[int, Step]], has_data: bool, say: Say) -> None:
    """Check that passes have the data they need, that nothing follows quantization, and no pruning 2:4 sparsity."""
    quantized = grouped = False
    for index, step in steps:
        key: Key = ("compress", index, step.name)
        use, other = _use_of_data(step)
        if not has_data and use:
            say(key, f"{use} training data, and the recipe has none; add a `data` section{other}", at_key=True)
        if step.settings.adapts and index:
            say(key, "must be the first pass: what it gives is the baseline; move it up", at_key=True)
        if quantized:
            say(key, "comes after `quantize`, which must be the last pass and given once; move it up", at_key=True)
        if grouped and step.name == "prune":
            say(
                key,
                "comes after `sparsify` with 2:4, whose groups of four channels it would tear; move it up",
                at_key=True,
            )
        quantized = quantized or step.name == "quantize"
        grouped = grouped or getattr(step.settings, "pattern", "") == "2:4"


def take_insist(settings: Any, name: str, key: Key, say: Say) -> tuple[Any, bool]:
    """Part a pass's own settings from `insist`, which is about the pass; return both."""
    if not isinstance(settings, dict) or "insist" not in settings:
        return settings, False
    own, insist = {k: v for k, v in settings.items() if k != "insist"}, settings["insist"]
    if not isinstance(insist, bool):
        say((*key, "insist"), f"got {show(insist)}, wanted true or false")
    elif name not in CLAIM_SPEED:
        say((*key, "insist"), f"is for passes that may be dropped ({', '.join(CLAIM_SPEED)}); leave it out", True)
    return own, insist is True


def _use_of_data(step: Step) -> tuple[str, str]:
    """Return what a step needs data for, and what could be done without; empty if it needs none."""
    settings = step.settings
    if isinstance(settings, Quantize):
        return ("calibrates on", ", or use a `scheme` without calibration") if settings.scheme == "int8" else ("", "")
    if isinstance(settings, Prune) and settings.score in ("taylor", "activation", "reconstruction"):
        return "scores channels on", ", or use `score: l2`"
    if isinstance(settings, Prune) and settings.recover is not None:
        return "recovers between rounds on", ", or leave `recover` out"
    if isinstance(settings, Trim) and isinstance(settings.blocks, int):
        return "chooses blocks on", ", or name them"
    return ("trains on" if step.name in ("transfer", "distill") else ""), ""


def check_export(export: ExportPart, quantizes: bool, say: Say) -> None:
    """Check that the files can be made as asked."""
    batches = export.onnx.dynamic_batch
    if batches and batches[0] > batches[1]:
        message = f"got [{batches[0]}, {batches[1]}], wanted the smallest batch first; swap the two"
        say(("export", "onnx", "dynamic_batch"), message)
    if export.tensorrt and export.tensorrt.precision in QUANTIZED and not quantizes:
        message = f"{export.tensorrt.precision} needs a `quantize` pass in `compress`; add `- quantize`, or say fp16"
        say(("export", "tensorrt", "precision"), message)
    least = LEAST.get(export.tensorrt.precision or "", 0) if export.tensorrt else 0
    if export.tensorrt and export.onnx.opset < least:
        has = f"export.onnx.opset is {export.onnx.opset}"
        message = f"{export.tensorrt.precision} needs opset {least}, and {has}; set it to {least}"
        say(("export", "tensorrt", "precision"), message)
    if export.tensorrt:
        _check_engine(export.tensorrt, say)


def check_schemes(steps: Sequence[tuple[int, Step]], export: ExportPart, say: Say) -> None:
    """Check that TensorRT can run what is quantized, and that its file is asked for in that precision or in a float."""
    named = export.tensorrt.precision if export.tensorrt else None
    for index, step in steps:
        settings = step.settings
        if export.tensorrt is None or not isinstance(settings, Quantize) or named not in (None, *QUANTIZED):
            continue
        made = precision_of(settings.scheme)
        if settings.scheme == "dynamic":
            say(
                ("compress", index, step.name, "scheme"),
                "TensorRT takes scales from the file only, and `dynamic` has none; use int8, int8-weights or "
                "int4-weights, set `export.tensorrt.precision: fp16`, or leave `export.tensorrt` out",
            )
        elif named not in (None, made):
            say(
                ("export", "tensorrt", "precision"),
                f"got {show(named)}, and `quantize` makes {made}; leave it out, or say {made} or fp16",
            )


def _check_engine(part: TensorrtPart, say: Say) -> None:
    """Check that the flavour knows the settings."""
    try:
        check_settings(engine_settings(part), part.flavour)
    except BadInput as fault:
        name, _, message = str(fault).partition(": ")
        say(("export", "tensorrt", name), message)


def check_profile(profile: ProfilePart, export: ExportPart | None, say: Say) -> None:
    """Check that what is profiled is made, and takes the batch."""
    for index, runtime in enumerate(profile.runtimes):
        key: Key = ("profile", "runtimes", index)
        if runtime in profile.runtimes[:index]:
            say(key, f"`{runtime}` is given twice; keep one of the two")
        if runtime == "tensorrt" and export and not export.tensorrt:
            say(key, "`tensorrt` needs an engine; add `tensorrt: {}` to `export`")
    for index, name in enumerate(profile.figures):
        if name in profile.figures[:index]:
            say(("profile", "figures", index), f"`{name}` is given twice; keep one of the two")
    batches = export.onnx.dynamic_batch if export else None
    if batches and not batches[0] <= profile.batch <= max(batches):
        message = f"got {profile.batch}, outside export.onnx.dynamic_batch [{batches[0]}, {batches[1]}]; widen that"
        say(("profile", "batch"), message)


def make_goal(name: str, part: GoalPart, runtimes: Sequence[Runtime] | None, has_data: bool, say: Say) -> Goal | None:
    """Check one goal against what its metric is; return None where it is faulty.

    Args:
        name: a key of `METRICS`.
        part: the goal as written.
        runtimes: what is profiled; None when that is itself faulty.
        has_data: whether the recipe names data.
        say: notes a fault.
    """
    metric, key = METRICS[name], ("goals", name)
    given = {bound: limit for bound, limit in (("min", part.min), ("max", part.max)) if limit is not None}
    if list(given) != [metric.bound]:
        better = "less" if metric.bound == "max" else "more"
        got = " and ".join(f"`{bound}`" for bound in given) or "no bound"
        say(key, f"got {got}, wanted `{metric.bound}` alone ({metric.unit}; {better} is better)", at_key=True)
        return None
    limit = given[metric.bound]
    if not metric.low < limit <= metric.high:
        up_to = f" and at most {metric.high:g}" if metric.high < float("inf") else ""
        say((*key, metric.bound), f"got {show(limit)}, wanted more than {metric.low:g}{up_to} ({metric.unit})")
    if metric.needs_data and not has_data:
        say(key, "is counted on test data, and the recipe has none; add a `data` section", at_key=True)
    if part.on and not metric.on_runtime:
        say((*key, "on"), "does not depend on the runtime; leave `on` out", at_key=True)
    on: Runtime | None = (part.on or "ort-cpu") if metric.on_runtime else None
    if on and runtimes is not None and on not in runtimes:
        say((*key, "on"), f"`{on}` is not profiled; add it to profile.runtimes (now: {', '.join(runtimes)})")
    return Goal(name, part.min, part.max, on)
