"""What a pretrained model's own card says of its images: the numbers that normalise them, and their size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .data import Dataset
from .preprocessing import Preprocessing


@dataclass(frozen=True)
class Card:
    """How the images were fed that a model learnt from.

    Attributes:
        mean: subtracted from pixels in 0 to 1, for each channel.
        std: then divided by.
        size: `(height, width)` in pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]


def card_of(source: str, weights: str | Path | None) -> Card | None:
    """Return the card of a model of timm or torchvision with weights; None where there is none.

    Args:
        source: as `load` takes it.
        weights: as `load` takes them; fresh weights have no card. Those of a file are taken for weights that learnt as
            the library's own did.
    """
    library, _, name = source.partition(":")
    if weights is None or library not in ("timm", "torchvision") or find_spec(library) is None:
        return None
    return _of_timm(name) if library == "timm" else _of_torchvision(name, str(weights))


def _of_timm(name: str) -> Card | None:
    found = import_module("timm").models.get_pretrained_cfg(name)
    if found is None:
        return None
    return Card(tuple(found.mean), tuple(found.std), tuple(found.input_size[-2:]))


def _of_torchvision(name: str, weights: str) -> Card | None:
    try:
        offered: Any = import_module("torchvision.models").get_model_weights(name)
    except ValueError:
        return None  # `load` says so
    known = offered.__members__
    asked = weights.rpartition(".")[2]
    chosen = known.get(asked) or known.get("DEFAULT")
    if chosen is None:
        return None
    shown = chosen.transforms()
    edge = int(shown.crop_size[0])
    return Card(tuple(shown.mean), tuple(shown.std), (edge, edge))


def normalised(data: Dataset, card: Card) -> Dataset:
    """Return images normalised as a card says; grey ones by the mean of its numbers."""
    channels = data.input_shape[0]
    mean, std = card.mean, card.std
    if len(mean) != channels:
        mean, std = ((sum(numbers) / len(numbers),) for numbers in (mean, std))
    how = Preprocessing(mean=mean, std=std)
    made = hashlib.sha256(f"{data.fingerprint}|{how}".encode()).hexdigest()
    facts: Mapping[str, Any] = {**data.facts, "normalised_by": "the model's card"}
    return replace(data, preprocessing=how, fingerprint=made, facts=MappingProxyType(facts))
