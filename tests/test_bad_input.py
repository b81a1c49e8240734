"""What a user can get wrong in a build, through the command line: one message, exit code 2, nothing half-written."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from shipworthy.pipeline.cli import app
from shipworthy.pipeline.progress import Silent
from shipworthy.pipeline.store import open_store
from shipworthy.tests.tiny_project import write_project

QUICK = {"compress": None, "export": None}


def run(recipe: Path, out: Path) -> Result:
    """Run `shipworthy build` in this process."""
    return CliRunner().invoke(app, ["build", str(recipe), "-w", str(out)])


def written(out: Path) -> list[str]:
    """Return what a build has left of files."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != ".lock")


def refused(recipe: Path, *words: str, out: Path | None = None) -> str:
    """Check that a build ends with one message that holds all words, code 2, and no file; return the message."""
    out = out or recipe.parent / "out"
    shown = run(recipe, out)
    assert (shown.exit_code, shown.stdout) == (2, ""), shown.output
    progress, message = shown.stderr[: (at := shown.stderr.index("error: "))], shown.stderr[at:]
    assert all(line.endswith(" ...") for line in progress.splitlines()), progress
    assert message.count("error: ") == 1
    assert "Traceback" not in message
    assert [word for word in words if word not in message] == [], message
    assert not out.is_dir() or written(out) == []
    return message


def change(path: Path, old: str, new: str) -> None:
    """Replace text in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# The checkpoint: how it is made, its name, and words of the message.


def _good(path: Path) -> dict[str, torch.Tensor]:
    shapes = {"conv1.weight": (16, 1, 3, 3), "conv2.weight": (16, 16, 3, 3), "fc.weight": (4, 16), "fc.bias": (4,)}
    norms = {f"{bn}.{name}": (16,) for bn in ("bn1", "bn2") for name in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip # noqa: E501
    return {name: torch.ones(shape) for name, shape in (shapes | norms).items()}


def _cut(path: Path) -> None:
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(_good(path), path)
    path.write_bytes(path.read_bytes()[:-200])


def _other(path: Path) -> None:
    weights = _good(path) | {"conv2.weight": torch.ones(32, 16, 3, 3), "head.weight": torch.ones(2)}
    del weights["fc.bias"]
    torch.save(weights, path)


CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str, list[str]]] = {
    "cut safetensors": (_cut, "w.safetensors", ["cut off", "copy it anew"]),
    "cut pickle": (_cut, "w.pt", ["cut off", "copy it anew"]),
    "empty": (Path.touch, "w.pt", ["cut off", "copy it anew"]),
    "other architecture": (
        _other,
        "w.pt",
        [
            "3 differences",
            "conv2.weight is (32, 16, 3, 3), wanted (16, 16, 3, 3)",
            "missing fc.bias",
            "unexpected head",
        ],
    ),
    "whole module": (
        lambda path: torch.save(torch.nn.ReLU(), path),
        "w.pt",
        ["more than weights", "can run any code", "state_dict()"],
    ),
    "no weights": (lambda path: torch.save([1, 2], path), "w.pt", ["holds no weights by name", "state_dict()"]),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    """A cut-off, foreign or unsafe checkpoint is named with what is wrong with it and what to give."""
    save, name, words = CHECKPOINTS[case]
    save(tmp_path / name)
    recipe = write_project(tmp_path, model={"source": "tiny_model.py:factory", "weights": name}, **QUICK)
    refused(recipe, str(tmp_path / name), *words)


# The model's code: what is replaced, by what, and words of the message; LINE becomes the number of the new line.
MODELS = {
    "branch on data": (
        "x = torch.relu(self.bn1",
        "x = x if x.sum() > 0 else -x\n        x = torch.relu(self.bn1",
        ["torch.export cannot capture", "tiny_model.py:LINE", "if x.sum() > 0", "torch.where"],
    ),
    "raises": (
        "net, (images",
        'raise RuntimeError("no such thing")\n    net, (images',
        ["tiny_model.py:LINE, in factory", "RuntimeError: no such thing"],
    ),
    "syntax": ("def factory():", "def factory(:", ["tiny_model.py:LINE", "SyntaxError"]),
    "import": ("from tiny_data", "from tiny_date", ["tiny_model.py:LINE", "No module named 'tiny_date'"]),
    "exits": (
        "net, (images",
        "raise SystemExit(0)\n    net, (images",
        ["tiny_model.py:LINE, in factory", "SystemExit"],
    ),
    "no module": ("return net, torch.zeros(2, 1, 8, 8)", "return 3", ["returned int, wanted a torch.nn.Module"]),
    "no such factory": ("def factory", "def factroy", ["no function 'factory'", "factroy"]),
    "no inputs": ("return net, torch.zeros(2, 1, 8, 8)", "return net", ["gives no example inputs"]),
    "wrong inputs": (
        "torch.zeros(2, 1, 8, 8)",
        "torch.zeros(2, 3, 8, 8)",
        ["fails on inputs of shape (2, 3, 8, 8)", "tiny_model.py:19, in forward"],
    ),
    "fixed batch": (
        "self.fc(x.mean((2, 3)))",
        "self.fc(x.mean((2, 3))).reshape(160 if self.training else 2, 4)",
        ["fixes the batch size at 2", "x.shape[0]"],
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_model_code_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    """Whatever the user's code does wrong, its own line is named, and a factory that exits cannot end the program."""
    old, new, words = MODELS[case]
    recipe = write_project(tmp_path, **QUICK)
    change(tmp_path / "tiny_model.py", old, new)
    lines = (tmp_path / "tiny_model.py").read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if new.splitlines()[0] in text)
    refused(recipe, *(word.replace("LINE", str(line)) for word in words))


@pytest.mark.parametrize(("content", "words"), [(b"PK\x03\x04half", "cut off"), (b"", "cut off"), (b"PK\x05\x06" + bytes(18), "cannot read it")])  # fmt: skip # noqa: E501
def test_a_pt2_file_that_cannot_be_read(content: bytes, words: str, tmp_path: Path) -> None:
    """A truncated or foreign `.pt2` file is named."""
    (tmp_path / "model.pt2").write_bytes(content)
    recipe = write_project(tmp_path, model={"source": "model.pt2"}, data=None, goals=None, **QUICK)
    refused(recipe, "model.pt2", words)


# The data.


def _images(folder: Path, size: int = 8, classes: str = "abcd") -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 255, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def _corrupt(folder: Path) -> None:
    for path in _images(folder).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:20])


DATA: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "empty": (Path.mkdir, ["images", "no class folders", "wanted one folder for each class"]),
    "empty classes": (lambda folder: (folder / "a").mkdir(parents=True), ["class folders without images"]),
    "corrupt": (_corrupt, ["16 of 16 images cannot be read", "b/1.png", "repair or remove them"]),
    "one class": (lambda folder: _images(folder, classes="a"), ["1 class (a)", "needs at least 2"]),
    "other size": (
        lambda folder: _images(folder, 10),
        ["takes inputs of shape (1, 8, 8)", "gives (1, 10, 10)", "choose other data"],
    ),
    "other classes": (
        lambda folder: _images(folder, classes="abc"),
        ["tells 4 classes apart", "has 3", "choose other data"],
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_a_data_folder_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    """An empty or corrupt folder is named, and so is what does not fit the model."""
    fill, words = DATA[case]
    fill(tmp_path / "images")
    refused(write_project(tmp_path, data={"source": "images"}, **QUICK), *words)


def test_numbers_for_other_channels_are_refused(tmp_path: Path) -> None:
    """`mean` and `std` must fit the images' channels."""
    source = {"source": "tiny_data.py:data", "mean": [0.5, 0.5, 0.5]}
    refused(write_project(tmp_path, data=source, **QUICK), "mean and std have 3 numbers, the images 1 channels")


def test_a_data_function_that_fails_is_named(tmp_path: Path) -> None:
    """The line of the user's function is in the message."""
    recipe = write_project(tmp_path, model={"source": "reference:fashion-resnet20"}, **QUICK)
    change(tmp_path / "tiny_data.py", "numbers = np", "numbers = nq")
    refused(recipe, "tiny_data.py:6, in data", "NameError")


# The work folder.


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "/sys/nowhere"])
def test_a_work_folder_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    """A place where no folder can be is named with what to choose instead."""
    (tmp_path / "file").write_text("kept")
    out = tmp_path / place
    refused(write_project(tmp_path, **QUICK), str(out), "cannot be used as a work folder", "another --workdir", out=out)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_work_folder_in_use(tmp_path: Path) -> None:
    """A second build in the same work folder is refused while the first runs."""
    recipe = write_project(tmp_path, **QUICK)
    with open_store(tmp_path / "out", Silent()):
        refused(recipe, str(tmp_path / "out"), "another build is using this work folder", "another --workdir")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on a disk of its own that can be made larger with `resize`."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def resize(disk: Path, size: str) -> None:
    """Change the size of a disk."""
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_full_work_folder_can_be_given_room_and_goes_on(tmp_path: Path, small_disk: Path) -> None:
    """Wherever the room ends, one message says so and nothing is half-written; with room the run ends well."""
    recipe, out = write_project(tmp_path, **QUICK), small_disk / "out"
    codes = []
    for size in ("20k", "48k", "64k", "160k", "8m"):
        resize(small_disk, size)
        shown = run(recipe, out)
        codes.append(shown.exit_code)
        assert list((out / "stages").glob(".*")) == []
        if shown.exit_code != 0:
            assert (
                f"error: {out}: the work folder cannot be written (No space left on device); make room" in shown.stderr
            )
            assert not any((out / name).exists() for name in ("report.json", "model.onnx"))
    assert codes[0] == 2
    assert codes[-1] == 0
    assert set(codes) == {0, 2}


# Tools and the recipe itself.


def test_a_flavour_that_is_not_installed_names_its_extra(tmp_path: Path) -> None:
    """An engine that cannot be built here is told before any work is done."""
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed")
    recipe = write_project(tmp_path, compress=None, export={"tensorrt": {"flavour": "tensorrt"}})
    refused(recipe, "'tensorrt' is not installed", "pip install 'shipworthy[tensorrt]'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("", "is a folder, wanted a recipe file"), ("none.yaml", "no such recipe")]
)
def test_a_recipe_that_is_not_a_file(name: str, words: str, tmp_path: Path) -> None:
    """A folder or nothing in the recipe's place is said as what it is; no work folder is made."""
    refused(tmp_path / name, words, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pass_that_cannot_work_names_itself_and_keeps_what_was_done(tmp_path: Path) -> None:
    """A faulty pass ends with its name, its reason and a remedy; the stages before it stay for the next run."""
    recipe = write_project(tmp_path, compress=[{"prune": {"ratio": 0.1, "round_to": 16}}], export=None)
    shown = run(recipe, tmp_path / "out")
    assert shown.exit_code == 2
    assert "error: prune: nothing to remove" in shown.stderr
    assert "lower round_to (16)" in shown.stderr
    names = {path.name.rpartition("-")[0] for path in (tmp_path / "out" / "stages").iterdir()}
    assert names == {"capture", "export-baseline", "check-baseline"}
