"""The data of a recipe, as it and the model's card have them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from ..models.cards import card_of, normalised
from ..models.data import Dataset, open_data
from .recipe import DataPart, Recipe
from .recipe_checks import TABLE


def data_of(recipe: Recipe) -> Dataset | None:
    """Open the data of a recipe; None where it has none.

    Raises:
        BadInput: they cannot be opened.
    """
    part = recipe.data
    if part is None:
        return None
    given = {one.name: getattr(part, one.name) for one in fields(part)}
    card = card_of(recipe.model.source, recipe.model.weights) if recipe.adapts else None
    if given["size"] is None and _holds_images(part):
        shape = recipe.model.input
        asked = (shape[-2], shape[-1]) if shape and len(shape) == 3 and Path(part.source).is_dir() else None
        given["size"] = asked or (card.size if card else None)
    data = open_data(**given)
    follow = card is not None and data.task == "image-classification" and part.mean is None and part.std is None
    return normalised(data, card) if card and follow else data


def _holds_images(part: DataPart) -> bool:
    """Whether a source, which is not open yet, may be resized: names and functions are of images, most folders too."""
    table_or_hub = TABLE.search(part.source) or part.source.startswith("hf:")
    return not table_or_hub and part.seconds is None and part.sample_rate is None
