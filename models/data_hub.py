"""Data sets of the Hugging Face hub, and of folders on this machine, through the package `datasets`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .data import Dataset
from .data_options import TABLE_OPTIONS, TOKEN_OPTIONS, Options
from .data_text import sentences_dataset
from .errors import BadInput
from .tables import Table

HUB = "hf:"
ONLINE = "SHIPWORTHY_ONLINE"


def open_hub(source: str, options: Options) -> Dataset:
    """Open `hf:FOLDER` (files of CSV, Parquet or JSON, or what `save_to_disk` wrote) or `hf:NAME` of the hub.

    Its splits tell the sides, as a column `split` does in a table. The hub is asked only with SHIPWORTHY_ONLINE=1 in
    the environment; otherwise a name is looked for in the library's cache.

    Raises:
        BadInput: the package `datasets` is not installed, there is no such set, or it has no sentences.
    """
    options.allow(source, *(name for name in TABLE_OPTIONS if name != "split"), *TOKEN_OPTIONS)
    held = _splits(source, source.removeprefix(HUB))
    names = [name for name in next(iter(held.values())).column_names if name != "split"]
    label = options.label or "label"
    rows = [
        (f"{side} row {i}", {**row, label: _name_of(part.features.get(label), row.get(label)), "split": side})
        for side, part in held.items()
        for i, row in enumerate(part)
    ]
    if len(held) == 1:
        rows = [(place, {name: row.get(name) for name in names}) for place, row in rows]
    return sentences_dataset(source, Table((*names, "split")[: len(names) + (len(held) > 1)], rows), options)


def _splits(source: str, name: str) -> Mapping[str, Any]:
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError as fault:
        raise BadInput(f"data source {source}: needs the package datasets, which is not installed: pip install 'shipworthy[datasets]'") from fault  # fmt: skip # noqa: E501
    local = Path(name).is_dir()
    offline = os.environ.get(ONLINE) != "1"
    try:
        if local and any(Path(name, file).is_file() for file in ("dataset_dict.json", "dataset_info.json")):
            held = library.load_from_disk(name)
        else:
            held = library.load_dataset(name, download_config=library.DownloadConfig(local_files_only=offline))
    except Exception as fault:  # the library raises many kinds, those of its readers among them
        first = next(iter(str(fault).splitlines()), type(fault).__name__)
        hint = "give a folder with CSV, Parquet or JSON files" if local else (
            f"set {ONLINE}=1 to fetch it, or give a folder: hf:FOLDER (save_to_disk writes one)" if offline else "look at its name"  # noqa: E501
        )  # fmt: skip
        raise BadInput(f"data source {source}: cannot be opened ({first}); {hint}") from fault
    return held if isinstance(held, Mapping) else {"train": held}


def _name_of(feature: Any, value: Any) -> Any:
    """Return a class's name where the set has names, and the value otherwise."""
    names = getattr(feature, "names", None)
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


__all__ = ["open_hub"]
