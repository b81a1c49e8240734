"""An engine and its manifest on disk: both or neither."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..models.errors import BadInput
from ..models.files import replacing


@contextmanager
def workspace(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` for what is being made; it is gone afterwards, whatever happens.

    Raises:
        BadInput: `path` is a folder, or its own folder cannot be written.
    """
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as fault:
        raise _unwritable(path, fault) from fault
    try:
        yield folder
    except OSError as fault:
        raise _unwritable(path, fault) from fault
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(made: Mapping[Path, Path], folder: Path) -> None:
    """Move files to their places: all of them, or none, and what was there stays.

    Args:
        made: where each file goes, and where it is now, on the same disk.
        folder: for the old files meanwhile.

    Raises:
        OSError: one cannot be moved.
    """
    old = {place: _kept(place, folder / f"old-{index}") for index, place in enumerate(made)}
    done: list[Path] = []
    try:
        for place, file in made.items():
            file.chmod(0o644)
            file.replace(place)
            done.append(place)
    except BaseException:
        for place in done:
            _put_back(place, old[place])
        raise


def copy_to(place: Path, file: Path) -> None:
    """Copy a file, whole or not at all; nothing where there is none.

    Raises:
        BadInput: the place cannot be written.
    """
    if file.is_file():
        with replacing(place) as beside:
            shutil.copyfile(file, beside)


def _kept(place: Path, spare: Path) -> Path | None:
    """Keep what is at a place under a second name, or copy it on file systems without links."""
    if not place.exists():
        return None
    try:
        os.link(place, spare)
    except OSError:
        shutil.copyfile(place, spare)
    return spare


def _put_back(place: Path, spare: Path | None) -> None:
    with suppress(OSError):
        if spare is None:
            place.unlink()
        else:
            spare.replace(place)


def _unwritable(path: Path, fault: OSError) -> BadInput:
    return BadInput(f"{path}: cannot be written ({fault.strerror}); choose another folder or make room")
