"""All faults of a recipe in one error: each with its place, its key, what was got and what is wanted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ..models.errors import BadInput

MOST_SHOWN = 50

Key = tuple[str | int, ...]
"""Where a value sits in the recipe: `("compress", 0, "prune", "ratio")`."""


@dataclass(frozen=True, order=True)
class Fault:
    """One thing wrong in a recipe; lines and columns count from 1."""

    line: int
    column: int
    key: str
    message: str


class RecipeFaults(BadInput):
    """Every fault that was found in one recipe.

    Attributes:
        path: the recipe.
        faults: in the order of their places.
    """

    def __init__(self, path: str, faults: Iterable[Fault]) -> None:
        self.path = path
        self.faults = tuple(sorted(set(faults)))
        count = f"{len(self.faults)} faults" if len(self.faults) > 1 else "1 fault"
        lines = [f"{path}: {count}", *(f"  {self._line(fault)}" for fault in self.faults[:MOST_SHOWN])]
        if len(self.faults) > MOST_SHOWN:
            lines.append(f"  and {len(self.faults) - MOST_SHOWN} more")
        super().__init__("\n".join(lines))

    def _line(self, fault: Fault) -> str:
        key = f" {fault.key}:" if fault.key else ""
        return f"{self.path}:{fault.line}:{fault.column}:{key} {fault.message}"


def dotted(key: Key) -> str:
    """Write a key's path as `compress[0].prune.ratio`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def suggest(name: object, known: Iterable[str]) -> str:
    """Name the known name that is nearest to a misspelt one, or all of them."""
    names = list(known)
    near = get_close_matches(str(name).lower().replace("-", "_"), names, n=1, cutoff=0.55) or get_close_matches(
        str(name).lower(), names, n=1, cutoff=0.55
    )
    return f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(names) or 'none'}"


def show(value: Any) -> str:
    """Say what was got: the value as written in YAML, and what kind of thing it is."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (a yes or no)"
    if isinstance(value, str):
        return f'"{_short(value)}" (text)'
    if isinstance(value, int | float):
        return f"{_short(repr(value))} (a {'whole ' if isinstance(value, int) else ''}number)"
    return "a list" if isinstance(value, list | tuple) else "a mapping"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
