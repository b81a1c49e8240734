from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("models", "compress", "export", "profile", "pipeline")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "__init__.py", "__main__.py", "py.typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built of a copy so that nothing is left in the clone; without a network."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(ROOT / name, source / name)
    for folder in (*STAGES, "tests", "examples", "docs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--disable-pip-version-check", "--wheel-dir", str(made), str(source)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(made.glob("shipworthy-*.whl")))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Every module, asset and template of the tree is in the wheel; tests, documents and examples are not."""
    top = [Path(name) for name in ("__init__.py", "__main__.py", "py.typed")]
    inner = [
        path.relative_to(ROOT)
        for folder in (*STAGES[1:4], "models", "pipeline", "models/assets", "pipeline/templates")
        for path in (ROOT / folder).iterdir()
        if path.is_file()
    ]
    wanted = {f"shipworthy/{path.as_posix()}" for path in (*top, *inner)}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == wanted


def test_the_wheel_declares_the_command_and_the_licences(wheel: zipfile.ZipFile) -> None:
    """The console script, and the texts of both licences: the program's and the data's."""
    texts = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    scripts = ConfigParser()
    scripts.read_string(wheel.read(texts["entry_points.txt"]).decode())
    assert dict(scripts["console_scripts"]) == {"shipworthy": "shipworthy.__main__:main"}
    kept = {name.removeprefix("licenses/") for name in texts if name.startswith("licenses/")}
    assert kept == {"LICENSE", "NOTICE", "models/assets/FASHION_MNIST_LICENSE.txt"}


def test_the_wheel_is_small(wheel: zipfile.ZipFile) -> None:
    """Model, data and code together stay under 14 MB: a package, not a download."""
    assert sum(entry.compress_size for entry in wheel.infolist()) < 14_000_000
