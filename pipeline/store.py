"""Finished stages on disk: what was done once for the same inputs is not done again.

A stage is a folder `stages/<name>-<key>` that holds its files and `stage.json`. It is made beside its place and renamed
when whole, so that a run killed at any moment leaves only finished stages. The key is a hash of everything that
goes in: settings, the keys of the stages before, data, and the program itself.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from ..models.errors import BadInput
from ..models.files import sha256_of
from ..models.model import Model
from ..profile.environment import environment
from .progress import Progress

Facts = dict[str, Any]
_ROOMLESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_REFUSED = {errno.EACCES, errno.EPERM}
_TOOLS = ("shipworthy", "torchvision", "onnx", "onnxscript")
_MAKING = ".making-"


@dataclass(frozen=True)
class Stage:
    """A finished stage: where it is, what it found out, its key for the stages after it, and how long it took."""

    name: str
    folder: Path
    facts: Facts
    key: str
    seconds: float


@dataclass
class Store:
    """The stages of one work folder."""

    root: Path
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    bookkeeping_s: float = 0.0
    models: dict[str, Model] = field(default_factory=dict)
    """Models in use, by the key of their stage; see `kept_model`."""

    def run(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Facts]) -> Stage:
        """Return the stage for these inputs: the finished one, or a new one made by `make(folder)`.

        Raises:
            BadInput: the work folder is full or cannot be written.
        """
        with self.bookkeeping():
            key = _key(name, inputs)
            folder = self.root / "stages" / f"{name}-{key[:16]}"
            found = _finished(name, folder, key)
        if found:
            self.progress.reused(name)
            self.seconds[name] = 0.0
            return found
        self.progress.stage(name)
        began, kept_books = time.perf_counter(), self.bookkeeping_s
        try:
            with self._explained():
                return self._make(name, folder, key, make)
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] = spent - (self.bookkeeping_s - kept_books)

    def unfinished(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """Return the folder where a stage may keep what it has not finished; another run with these inputs finds it."""
        return self.root / "unfinished" / f"{name}-{_key(name, inputs)[:16]}"

    def _make(self, name: str, folder: Path, key: str, make: Callable[[Path], Facts]) -> Stage:
        with self._beside() as beside:
            began = time.perf_counter()
            facts = make(beside)
            seconds = time.perf_counter() - began
            with self.bookkeeping():
                hashes = {path.name: sha256_of(path) for path in sorted(beside.iterdir())}
                done = {"schema": 1, "key": key, "seconds": seconds, "facts": facts, "files": hashes}
                (beside / "stage.json").write_text(json.dumps(done, indent=1), encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)
                beside.rename(folder)
            return Stage(name, folder, json.loads(json.dumps(facts)), key, seconds)

    @contextmanager
    def delivery(self) -> Iterator[Path]:
        """Give a folder for what the user gets; its files take their places in the work folder when all are whole.

        `report.json` goes last and the old one first, so that a report never speaks of another run's files.

        Raises:
            BadInput: the work folder is full or cannot be written.
        """
        with self._explained(), self._beside() as folder:
            yield folder
            last = self.root / "report.json"
            last.unlink(missing_ok=True)
            for path in sorted(folder.iterdir(), key=lambda path: path.name == last.name):
                path.replace(self.root / path.name)

    @contextmanager
    def _beside(self) -> Iterator[Path]:
        """Give a folder that a killed run leaves behind under a name that the next run sweeps away."""
        folder = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self.root / "stages"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say so where the work folder is what failed, whatever the error is wrapped in."""
        try:
            yield
        except Exception as fault:
            cause = _unwritable(fault, self.root)
            if cause is None:
                raise
            raise BadInput(
                f"{self.root}: the work folder cannot be written ({cause.strerror}); make room there and in the "
                "folder for temporary files, or choose another --workdir; finished stages are kept"
            ) from fault

    @contextmanager
    def bookkeeping(self) -> Iterator[None]:
        """Count the time inside as the pipeline's own, not as a stage's work."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.bookkeeping_s += time.perf_counter() - began


@contextmanager
def open_store(root: Path, progress: Progress) -> Iterator[Store]:
    """Open a work folder for one build; sweep away what a killed run left half made.

    Raises:
        BadInput: it cannot be written, or another build is using it.
    """
    try:
        (root / "stages").mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as fault:
        raise BadInput(
            f"{root}: cannot be used as a work folder ({fault.strerror}); choose another --workdir"
        ) from fault
    with lock:
        if not _locked(lock):
            raise BadInput(f"{root}: another build is using this work folder; wait for it or choose another --workdir")
        for left in (root / "stages").glob(f"{_MAKING}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield Store(root, progress)


def _locked(file: IO[str]) -> bool:
    """Take the lock that ends with the process, where the system has one."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _unwritable(fault: BaseException | None, root: Path) -> OSError | None:
    """Find, among an error and its causes, a device without room or a place under `root` that may not be written."""
    while fault is not None:
        if isinstance(fault, OSError):
            inside = isinstance(fault.filename, str | Path) and Path(fault.filename).is_relative_to(root)
            if fault.errno in _ROOMLESS or (fault.errno in _REFUSED and inside):
                return fault
        fault = fault.__cause__ or fault.__context__
    return None


def _finished(name: str, folder: Path, key: str) -> Stage | None:
    """Return a stage whose files are all there and unchanged."""
    try:
        done = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        whole = done["key"] == key and all(sha256_of(folder / n) == h for n, h in done["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Stage(name, folder, done["facts"], key, done["seconds"]) if whole else None


def _key(name: str, inputs: Mapping[str, Any]) -> str:
    return _digest({"name": name, "inputs": inputs, "program": _program()})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def _program() -> str:
    """Return a hash of this program's own source and of the versions that decide its results."""
    package = Path(__file__).parent.parent
    stages = ("models", "compress", "export", "profile", "pipeline")
    sources = [path for stage in stages for path in sorted((package / stage).glob("*.py"))]
    return _digest([tool_versions(), *(f"{p.parent.name}/{p.name} {sha256_of(p)}" for p in sources)])


@cache
def tool_versions() -> dict[str, str | None]:
    """Return the versions that decide what the stages make; None for what is not installed."""
    found: dict[str, str | None] = environment()["versions"]
    return {tool: version(tool) for tool in _TOOLS} | found
