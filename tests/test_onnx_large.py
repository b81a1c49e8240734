"""A file too large for protobuf has its weights beside it: whole, hashed, readable, and never those of another."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from shipworthy.export.onnx_file import OnnxSettings, to_onnx
from shipworthy.export.onnx_graph import OnnxGraph, read_graph
from shipworthy.export.onnx_metadata import Notes, read_metadata
from shipworthy.export.onnx_store import DATA_HASH, external_files, store
from shipworthy.export.session import OnnxSession
from shipworthy.pipeline.fixed_batch import fix_batch
from shipworthy.tests.small_nets import captured, images, outputs

SMALL = OnnxSettings(most_bytes=1000)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_beside_the_file_are_read_back(precision: Any, tmp_path: Path) -> None:
    """Above the limit there are two files; ONNX Runtime reads them, the hash covers both, and so do the bytes."""
    model, x = captured("residual", torch.float32), images(3, dtype=torch.float32)
    file = to_onnx(model, tmp_path / "m.onnx", precision, settings=SMALL)
    (data,) = external_files(file.path)
    assert sorted(tmp_path.iterdir()) == sorted([file.path, data])
    assert file.bytes == file.path.stat().st_size + data.stat().st_size
    assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
    held = {entry.key: entry.value for entry in onnx.load(file.path, load_external_data=False).metadata_props}
    assert held[DATA_HASH] == hashlib.sha256(data.read_bytes()).hexdigest()
    onnx.checker.check_model(str(file.path), full_check=True)
    one = to_onnx(model, tmp_path / "one" / "m.onnx", precision)
    assert list((tmp_path / "one").iterdir()) == [one.path]
    (found,), (wanted,) = (OnnxSession(f).run({"x": x.numpy()}) for f in (file, one))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(found, outputs(model, x)[0].numpy(), atol=0.05)


def test_a_file_for_one_batch_keeps_its_weights_beside_it(tmp_path: Path) -> None:
    """Written anew over itself, for one batch size, the file still has its weights; older ones go away."""
    model, x = captured("residual", torch.float32), images(2, dtype=torch.float32)
    file = to_onnx(model, tmp_path / "m.onnx", settings=SMALL)
    (before,) = OnnxSession(file).run({"x": x.numpy()})
    fixed = fix_batch(file, model, 2)
    assert OnnxSession(fixed).inputs["x"][1][0] == 2
    (after,) = OnnxSession(fixed).run({"x": x.numpy()})
    np.testing.assert_array_equal(before, after)
    assert external_files(fixed.path) == []  # small enough for one file, as no limit is set here
    again = to_onnx(model, tmp_path / "m.onnx", settings=SMALL)
    other = to_onnx(captured("squeeze-excite", torch.float32), tmp_path / "m.onnx", settings=SMALL)
    assert len(external_files(other.path)) == 1
    assert again.sha256 != other.sha256


def test_what_fails_while_weights_are_written_leaves_nothing(tmp_path: Path) -> None:
    """A weight that cannot be read is an error; the files that were there stay, and no half of a new one."""
    model = captured("residual", torch.float32)
    file = to_onnx(model, tmp_path / "m.onnx", settings=SMALL)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    graph = read_graph(file.path)

    def fails() -> np.ndarray[Any, Any]:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        store(OnnxGraph(graph.proto, {**graph.weights, [*graph.weights][-1]: fails}), file.path, 1000)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_are_streamed(tmp_path: Path) -> None:
    """At no time is more than one weight held: each is asked for once, after the one before it has been dropped."""
    model = captured("residual", torch.float32)
    graph = read_graph(to_onnx(model, tmp_path / "a.onnx", settings=SMALL).path)
    alive: list[int] = []

    class _Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is None:
                alive.pop()

    def counted(read: Any) -> Any:
        def give() -> np.ndarray[Any, Any]:
            alive.append(1)
            most.append(len(alive))
            made = _Counted(read().shape, read().dtype)
            made[...] = read()
            return made

        return give

    most: list[int] = []
    stored = store(
        OnnxGraph(graph.proto, {name: counted(read) for name, read in graph.weights.items()}), tmp_path / "b.onnx", 1000
    )
    assert len(most) == len(graph.weights) > 3
    assert max(most) <= 2  # the next is read while the name of the last still holds it
    assert stored.bytes > 1000


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    """Source, weights, precision, input, classes and tools are in the file's properties; weights tell models apart."""
    notes = Notes("ab" * 32, {"scale": 1 / 255, "mean": [0.5], "std": [0.5], "layout": "NCHW"}, ("cat", "dog"))
    model = captured("residual", torch.float32)
    held = read_metadata(to_onnx(model, tmp_path / "m.onnx", "mixed", settings=OnnxSettings(notes=notes)))
    assert held["precision"] == "mixed"
    assert held["classes"] == '["cat", "dog"]'
    assert held["recipe_sha256"] == "ab" * 32
    assert '"layout": "NCHW"' in held["preprocessing"]
    assert "GlobalAveragePool" in held["fp32_nodes"]
    assert "torch " in held["tools"]
    other = read_metadata(to_onnx(captured("squeeze-excite", torch.float32), tmp_path / "o.onnx"))
    assert held["weights_sha256"] != other["weights_sha256"]
    assert (held["source"], other["source"]) == ("residual", "squeeze-excite")
