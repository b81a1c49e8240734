"""What the user may say about a data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from .errors import BadInput
from .preprocessing import TOKEN_INPUTS, Preprocessing


@dataclass(frozen=True)
class Options:
    """What the user may say about a source, as `open_data` has it; None leaves it to the source."""

    root: str | Path | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    text: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    tokenizer: str | Path | None = None
    max_length: int | None = None
    inputs: tuple[str, ...] | None = None
    fixed_length: bool | None = None
    sample_rate: int | None = None
    seconds: float | None = None

    def preprocessing(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Preprocessing:
        """Return the preprocessing of images: the user's numbers before the source's, and those before none."""
        means = tuple(self.mean if self.mean is not None else mean or ())
        stds = tuple(self.std if self.std is not None else std or ())
        return Preprocessing(mean=means or (0.0,) * (len(stds) or 1), std=stds or (1.0,) * (len(means) or 1))

    def allow(self, name: str, *known: str) -> None:
        """Raise BadInput if anything but `known` was given: the source has no use for it."""
        for one in (field.name for field in fields(self)):
            if one not in known and getattr(self, one) is not None:
                raise BadInput(f"data source {name}: takes no `{one}` (got {getattr(self, one)!r}); leave it out")


IMAGE_OPTIONS = ("mean", "std")
TABLE_OPTIONS = ("text", "label", "split", "group")
TOKEN_OPTIONS = ("tokenizer", "max_length", "inputs", "fixed_length")
AUDIO_OPTIONS = ("group", "sample_rate", "seconds")

__all__ = ["AUDIO_OPTIONS", "IMAGE_OPTIONS", "TABLE_OPTIONS", "TOKEN_INPUTS", "TOKEN_OPTIONS", "Options"]
