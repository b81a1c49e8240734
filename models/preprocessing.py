"""How what lies in files becomes a model's inputs; kept with the artifact, so that it is fed the same way later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from .errors import BadInput

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a model of text may take, by name."""

NO_TOKEN = -1
"""Fills up short sentences until the preprocessing puts the tokenizer's own padding there."""


@final
@dataclass(frozen=True)
class Preprocessing:
    """How an image's bytes become a model's input: `(pixels * scale - mean) / std`, per channel.

    Attributes:
        scale: factor on the bytes; 1/255 maps them to 0 to 1.
        mean: subtracted after scaling, one number or one for each channel.
        std: divided by, as many numbers as `mean`.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse what cannot be applied."""
        if len(self.mean) != len(self.std) or not self.mean:
            raise BadInput(f"mean and std must have one number for each channel, got {self.mean} and {self.std}")
        if not all(value > 0 for value in self.std):
            raise BadInput(f"std must be positive, got {self.std}")

    @property
    def input_names(self) -> tuple[str, ...]:
        """The one input; models call it as they like."""
        return ("image",)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map bytes `(n, c, h, w)` to float32 `(n, c, h, w)`."""
        if pixels.dtype != torch.uint8:
            raise BadInput(f"preprocessing takes bytes (torch.uint8), got {pixels.dtype}")
        x = pixels.to(torch.float32).mul_(self.scale)
        if any(self.mean):
            x.sub_(torch.tensor(self.mean).view(-1, 1, 1))
        if any(value != 1 for value in self.std):
            x.div_(torch.tensor(self.std).view(-1, 1, 1))
        return x

    def inputs(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Map bytes `(n, c, h, w)` to the model's input."""
        return (self(pixels),)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report or a manifest."""
        return {"scale": self.scale, "mean": list(self.mean), "std": list(self.std)}


@final
@dataclass(frozen=True)
class TextPreprocessing:
    """How sentences become tokens, and tokens a model's inputs.

    Attributes:
        tokenizer: the name of its file, which is copied beside the artifact.
        tokenizer_sha256: of that file.
        max_length: tokens beyond it are cut off, special ones excepted.
        pad_id: stands where a sentence of a batch is over, and the attention mask is 0.
        input_names: what the model takes, in its order; of `TOKEN_INPUTS`.
        fixed_length: whether every sentence is filled up to `max_length`; otherwise to the longest of its batch.
    """

    tokenizer: str
    tokenizer_sha256: str
    max_length: int = 128
    pad_id: int = 0
    input_names: tuple[str, ...] = TOKEN_INPUTS[:2]
    fixed_length: bool = False

    def __post_init__(self) -> None:
        """Refuse inputs that cannot be made of tokens."""
        unknown = [name for name in self.input_names if name not in TOKEN_INPUTS]
        if unknown or "input_ids" not in self.input_names or len(set(self.input_names)) != len(self.input_names):
            raise BadInput(f"data.inputs: got {list(self.input_names)}, wanted input_ids and any of {', '.join(TOKEN_INPUTS[1:])}, each once")  # fmt: skip # noqa: E501

    def inputs(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Map tokens `(n, length)`, `NO_TOKEN` behind a sentence's end, to inputs `(n, length)`, int64."""
        there = tokens != NO_TOKEN
        made = {
            "input_ids": torch.where(there, tokens, self.pad_id).long(),
            "attention_mask": there.long(),
            "token_type_ids": torch.zeros(tokens.shape, dtype=torch.int64),
        }
        return tuple(made[name] for name in self.input_names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report or a manifest."""
        return {
            "kind": "text",
            "tokenizer": self.tokenizer,
            "tokenizer_sha256": self.tokenizer_sha256,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "inputs": list(self.input_names),
            "fixed_length": self.fixed_length,
        }


@final
@dataclass(frozen=True)
class AudioPreprocessing:
    """How a recording becomes a model's input: one channel, resampled, cut or filled up to one length.

    Attributes:
        sample_rate: of the input, in Hz.
        seconds: its length; longer recordings are cut at the end, shorter ones filled up with zeros.
    """

    sample_rate: int = 16_000
    seconds: float = 1.0

    def __post_init__(self) -> None:
        """Refuse recordings without a sample."""
        if self.sample_rate < 1 or not self.seconds > 0 or self.samples < 1:
            raise BadInput(f"data.sample_rate {self.sample_rate} and data.seconds {self.seconds}: must be positive, and give a sample at least")  # fmt: skip # noqa: E501

    @property
    def samples(self) -> int:
        """Samples of one input."""
        return round(self.sample_rate * self.seconds)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The one input; models call it as they like."""
        return ("waveform",)

    def inputs(self, waves: Tensor) -> tuple[Tensor, ...]:
        """Return samples `(n, samples)`, float32 in -1 to 1, as the model's input; files are read as such."""
        return (waves,)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report or a manifest."""
        return {
            "kind": "audio",
            "sample_rate": self.sample_rate,
            "samples": self.samples,
            "channels": "the mean of all",
            "range": [-1, 1],
            "longer": "cut at the end",
            "shorter": "zeros at the end",
        }


Prepares = Preprocessing | TextPreprocessing | AudioPreprocessing
"""The three kinds."""
