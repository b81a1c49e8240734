"""Which files a model is made of, so that a change in one of them makes it anew."""

from __future__ import annotations

import re
from modulefinder import ModuleFinder
from pathlib import Path

from ..models.files import sha256_of
from .recipe_parts import ModelPart

_FOLDERS = "transformers:"


def model_hashes(part: ModelPart) -> list[str]:
    """Return the hashes of a model's files: weights, `.pt2` file, factory and modules beside it, or all of a folder."""
    code = re.fullmatch(r"(.+\.py):\w*", part.source)
    named = [Path(name) for name in (part.source, part.weights) if name]
    files = [*(_code(Path(code[1])) if code else ()), *named]
    folder = Path(part.source.removeprefix(_FOLDERS))
    files += sorted(folder.iterdir()) if part.source.startswith(_FOLDERS) and folder.is_dir() else []
    return [sha256_of(path) for path in files if path.is_file()]


def _code(file: Path) -> list[Path]:
    """Return a Python file and those in its folder that it imports, however far; nothing is run."""
    finder = ModuleFinder(path=[str(file.parent)])
    try:
        finder.run_script(str(file))
    except (SyntaxError, ValueError, OSError):  # loading the model says what is wrong
        return [file]
    found = {name for module in finder.modules.values() if (name := getattr(module, "__file__", None))}
    return sorted({file, *map(Path, found)})
