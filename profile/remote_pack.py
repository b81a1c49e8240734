"""What goes over the line: the command that starts the far side, this folder's own code, and the user's files."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .errors import BadPlan, ProfileError
from .opening import sha256_of
from .plan import Plan
from .remote_main import INPUTS, REQUEST
from .weights import read_weights

OLDEST = 3, 10
"""The Python that the far side needs at the least."""

MOST_BYTES = 8 << 30

_HERE = Path(__file__).parent
_CHUNK = 1 << 20
_ROOTS = ("remote_main", "memory_child")
_PACKAGE = "shipworthy_far"  # not `shipworthy`, which may be installed there

# One line without single quotes, exclamation marks and backslashes, so that every login shell takes it as it is.
_SHELL = (
    'm="<$1>"; command -v "$2" >/dev/null 2>&1 || { echo "$m absent"; exit 0; }; '
    'd=$(mktemp -d "${TMPDIR:-/tmp}/shipworthy.XXXXXXXX") || { echo "$m nofolder ${TMPDIR:-/tmp}"; exit 0; }; '
    'c() { rm -rf -- "$d" && echo "$m gone" || echo "$m left $d"; }; trap c EXIT; trap "exit 1" HUP INT TERM; '
    'echo "$m here"; "$2" -c "$3" "$m" "$d" "$4" "$5"'
)
_PYTHON = (
    "import sys; v = sys.version_info; "
    'v < (%d, %d) and (sys.stdout.write(sys.argv[1] + " old %%d.%%d.%%d" %% v[:3] + chr(10)), sys.exit()); '
    "exec(sys.stdin.buffer.read(int(sys.argv[3])))"
)


@dataclass(frozen=True)
class Job:
    """What to measure there.

    Raises:
        BadPlan: not a file, or inputs that cannot be copied.
    """

    targets: tuple[Path, ...]
    runtime: str
    plan: Plan
    inputs: Mapping[str, Any] | None
    memory: bool

    def __post_init__(self) -> None:
        for path in self.targets:
            if not path.is_file():
                raise BadPlan(f"{path}: no such file; wanted a model file")
        for name, array in (self.inputs or {}).items():
            if not isinstance(array, np.ndarray) or array.dtype.hasobject:
                kind = f"array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
                raise BadPlan(f"input '{name}': got a {kind}, wanted a numpy array of numbers to copy it")


@dataclass(frozen=True)
class Parcel:
    """One file to copy: its name in the folder there, and its bytes or where they are."""

    name: str
    size: int
    sha256: str
    source: Path | bytes


def far_command(frame: str, python: str, limit_s: int) -> str:
    """Return the command line for the login shell there.

    Args:
        frame: in angle brackets it begins every line of the answer.
        python: name or path there; relative to the home folder.
        limit_s: seconds after which the far side ends by itself.
    """
    boot = _PYTHON % OLDEST
    words = [_SHELL, "shipworthy", frame, python.removeprefix("~/"), boot, str(len(_guard())), str(limit_s)]
    return f"exec sh -c {shlex.join(words)}"


def parcels(job: Job) -> list[Parcel]:
    """List what is copied: the code, the request, inputs, and each target with the files that belong to it.

    Raises:
        BadPlan: a file cannot be read, or the files together are larger than `MOST_BYTES`.
    """
    _check_size(job.targets)
    files = {f"{place}/{name}": path for place, target in enumerate(job.targets) for name, path in _parts(target)}
    _check_size(files.values())
    found = [_in_memory("runner.pyz", runner()), _in_memory(REQUEST, _request(job))]
    if job.inputs is not None:
        found.append(_in_memory(INPUTS, _arrays(job.inputs)))
    return found + [_on_disk(name, path) for name, path in files.items()]


def stream(files: Sequence[Parcel]) -> Iterator[bytes]:
    """Yield what the far side reads: its own program, one line that lists the files, and the files.

    Raises:
        ProfileError: a file can no longer be read, or has changed its size.
    """
    yield _guard()
    yield json.dumps([[one.name, one.size, one.sha256] for one in files]).encode() + b"\n"
    for one in files:
        yield from [one.source] if isinstance(one.source, bytes) else _chunks(one.source, one.size)


def runner(folder: Path = _HERE) -> bytes:
    """Pack the modules that the measuring process needs into one file that Python runs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", f"from {_PACKAGE}.remote_main import begin\n\nbegin()\n")
        archive.writestr(f"{_PACKAGE}/__init__.py", "")
        for name in needed(folder):
            archive.writestr(f"{_PACKAGE}/{name}.py", (folder / f"{name}.py").read_bytes())
    return buffer.getvalue()


def needed(folder: Path = _HERE) -> list[str]:
    """Name the modules that the measuring process reaches by relative imports, those inside functions included."""
    found: set[str] = set()
    todo = list(_ROOTS)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _imports((folder / f"{name}.py").read_text(encoding="utf-8"))
    return sorted(found)


def _imports(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]


def _guard() -> bytes:
    return (_HERE / "remote_guard.py").read_bytes()


def _check_size(files: Iterable[Path]) -> None:
    sizes = {path: path.stat().st_size for path in files}
    if sum(sizes.values()) > MOST_BYTES:
        what = f"{max(sizes, key=sizes.__getitem__)}: {sum(sizes.values())} bytes are to be copied"
        raise BadPlan(f"{what}, wanted at most {MOST_BYTES}; copy them by hand and measure there")


def _parts(target: Path) -> Iterator[tuple[str, Path]]:
    """Yield a target and what belongs to it, each with its name there."""
    yield target.name, target
    weights = read_weights(target)
    for name in (*(weights.beside if weights else ()), f"{target.name}.json"):
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise BadPlan(f"{target}: its weights are in {name!r}, wanted a file beside it; export it into one folder")
        if (target.parent / name).is_file():
            yield name, target.parent / name


def _request(job: Job) -> bytes:
    targets = [{"path": f"{i}/{path.name}", "shown": str(path)} for i, path in enumerate(job.targets)]
    names = None if job.inputs is None else list(job.inputs)
    request = {"targets": targets, "runtime": job.runtime, "plan": asdict(job.plan), "inputs": names}
    return json.dumps(request | {"memory": job.memory}).encode()


def _arrays(inputs: Mapping[str, Any]) -> bytes:
    """Number the arrays: a name such as `file` would be an argument of `savez`, and one with a slash a folder."""
    buffer = io.BytesIO()
    np.savez(buffer, **{f"input{i}": array for i, array in enumerate(inputs.values())})
    return buffer.getvalue()


def _in_memory(name: str, data: bytes) -> Parcel:
    return Parcel(name, len(data), hashlib.sha256(data).hexdigest(), data)


def _on_disk(name: str, path: Path) -> Parcel:
    try:
        return Parcel(name, path.stat().st_size, sha256_of(path), path)
    except OSError as fault:
        raise BadPlan(f"{path}: it cannot be read: {fault.strerror}") from fault


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    left = size
    try:
        with path.open("rb") as file:
            while left and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk
    except OSError as fault:
        raise ProfileError(f"{path}: it cannot be read while it is copied: {fault.strerror}") from fault
    if left:
        raise ProfileError(f"{path}: it was changed while it was copied; measure again")
