"""Folders with one folder for each class: which files there are, which of them are for testing, which are faulty."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data import NOUNS, Task
from .errors import BadInput

TEST_NAMES = ("test", "val", "valid", "validation")
TEST_SHARE = 0.2
_log = logging.getLogger(__name__)
Files = Mapping[str, Sequence[str]]
"""File names relative to the folder, by class and in order."""


@dataclass(frozen=True)
class Kind:
    """What is looked for.

    Attributes:
        task: of the data.
        endings: of its files, in small letters.
        group_of: from a file's name to what must not be on both sides; None: every file is a group of its own.
    """

    task: Task
    endings: frozenset[str]
    group_of: Callable[[str], str] | None = None

    @property
    def noun(self) -> str:
        """What one file holds."""
        return NOUNS[self.task]


@dataclass(frozen=True)
class Layout:
    """The files of both sides, and where those to learn from are, in words."""

    train: Files
    test: Files
    said: str

    @property
    def names(self) -> list[str]:
        """All files."""
        return [name for side in (self.train, self.test) for group in side.values() for name in group]


def layout(root: Path, kind: Kind) -> Layout:
    """Find `train/CLASS/*` with `test/CLASS/*` (or `val`), or only `CLASS/*`, of which a fifth becomes the test set.

    Without a test folder a file's relative name decides its side, or its group's, so that adding files moves no other.

    Raises:
        BadInput: no files, classes on one side only, or a group on both sides.
    """
    if not (root / "train").is_dir():
        return _one_level(root, kind)
    part = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if part is None:
        raise BadInput(
            f"{root}: has train/ but no test/ or val/; add one, or put the classes side by side without train/"
        )
    train, test = _by_class(root, root / "train", kind), _by_class(root, part, kind)
    _need_files(root / "train", train, kind)
    extra = sorted(set(test) - set(train))
    if extra:
        raise BadInput(f"{part}: classes that train/ does not have: {', '.join(extra[:10])}")
    if kind.group_of:
        refuse_shared(str(root), *({kind.group_of(name) for names in side.values() for name in names} for side in (train, test)))  # fmt: skip # noqa: E501
    return Layout(train, test, str(root / "train"))


def _one_level(root: Path, kind: Kind) -> Layout:
    stray = next((name for name in TEST_NAMES if (root / name).is_dir() and _by_class(root, root / name, kind)), None)
    if stray:
        raise BadInput(f"{root}: has {stray}/ but no train/; add train/CLASS/*, or put the classes side by side")
    groups = _by_class(root, root, kind)
    _need_files(root, groups, kind)
    sides = {name: _divide(files, kind.group_of) for name, files in groups.items()}
    train, test = ({name: side[i] for name, side in sides.items()} for i in (0, 1))
    of = "file's name" if kind.group_of is None else "group"
    return Layout(train, test, f"{root} (a fifth kept for testing, by hash of the {of})")


def _need_files(folder: Path, groups: Files, kind: Kind) -> None:
    if not any(groups.values()):
        what = f"class folders without {kind.noun}s" if groups else "no class folders"
        raise BadInput(f"{folder}: {what}; wanted one folder for each class, with {kind.noun}s ({' '.join(sorted(kind.endings))})")  # fmt: skip # noqa: E501


def _by_class(root: Path, folder: Path, kind: Kind) -> dict[str, list[str]]:
    names = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    return {name: sorted(_files(root, folder / name, kind)) for name in names}


def _files(root: Path, folder: Path, kind: Kind) -> Iterable[str]:
    for place, _, files in os.walk(folder):
        for name in files:
            if Path(name).suffix.lower() in kind.endings and not name.startswith("."):
                yield (Path(place) / name).relative_to(root).as_posix()


def _divide(names: Sequence[str], group_of: Callable[[str], str] | None) -> tuple[list[str], list[str]]:
    """Divide a class by hashes: of groups alone, or of names with at least one on each side where there are two."""
    if group_of is not None:
        return [n for n in names if mark(group_of(n)) >= TEST_SHARE], [n for n in names if mark(group_of(n)) < TEST_SHARE]  # fmt: skip # noqa: E501
    ranked = sorted(names, key=mark)
    count = sum(mark(name) < TEST_SHARE for name in names)
    if len(names) >= 2:
        count = min(max(count, 1), len(names) - 1)
    test = set(ranked[:count])
    return [name for name in names if name not in test], [name for name in names if name in test]


def mark(name: str) -> float:
    """Return a number from 0 to 1 that stays the same for a name."""
    return int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 2**32


def group_by(pattern: str) -> Callable[[str], str]:
    """Return what finds the group in a file's name: the first group of a regular expression, or all that it matches.

    Raises:
        BadInput: it is no regular expression, or, when called, does not match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as fault:
        raise BadInput(f"data.group {pattern!r}: no regular expression ({fault})") from fault

    def group_of(name: str) -> str:
        found = compiled.search(Path(name).name)
        if found is None:
            raise BadInput(f"data.group {pattern!r}: does not match {Path(name).name!r}; it must find the group in every name")  # fmt: skip # noqa: E501
        return found[1] if compiled.groups and found[1] is not None else found[0]

    return group_of


def refuse_shared(name: str, train: set[str], test: set[str]) -> None:
    """Refuse groups that are on both sides: scores would be of what was learnt by heart."""
    both = sorted(train & test)
    if both:
        raise BadInput(f"{name}: {len(both)} groups are in the training and in the test set: {', '.join(both[:10])}; move each to one side, or leave `group` out")  # fmt: skip # noqa: E501


def judge(where: str, faults: Mapping[str, str], total: int, noun: str) -> None:
    """Warn of faulty examples, which are left out, and refuse too many: over 1 %, in small sets over a tenth or ten.

    Raises:
        BadInput: too many are faulty.
    """
    if not faults:
        return
    some = "; ".join(f"{name} ({fault})" for name, fault in list(faults.items())[:10])
    said = f"{where}: {len(faults)} of {total} {noun}s cannot be read: {some}"
    if len(faults) > max(total // 100, min(10, total // 10)):
        raise BadInput(f"{said}; repair or remove them")
    _log.warning("%s; they are left out", said)


def stamp(root: Path, name: str) -> tuple[str, int, int]:
    """Return what changes when a file does: its size and time."""
    stat = (root / name).stat()
    return name, stat.st_size, stat.st_mtime_ns
