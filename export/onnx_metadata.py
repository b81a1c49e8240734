"""What an ONNX file says of itself: where it comes from, what it takes and gives, and how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from pathlib import PurePath
from typing import Any

import onnx
from onnx import ModelProto, StringStringEntryProto
from torch import Tensor, uint8

from ..models.data import Dataset
from ..models.errors import BadInput
from ..models.model import Model
from ..models.schemes import QUANTIZED
from .artifact import Precision, Target
from .onnx_graph import OnnxGraph

PREFIX = "shipworthy."
TOOLS = ("torch", "onnx", "onnxscript")


@dataclass(frozen=True)
class Notes:
    """What only the caller knows of a file.

    Attributes:
        recipe_sha256: of what in the recipe led to the model; goals and measurements are not in it.
        preprocessing: how its inputs are made, as each kind's `to_dict` has it; of images with their `layout`.
        classes: what its scores stand for, in order.
        task: what it tells of each example, as `text-classification`.
    """

    recipe_sha256: str = ""
    preprocessing: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()
    task: str = ""


def write_metadata(graph: OnnxGraph, model: Model, precision: Precision, target: Target, notes: Notes) -> None:
    """Note what is known of a graph in its properties, in place; other properties stay.

    Two exports of the same model by the same tools note the same: no time, no folder, no machine.
    """
    found = {
        "source": source_name(model.source),
        "weights_sha256": weights_sha256(model),
        "precision": precision,
        "scheme": _scheme(model, precision),
        "target": target if precision in QUANTIZED else "",
        "fp32_nodes": ",".join(sorted(graph.fp32_nodes)),
        "recipe_sha256": notes.recipe_sha256,
        "preprocessing": json.dumps(notes.preprocessing, sort_keys=True) if notes.preprocessing else "",
        "task": notes.task,
        "classes": json.dumps(list(notes.classes), ensure_ascii=False) if notes.classes else "",
        "tools": ", ".join(f"{name} {one}" for name, one in tools().items()),
    }
    held = {entry.key: entry.value for entry in graph.proto.metadata_props}
    held |= {PREFIX + key: value for key, value in found.items() if value}
    del graph.proto.metadata_props[:]
    graph.proto.metadata_props.extend(StringStringEntryProto(key=key, value=held[key]) for key in sorted(held))


def _scheme(model: Model, precision: Precision) -> str:
    """Return what becomes integers in a file, and how; nothing where nothing does."""
    asked = model.quantization.scheme if model.quantization else precision
    return asked if precision in QUANTIZED else ""


def notes_of(data: Dataset, recipe_sha256: str = "") -> Notes:
    """Return what data says of a model's input and classes."""
    layout = {"layout": "NCHW"} if data.task == "image-classification" else {}
    return Notes(recipe_sha256, data.preprocessing.to_dict() | layout, tuple(data.classes), data.task)


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """Return the properties of ours in an ONNX file, without their prefix.

    Raises:
        BadInput: the file is no ONNX.
    """
    try:
        proto: ModelProto = onnx.load(path, load_external_data=False)
    except Exception as fault:  # protobuf's own, which is no dependency of ours
        raise BadInput(f"{path}: not an ONNX file, or cut off ({fault})") from fault
    return {e.key.removeprefix(PREFIX): e.value for e in proto.metadata_props if e.key.startswith(PREFIX)}


def tools() -> dict[str, str]:
    """Return the versions of what makes the file."""
    return {name: version(name) for name in TOOLS}


def source_name(source: str) -> str:
    """Return a model's source without the folder that it lies in: `net.py:make`, `torchvision:resnet18`."""
    return PurePath(source).name if source else ""


def weights_sha256(model: Model) -> str:
    """Return the hash of all parameters and buffers with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in sorted(model.module.state_dict().items()):
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()
