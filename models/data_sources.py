"""Which source a name or a path stands for."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from .data import Dataset
from .data_cifar import CIFAR, open_cifar
from .data_fashion import open_fashion
from .data_folder import ENDINGS, open_folder
from .data_function import open_function
from .data_options import Options
from .errors import BadInput

NAMED = ("fashion-mnist", *CIFAR)
TABLE = re.compile(r"\.(csv|tsv|parquet)(\.(gz|bz2|xz))?$", re.IGNORECASE)
HUB = "hf:"


def open_source(source: str, options: Options) -> Dataset:
    """Open a source by its name, its ending or what lies in it.

    Raises:
        BadInput: there is no such source, or it cannot be used.
    """
    if source == "fashion-mnist":
        return open_fashion(options)
    if source in CIFAR:
        return open_cifar(source, options)
    if source.startswith(HUB):
        from .data_hub import open_hub

        return open_hub(source, options)
    if re.search(r"\.py:\w*$", source):
        return open_function(source, options)
    if TABLE.search(source):
        from .data_text import open_table

        return open_table(source, options)
    if Path(source).is_dir():
        return _open_folder(source, options)
    near = difflib.get_close_matches(source, NAMED, n=1)
    raise BadInput(
        f"data source {source!r}: neither a known name nor a folder{f' (did you mean {near[0]}?)' if near else ''}; "
        f"give {', '.join(NAMED)}, a folder with one folder of images or recordings for each class, a table of "
        "sentences (.csv, .tsv, .parquet), path/to/file.py:function or hf:NAME"
    )


def _open_folder(source: str, options: Options) -> Dataset:
    from .data_audio import open_recordings
    from .wave_files import AUDIO_ENDINGS

    found = {Path(name).suffix.lower() for _, _, files in os.walk(source) for name in files if not name.startswith(".")}
    images, recordings = found & ENDINGS, found & AUDIO_ENDINGS
    if images and recordings:
        raise BadInput(f"data source {source}: has images ({', '.join(sorted(images))}) and recordings ({', '.join(sorted(recordings))}); give a folder of one kind")  # fmt: skip # noqa: E501
    return open_recordings(source, options) if recordings else open_folder(source, options)
