from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import shipworthy

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", shipworthy.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """What `__all__` promises can be had, and the name is the thing's own."""
    value = getattr(shipworthy, name)
    assert getattr(value, "__name__", name) == name
    assert name in dir(shipworthy)


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import shipworthy` and reading a recipe cost no torch."""
    code = "import sys, shipworthy as sw; sw.read_recipe, sw.Prune, sw.BadInput; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_version_is_the_installed_one() -> None:
    """One place says which version this is."""
    assert shipworthy.__version__ == version("shipworthy")


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match="has no attribute 'measur'"):
        _ = shipworthy.measur


def test_checkers_and_the_interpreter_see_the_same_names() -> None:
    """The imports for type checkers name the same things in the same modules as the table used at run time."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    seen = {(str(node.module), alias.name) for node in imports for alias in node.names}
    table = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_HOMES")  # fmt: skip # noqa: E501
    assert seen == {(home, name) for home, names in table.items() for name in names}
    assert sorted(shipworthy.__all__) == sorted({name for _, name in seen} | {"__version__"})
