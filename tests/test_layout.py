from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("models", "compress", "export", "profile", "pipeline")
MAY_IMPORT = {
    "models": {"models"},
    "compress": {"models", "compress"},
    "export": {"models", "compress", "export"},
    "profile": {"profile"},
    "pipeline": set(STAGES),
}
LEFT_OUT = {"__pycache__", "out", "build", "dist", ".venv", ".git"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tree() -> Iterator[Path]:
    """Yield the files that belong to the repository."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [
            n for n in names if not (n in LEFT_OUT or n.endswith((".egg-info", "_cache")) or n == ".hypothesis")
        ]
        yield from (Path(folder, name) for name in files)


def modules(*folders: str) -> list[Path]:
    """List the Python files of some folders, however deep, relative to the root."""
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield every import of a module as a dotted name from the repository's root: lazy ones and those for types too.

    A relative import gives `compress.prune`, an absolute one gives `/torch.fx`.
    """
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (f"/{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield f"/{node.module}"
        elif isinstance(node, ast.ImportFrom):
            above = path.parts[: len(path.parts) - node.level]
            start = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*start, alias.name]) for alias in node.names)


def wrong_arrows(path: Path) -> list[str]:
    """List the imports that a module of a stage must not have."""
    found = list(imports(path))
    inner = [name for name in found if not name.startswith("/")]
    absolute = [name for name in found if name.partition(".")[0] == "/shipworthy"]
    return absolute + [name for name in inner if name.partition(".")[0] not in MAY_IMPORT[path.parts[0]]]


@pytest.mark.parametrize("path", modules(*STAGES), ids=str)
def test_imports_point_one_way(path: Path) -> None:
    """Arrows: models <- compress <- export, profile alone, pipeline on top; inside the package imports are relative."""
    assert wrong_arrows(path) == []


def test_a_wrong_arrow_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader finds upward imports at any depth, lazy or not, and absolute ones."""
    lazy = "def f():\n    from ..pipeline.build import build\n"
    code = f"{lazy}import shipworthy.models\nfrom .rewrite import x\nimport torch\n"
    place = tmp_path / "compress" / "wrong.py"
    place.parent.mkdir()
    place.write_text(code)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert wrong_arrows(Path("compress/wrong.py")) == ["/shipworthy.models", "pipeline.build.build"]


@pytest.mark.parametrize("path", modules("tests", "benchmarks", "examples"), ids=str)
def test_outside_the_package_imports_are_absolute(path: Path) -> None:
    """Tests, benchmarks and examples see the package as its users do."""
    assert [name for name in imports(path) if not name.startswith("/")] == []


def test_stage_folders_are_no_regular_packages() -> None:
    """A package `profile/` would hide the standard library's `profile`, and with it cProfile and torch.export."""
    found = [folder for folder in (*STAGES, "tests", "tests/profile") if (ROOT / folder / "__init__.py").exists()]
    assert found == []


def test_no_module_hides_another() -> None:
    """No file is named after a module of the standard library or a distribution that is installed."""
    taken = (set(sys.stdlib_module_names) | set(packages_distributions())) - {"shipworthy", "tests", "conftest"}
    mine = [path for path in modules(*STAGES, "tests", "benchmarks", "examples") if path.stem != "__init__"]
    assert [str(path) for path in mine if path.stem in taken] == []


def test_every_folder_with_code_is_packaged() -> None:
    """pyproject.toml names each folder of the package."""
    folders = sorted({path.parent.as_posix().replace("/", ".") for path in modules(*STAGES)})
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(["shipworthy", *(f"shipworthy.{f}" for f in folders)])  # fmt: skip # noqa: E501


@pytest.mark.parametrize("path", sorted(p for p in tree() if p.suffix == ".py"), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_too_long(path: Path) -> None:
    """A file of more than 400 lines is two files."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_files_name_no_machine_and_no_registry() -> None:
    """What is committed works elsewhere: no path of somebody's machine, no host of a package registry."""
    places = re.compile(r"(?<![\w.~})-])/(?:home|root|work|opt|Users)/|[A-Z]:\\Users")
    hosts = re.compile(r"pythonhosted|pypi\.org|/simple\b|index-url|find-links")
    found = []
    for path in tree():
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".j2", ".css"} or path.name in {"Makefile", "run"}:  # fmt: skip # noqa: E501
            text = path.read_text(encoding="utf-8")
            if path != Path(__file__) and (places.search(text) or hosts.search(text)):
                found.append(str(path.relative_to(ROOT)))
    assert found == []


def test_the_package_is_seen_under_its_name() -> None:
    """Type checkers find the package through a relative link, whatever the clone is called."""
    link = ROOT / ".typing" / "shipworthy"
    assert link.is_symlink()
    assert link.readlink() == Path("..")
    assert link.resolve() == ROOT.resolve()


def test_declared_dependencies_are_those_imported() -> None:
    """Every distribution that the package imports is declared, and every declared one is imported."""
    declared = {_name(line) for line in PYPROJECT["project"]["dependencies"]}
    homes = packages_distributions()
    used = {module for path in modules(*STAGES) for module in _foreign(path)}
    found = {_name(home) for module in used for home in homes.get(module, ())}
    # The exporter of torch imports onnxscript by itself.
    assert found - declared == set()
    extras = PYPROJECT["project"]["optional-dependencies"]
    offered = {_name(line) for name, lines in extras.items() if name not in ("dev", "bench") for line in lines}
    optional = {module for path in modules(*STAGES) for module in _at_need(path)}
    known = declared | offered
    assert [one for one in optional if one in homes and known.isdisjoint(map(_name, homes[one]))] == []
    found |= {_name(home) for module in optional for home in homes.get(module, ())}
    assert declared - found - {"onnxscript", "onnxruntime", "onnxruntime-gpu", "nvidia-ml-py"} == set()


def _foreign(path: Path) -> set[str]:
    """Return the top-level modules that are imported by a statement."""
    return {name[1:].partition(".")[0] for name in imports(path) if name.startswith("/")}


def _at_need(path: Path) -> set[str]:
    """Return the top-level modules that are imported by `import_module("name")`, where they are needed."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return set(re.findall(r'import_module\("(\w+)[."]', text)) - {"google"}  # comes with onnx


def _name(requirement: str) -> str:
    """Return a distribution's name as registries compare it."""
    bare = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", bare[0] if bare else requirement).lower()
