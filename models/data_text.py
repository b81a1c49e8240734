"""Sentences with their classes, from a table; tokenized once, when they are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .class_folders import TEST_NAMES, TEST_SHARE, judge, mark, refuse_shared
from .data import Dataset, Split, fingerprint
from .data_options import TABLE_OPTIONS, TOKEN_OPTIONS, Options
from .errors import BadInput
from .preprocessing import TOKEN_INPUTS, TextPreprocessing
from .tables import Table, column, read_table
from .tokens import Tokenizer, Tokens, open_tokenizer

MAX_LENGTH = 128
_TRAIN, _TEST = ("train", "training"), ("test",)
_VALIDATION = (*TEST_NAMES[1:], "dev")


@dataclass(frozen=True)
class Sentence:
    """One row that can be read; `side` is empty where the table does not say."""

    text: str
    label: str
    side: str
    group: str


@dataclass(frozen=True)
class Sides:
    """Sentences to learn from and to test on, in the table's order, and how they were told apart, in words."""

    train: Sequence[Sentence]
    test: Sequence[Sentence]
    said: str
    left_out: int = 0


def open_table(source: str, options: Options) -> Dataset:
    """Open a table with a column of sentences and one of classes.

    Without a column that names the side, a fifth becomes the test set, by the hash of the group, or of the sentence.
    Rows that are empty, of another type or cannot be decoded are left out and named in the facts, up to 1 %.

    Raises:
        BadInput: no such file or column, a group on both sides, too many faulty rows, or no tokenizer.
    """
    options.allow(source, *TABLE_OPTIONS, *TOKEN_OPTIONS)
    return sentences_dataset(source, read_table(Path(source)), options)


def sentences_dataset(source: str, table: Table, options: Options) -> Dataset:
    """Make data of a table that was read.

    Raises:
        BadInput: as `open_table`.
    """
    found, faults = _sentences(source, table, options)
    judge(source, faults, len(table.rows), "row")
    return _dataset(source, _sides(found), options, [f"{name}: {fault}" for name, fault in faults.items()])


def _dataset(source: str, sides: Sides, options: Options, skipped: Sequence[str]) -> Dataset:
    if options.tokenizer is None:
        raise BadInput(f"data source {source}: text needs data.tokenizer: a tokenizer.json, or a folder with one")
    how, tokenizer = _preprocessing(options.tokenizer, options)
    classes = _in_order({one.label for one in (*sides.train, *sides.test)})
    (train, cut), (test, cut_too) = (tokenizer.encode([one.text for one in side]) for side in (sides.train, sides.test))
    for tokens, side in ((train, sides.train), (test, sides.test)):
        _need_tokens(source, tokens, side)
    labels = [np.asarray([classes.index(one.label) for one in side], np.int64) for side in (sides.train, sides.test)]
    length = how.max_length if how.fixed_length else None
    facts = {
        "training_set": f"{len(sides.train):,} sentences from {source} ({sides.said})",
        "skipped": list(skipped),
        "cut_sentences": cut + cut_too,
        "longest_tokens": int(max(train.lengths.max(initial=0), test.lengths.max(initial=0))),
        "vocabulary": tokenizer.vocabulary,
    } | ({"left_out_validation": sides.left_out} if sides.left_out else {})
    described = repr((classes, how))
    return Dataset(
        source, classes, _split(train, labels[0], length), _split(test, labels[1], length), how,
        (how.max_length,) if how.fixed_length else (),
        fingerprint(described, train.values, train.starts, labels[0], test.values, test.starts, labels[1]),
        MappingProxyType(facts), "text-classification", {tokenizer.path.name: tokenizer.path},
    )  # fmt: skip


def _preprocessing(place: str | Path, options: Options) -> tuple[TextPreprocessing, Tokenizer]:
    length = MAX_LENGTH if options.max_length is None else options.max_length
    if length < 1:
        raise BadInput(f"data.max_length {length}: must be 1 or more")
    tokenizer = open_tokenizer(place, length)
    names = options.inputs or TOKEN_INPUTS[:2]
    how = TextPreprocessing(tokenizer.path.name, tokenizer.sha256, length, tokenizer.pad_id, tuple(names), bool(options.fixed_length))  # fmt: skip # noqa: E501
    return how, tokenizer


def _split(tokens: Tokens, labels: NDArray[np.int64], length: int | None) -> Split:
    lengths = None if length else torch.from_numpy(tokens.lengths)
    return Split(torch.from_numpy(labels), lambda indices: tokens.batch(indices.numpy(), length), lengths)


def _need_tokens(source: str, tokens: Tokens, side: Sequence[Sentence]) -> None:
    empty = np.flatnonzero(tokens.lengths == 0)
    if len(empty):
        raise BadInput(f"{source}: {len(empty)} sentences give no token, the first is {side[int(empty[0])].text[:60]!r}; remove them, or give a tokenizer that knows their letters")  # fmt: skip # noqa: E501


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Return class names in order: numbers by their value, others by their letters."""
    numbers = all(label.lstrip("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=int) if numbers else sorted(labels))


def _sentences(source: str, table: Table, options: Options) -> tuple[list[Sentence], dict[str, str]]:
    text, label = (column(source, table.names, getattr(options, name), name, True) for name in ("text", "label"))
    side, group = (column(source, table.names, getattr(options, name), name, False) for name in ("split", "group"))
    good: list[Sentence] = []
    faults: dict[str, str] = {}
    for place, row in table.rows:
        fault = row if isinstance(row, str) else _fault(row, str(text), str(label), side)
        if fault is not None or isinstance(row, str):
            faults[place] = str(fault)
            continue
        held = str(row[str(text)])
        said = str(row[side]).strip().lower() if side else ""
        good.append(Sentence(held, str(row[str(label)]).strip(), said, str(row[group]) if group else held))
    if group and side:
        sides = ({one.group for one in good if one.side in names} for names in (_TRAIN, (*_TEST, *_VALIDATION)))
        refuse_shared(source, *sides)
    return good, faults


def _fault(row: Mapping[str, Any], text: str, label: str, side: str | None) -> str | None:
    """Return what is wrong with a row, None if nothing is."""
    if not isinstance(row[text], str):
        return f"{text} is {type(row[text]).__name__}, wanted text"
    if not row[text].strip():
        return f"{text} is empty"
    if not isinstance(row[label], str | int) or not str(row[label]).strip():
        return f"{label} is {row[label]!r}, wanted a name or a whole number"
    if side and str(row[side]).strip().lower() not in (*_TRAIN, *_TEST, *_VALIDATION):
        return f"{side} is {row[side]!r}, wanted train or test"
    return None


def _sides(found: Sequence[Sentence]) -> Sides:
    if not any(one.side for one in found):
        return Sides(
            [one for one in found if mark(one.group) >= TEST_SHARE],
            [one for one in found if mark(one.group) < TEST_SHARE],
            "a fifth kept for testing, by hash of the group, or of the sentence",
        )
    train = [one for one in found if one.side in _TRAIN]
    test = [one for one in found if one.side in _TEST]
    other = [one for one in found if one.side in _VALIDATION]
    return Sides(train, test or other, "the others are for testing", len(other) if test else 0)


__all__ = ["MAX_LENGTH", "open_table", "sentences_dataset"]
