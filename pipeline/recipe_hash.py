"""The hash of what in a recipe led to a model: it goes into the file, so that both can be matched later."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from .recipe import Recipe
from .recipe_parts import plain_data


def led_to(recipe: Recipe, label: str) -> str:
    """Return the SHA-256 of the model, the data and the passes up to the one of this label, as the recipe has them.

    Goals, measurements and exports are not in it: a file does not change with them. Nor are passes that a build has
    dropped. A label of no pass stands for the model before all passes.

    Args:
        recipe: as it was read.
        label: of a step: a pass, with its number from the second of a kind on (`prune-2`).
    """
    model, data = recipe.written
    labels = recipe.labels
    steps = recipe.compress[: labels.index(label) + 1 if label in labels else 0]
    held = {
        "model": asdict(model),
        "data": plain_data(data) if data else None,
        "compress": [[step.name, asdict(step.settings)] for step in steps if not step.dropped],  # type: ignore[call-overload]  # a dataclass
    }
    return hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode()).hexdigest()
