"""Run a function from a file of the user's, given as `path/to/file.py:name`."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .errors import BadInput

_siblings: set[str] = set()


def call_user(spec: str) -> Any:
    """Import a file and call a function in it without arguments, torch's random numbers seeded with 0.

    The file runs as a module of its own name that nothing else can have; its folder is on `sys.path` meanwhile, and
    no byte code is written beside it.

    Raises:
        BadInput: there is no such file or function, or the user's code fails; the message names its line.
    """
    place, _, name = spec.rpartition(":")
    path = Path(place).resolve()
    if not path.is_file():
        raise BadInput(f"{place}: no such file (from {spec!r})")
    with _beside(path.parent), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _run(path, lambda: _import(path))
        return _run(path, _function(module, path, name))


def _function(module: ModuleType, path: Path, name: str) -> Callable[[], Any]:
    found = getattr(module, name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]  # callable() does not tell what comes out
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:10]
    raise BadInput(f"{path}: no function {name!r}; it has {', '.join(near) or 'none'}")


def _import(path: Path) -> ModuleType:
    name = f"shipworthy_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _run(path: Path, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (Exception, SystemExit) as fault:
        raise BadInput(f"{where(fault, path)}: {type(fault).__name__}: {fault}") from fault


def where(fault: BaseException, path: Path) -> str:
    """Name the deepest line of the user's own code (the file at `path` and its neighbours) on the way to a fault."""
    if isinstance(fault, SyntaxError) and fault.filename and _own(fault.filename, path):
        return f"{fault.filename}:{fault.lineno}"
    frames = [one for one in traceback.extract_tb(fault.__traceback__) if _own(one.filename, path)]
    return f"{frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}" if frames else str(path)


def _own(filename: str, path: Path) -> bool:
    """A virtual environment often lies below the user's folder, and is not the user's code."""
    file = Path(filename)
    return file.is_relative_to(path.parent) and "site-packages" not in file.parts


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let the file's neighbours be imported, and none that an earlier file of the same name had."""
    for name in _siblings:
        sys.modules.pop(name, None)
    _siblings.clear()
    before, wrote = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        fresh = set(sys.modules) - before
        _siblings.update(name for name in fresh if _is_sibling(name, folder))


def _is_sibling(name: str, folder: Path) -> bool:
    """Our own modules may lie below the user's folder too, and must never be imported twice."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return not name.startswith("shipworthy") and file is not None and _own(file, folder / "any.py")
