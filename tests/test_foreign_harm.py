"""Files that are written to do harm end in BadInput before a library acts on them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from shipworthy.export.onnx_read import check_file_safe, read_onnx
from shipworthy.export.session import OnnxSession
from shipworthy.models.errors import BadInput
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.foreign_summary import summarize_onnx
from shipworthy.profile.errors import BadPlan
from shipworthy.profile.weights import read_weights
from shipworthy.tests.foreign_files import bomb, convolution, empty_weight, external, functions, nested, save

ONES = "ConstantOfShape<value = int64[1] {1}>"
CONSTANTS = "int64[1] s = {10000}"
RANGE = "int64 z = {0}, int64 o = {1}, int64 s = {1000000000000}"
HARM: dict[str, tuple[onnx.ModelProto | bytes, str]] = {
    "above": (external("../secret.bin"), "lies in '../secret.bin', wanted a file in the model's own folder"),
    "absolute": (external("/etc/hostname"), "lies in '/etc/hostname', wanted a file in the model's own folder"),
    "windows": (external("C:\\secret.bin"), "wanted a file in the model's own folder"),
    "link": (external("link.bin"), "a link out of the model's folder"),
    "device": (external("null"), "a link out of the model's folder"),
    "folder": (external("."), "is not a plain file"),
    "absent": (external("none.bin"), "which is not there; put it beside the model"),
    "offset": (external("w.bin", offset=4), "wants bytes 4 to 12 of"),
    "length": (external("w.bin", length=1 << 40), "gives its length as 1099511627776 bytes"),
    "negative": (external("w.bin", offset=-8), "gives its offset as '-8', wanted a number of bytes"),
    "dims": (external("w.bin", dims=(1 << 40,)), "wants bytes 0 to 4398046511104 of"),
    "no data": (empty_weight(), "holds 0 numbers, and its shape [1099511627776] needs 1099511627776"),
    "cut": (convolution().SerializeToString()[:-9], "not an ONNX file, or a damaged one"),
    "empty": (b"", "it is empty"),
    "zeros": (b"\0" * 64, "not an ONNX file"),
    "text": (b"hello, I am no model", "not an ONNX file"),
    "zip": (b"PK\3\4" + b"\0" * 60, "not an ONNX file"),
    "size": (bomb("c = ConstantOfShape(s) y = Add(x, c)", "int64[1] s = {1099511627776}"), "makes 1.1e+12 numbers"),
    "range": (bomb("c = Range(z, s, o) d = Cast<to = 1>(c) y = Add(x, d)", RANGE), "makes 1e+12 numbers"),
    "rank": (bomb(f"c = {ONES}(s) y = ConstantOfShape(c)"), "takes the shape 'c' of 100000000 entries"),
    "nested": (nested(25), "subgraphs lie 25 deep in each other, wanted at most 16"),
    "unfolding": (functions(40), "its functions unfold into 1.1e+12 nodes"),
    "recursion": (functions(3, loops=True), "calls itself; ONNX has no recursion"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a model's weights, a link out of it, and a secret beside it."""
    made = tmp_path / "models"
    made.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.ones(2, np.float32).tobytes())
    (made / "w.bin").write_bytes(np.ones(2, np.float32).tobytes())
    (made / "link.bin").symlink_to(tmp_path / "secret.bin")
    (made / "null").symlink_to(os.devnull)
    return made


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused(folder: Path, name: str) -> None:
    """Reading, opening and inspecting say the same; no library has seen the file."""
    model, words = HARM[name]
    path = save(folder / "m.onnx", model)
    for reader in (check_file_safe, OnnxSession, summarize_onnx):
        with pytest.raises(BadInput, match=re.escape(words)):
            reader(path)


@pytest.mark.parametrize("command", ["inspect", "profile", "compare"])
def test_commands_refuse_harm(folder: Path, command: str) -> None:
    """The exit code is that of bad input, and the file is named."""
    path = str(save(folder / "m.onnx", external("../secret.bin")))
    found = CliRunner().invoke(app, [command, *([path, path] if command == "compare" else [path])])
    assert (found.exit_code, "../secret.bin" in found.stderr) == (2, True)


def test_shapes_that_cannot_be_bounded_are_tried_in_a_child(folder: Path) -> None:
    """A shape of 10**8 entries, computed by a product, takes the child's memory and not ours."""
    steps = f"t = Mul(s, s) c = {ONES}(t) y = ConstantOfShape(c)"
    with pytest.raises(BadInput, match="opening it takes over"):
        check_file_safe(save(folder / "m.onnx", bomb(steps, CONSTANTS)))


def test_a_loose_bound_is_no_fault(folder: Path) -> None:
    """A computed shape that stays small opens."""
    steps = "t = Mul(s, s) y = ConstantOfShape(t)"
    check_file_safe(save(folder / "m.onnx", bomb(steps, "int64[1] s = {2}")))


def test_data_beside_a_file_is_read(folder: Path) -> None:
    """Weights in the file's own folder are taken, also where the file is a link, as in caches of downloads."""
    path = save(folder / "m.onnx", external("w.bin"))
    link = folder.parent / "cached.onnx"
    link.symlink_to(path)
    (folder.parent / "w.bin").symlink_to(folder / "w.bin")
    for place in (path, link):
        check_file_safe(place)
        (given,) = OnnxSession(place).run({"x": np.zeros((1, 2), np.float32)})
        np.testing.assert_array_equal(given, np.ones((1, 2)))
    loaded = read_onnx(path, weights=True)
    assert loaded.graph.initializer[0].raw_data == np.ones(2, np.float32).tobytes()


def test_the_profiler_reads_no_weights_outside_the_folder(folder: Path) -> None:
    """It copies what belongs to a file to other machines."""
    for location in ("../secret.bin", "link.bin", "/etc/hostname"):
        with pytest.raises(BadPlan, match="outside its folder"):
            read_weights(save(folder / "m.onnx", external(location)))
    found = read_weights(save(folder / "m.onnx", external("w.bin")))
    assert found is not None
    assert (found.bytes, found.beside) == (8, ("w.bin",))


def test_a_number_without_an_end_is_no_file(folder: Path) -> None:
    """The profiler's own reader ends at 64 bits."""
    assert read_weights(save(folder / "m.onnx", b"\xff" * 100_000)) is None
