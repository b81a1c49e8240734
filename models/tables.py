"""Columns of a table: CSV and TSV, plain or compressed, and Parquet. Rows that cannot be read are named."""

from __future__ import annotations

import bz2
import csv
import difflib
import gzip
import importlib
import io
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import BadInput

OPENERS: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""Each returns a stream of bytes."""
_LONGEST = 2**24
"""Characters of one cell: the reader's own limit of 131,072 is less than a long text."""


@dataclass(frozen=True)
class Table:
    """What was asked for of a table.

    Attributes:
        names: of all its columns.
        rows: each row's place in words and its cells, or, where it cannot be read, the fault.
    """

    names: tuple[str, ...]
    rows: Sequence[tuple[str, Mapping[str, Any] | str]]


def read_table(path: Path) -> Table:
    """Read a table by its ending: `.csv`, `.tsv` (with `.gz`, `.bz2` or `.xz` behind), or `.parquet`.

    Raises:
        BadInput: there is no such file, it is damaged, it has no header, or its reader is not installed.
    """
    if not path.is_file():
        raise BadInput(f"data source {path}: no such file")
    packed = path.suffix.lower() in OPENERS
    kind = (Path(path.stem) if packed else path).suffix.lower()
    if kind == ".parquet":
        return _parquet(path, packed)
    try:
        with OPENERS.get(path.suffix.lower(), Path.open)(path, "rb") as raw:
            return _lines(path, raw, "\t" if kind == ".tsv" else ",")
    except (OSError, EOFError, lzma.LZMAError) as fault:
        raise BadInput(f"data source {path}: cannot be read ({fault}); copy it anew") from fault


def column(path: str, names: Sequence[str], asked: str | None, usual: str, needed: bool) -> str | None:
    """Return the name of a column: the one asked for, or the usual one where it is there.

    Raises:
        BadInput: it was asked for or is needed, and is not there.
    """
    name = asked or usual
    if name in names:
        return name
    if not (asked or needed):
        return None
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BadInput(f"{path}: has no column {name!r}; {hint}It has {', '.join(names)}; set data.{usual}")


def _lines(path: Path, raw: IO[bytes], between: str) -> Table:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    # What is not UTF-8 becomes surrogates, so that one bad row is one bad row.
    with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        reader = csv.reader(opened, delimiter=between)
        names = tuple(next(reader, ()))
        if len(names) < 2 or len(set(names)) != len(names):
            raise BadInput(f"data source {path}: its first line is {', '.join(names) or 'empty'}; wanted the columns' names, each once, such as text and label")  # fmt: skip # noqa: E501
        return Table(names, list(_rows(reader, names)))


def _rows(reader: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    while True:
        line = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            yield line, str(fault)
            continue
        if not cells:
            continue  # an empty line is no row
        if len(cells) != len(names):
            yield line, f"has {len(cells)} cells, wanted {len(names)}"
        elif any("\udc80" <= letter <= "\udcff" for letter in "".join(cells)):
            yield line, "is not UTF-8"
        else:
            yield line, dict(zip(names, cells, strict=True))


def _parquet(path: Path, packed: bool) -> Table:
    if packed:
        raise BadInput(f"data source {path}: Parquet is compressed inside; unpack it, and give the .parquet file")
    try:
        library: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as fault:
        raise BadInput(f"data source {path}: Parquet needs the package pyarrow, which is not installed: pip install 'shipworthy[parquet]', or write a CSV file") from fault  # fmt: skip # noqa: E501
    try:
        table = library.read_table(path)
    except (OSError, ValueError) as fault:  # pyarrow's own errors are of these kinds
        first = next(iter(str(fault).splitlines()), type(fault).__name__)
        raise BadInput(f"data source {path}: no Parquet file, or damaged ({first})") from fault
    return Table(tuple(table.column_names), [(f"row {i}", row) for i, row in enumerate(table.to_pylist())])


__all__ = ["Table", "column", "read_table"]
