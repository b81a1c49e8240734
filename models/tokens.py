"""Sentences as tokens: all of them in one array, and batches of them as long as their longest."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import BadInput
from .files import sha256_of
from .preprocessing import NO_TOKEN

_FILE = "tokenizer.json"
_USUAL_PADS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of many sentences, one behind the other.

    Attributes:
        values: token numbers `(total,)`, int32.
        starts: where each sentence begins, and where the last one ends, `(n + 1,)`.
    """

    values: NDArray[np.int32]
    starts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sentence `(n,)`."""
        return np.diff(self.starts)

    def batch(self, indices: NDArray[np.int64], length: int | None = None) -> Tensor:
        """Return sentences `(k, length)`, int32, with `NO_TOKEN` behind the end of each.

        Args:
            indices: which, `(k,)`.
            length: of the batch; None: that of its longest.
        """
        first, count = self.starts[indices], self.lengths[indices]
        places = np.arange(length if length is not None else count.max(initial=0))
        there = places < count[:, None]
        found = self.values[np.where(there, first[:, None] + places, 0)]
        return torch.from_numpy(np.where(there, found, np.int32(NO_TOKEN)))


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A `tokenizer.json` that is open, as the package `tokenizers` runs it.

    Attributes:
        path: the file.
        sha256: of it.
        pad_id: its padding token; 0 where it has none, which an attention mask hides.
        vocabulary: how many tokens it knows.
    """

    path: Path
    sha256: str
    pad_id: int
    vocabulary: int
    _held: Any

    def encode(self, sentences: Sequence[str]) -> tuple[Tokens, int]:
        """Return the tokens of sentences, special ones included, and how many sentences were cut."""
        parts, lengths, cut = [], [], 0
        for start in range(0, len(sentences), _AT_ONCE):
            found = self._held.encode_batch(list(sentences[start : start + _AT_ONCE]))
            parts += [np.asarray(one.ids, np.int32) for one in found]
            lengths += [len(one.ids) for one in found]
            cut += sum(bool(one.overflowing) for one in found)
        values = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        return Tokens(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)), cut


def open_tokenizer(place: str | Path, max_length: int) -> Tokenizer:
    """Open a tokenizer.

    Args:
        place: its `tokenizer.json`, or a folder with one.
        max_length: sentences are cut at so many tokens; special ones count, and stay.

    Raises:
        BadInput: there is none, it cannot be read, or the package `tokenizers` is not installed.
    """
    path = Path(place) / _FILE if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise BadInput(f"data.tokenizer: no such file: {path}; give a {_FILE}, or a folder with one (save_pretrained writes it)")  # fmt: skip # noqa: E501
    try:
        library: Any = importlib.import_module("tokenizers")
    except ImportError as fault:
        raise BadInput("text needs the package tokenizers, which is not installed: pip install 'shipworthy[text]'") from fault  # fmt: skip # noqa: E501
    try:
        held = library.Tokenizer.from_file(str(path))
    except Exception as fault:  # the library raises Exception itself
        raise BadInput(f"data.tokenizer {path}: cannot be read ({fault}); give a {_FILE} of the package tokenizers") from fault  # fmt: skip # noqa: E501
    pad = _pad_id(held, path)
    held.no_padding()
    special = held.num_special_tokens_to_add(False)
    if max_length <= special:
        raise BadInput(f"data.max_length {max_length}: too short; the tokenizer adds {special} tokens to each sentence, give more")  # fmt: skip # noqa: E501
    held.enable_truncation(max_length)
    return Tokenizer(path, sha256_of(path), pad, held.get_vocab_size(), held)


def _pad_id(held: Any, path: Path) -> int:
    """Return the padding token: the one that the tokenizer pads with, or that its settings or custom name."""
    if held.padding:
        return int(held.padding["pad_id"])
    names = [*_named_pad(path.with_name("tokenizer_config.json")), *_USUAL_PADS]
    return next((int(found) for name in names if (found := held.token_to_id(name)) is not None), 0)


def _named_pad(settings: Path) -> list[str]:
    try:
        named = json.loads(settings.read_text(encoding="utf-8")).get("pad_token")
    except (OSError, ValueError, AttributeError):
        return []
    name = named.get("content") if isinstance(named, dict) else named
    return [name] if isinstance(name, str) else []


__all__ = ["Tokenizer", "Tokens", "open_tokenizer"]
