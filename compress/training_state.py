"""Unfinished training on disk, so that a killed run goes on where it was and ends with the same weights."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.files import replacing

SCHEMA = 1


@dataclass(frozen=True)
class Keep:
    """Where and how often the state of training is kept.

    Attributes:
        path: of the file; it is replaced whole, and gone when training ends.
        key: a hash of everything that decides the training; a file with another one is not used.
        every: steps between two writings.
    """

    path: Path
    key: str
    every: int = 100

    def write(self, state: Mapping[str, Any]) -> None:
        """Write a state of tensors and plain values, with torch's source of chance."""
        held = io.BytesIO()
        torch.save({"schema": SCHEMA, "key": self.key, "chance": torch.get_rng_state(), **state}, held)
        with replacing(self.path) as beside:
            beside.write_bytes(held.getbuffer())

    def read(self) -> dict[str, Any] | None:
        """Return the state, and put torch's source of chance where it was; None where there is none that fits."""
        if not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:
            return None  # cut off or damaged, with whatever error its reader has for that: training begins anew
        if state.get("schema") != SCHEMA or state.get("key") != self.key:
            return None
        torch.set_rng_state(state["chance"])
        return state

    def remove(self) -> None:
        """Remove the file; training has ended."""
        self.path.unlink(missing_ok=True)
