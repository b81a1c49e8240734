"""Bytes of weights read from files, against the packages that wrote them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from shipworthy.profile.weights import Weights, file_bytes, read_weights


def saved(path: Path, tensors: list[TensorProto]) -> Path:
    """Write a graph that holds these tensors."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "main", [value], [value], tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
def test_every_type_has_its_size(kind: int, tmp_path: Path) -> None:
    """Raw bytes as the onnx package packs them are as long as what is counted, for types of 2 bits to 128."""
    if kind == TensorProto.STRING:
        tensor, size = TensorProto(name="t", data_type=kind, dims=[3], string_data=[b"a", b"bc", b"def"]), 6
    else:
        zeros = np.zeros((3, 5), helper.tensor_dtype_to_np_dtype(kind))
        tensor = numpy_helper.from_array(zeros, "t")
        size = len(tensor.raw_data)
    assert read_weights(saved(tmp_path / "t.onnx", [tensor])) == Weights(size)


def test_scalars_empty_tensors_and_unpacked_numbers_count(tmp_path: Path) -> None:
    """Shapes decide, whichever field holds the numbers."""
    tensors = [
        helper.make_tensor("scalar", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("empty", TensorProto.FLOAT, [0, 7], []),
        helper.make_tensor("listed", TensorProto.INT64, [2, 3], range(6)),
    ]
    assert read_weights(saved(tmp_path / "t.onnx", tensors)) == Weights(4 + 48)


def test_constants_and_tensors_in_branches_count(write: Callable[[str, str], Path]) -> None:
    """Weights hide in attributes and in the graphs of control flow."""
    path = write(
        "branch",
        """main (bool c, float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
            k = Constant <value = float[4] {1, 1, 1, 1}> ()
            y = If (c) <
                then_branch = a () => (float[4] p) <float[4] v = {5, 6, 7, 8}> { p = Add(w, v) },
                else_branch = b () => (float[4] q) { q = Add(k, x) }
            >
        }""",
    )
    assert read_weights(path) == Weights(3 * 16)


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    """External data counts by its shape, its file is named once, and both files make up the size."""
    tensors = [numpy_helper.from_array(np.ones((64, 64), np.float32), name) for name in ("a", "b")]
    model = onnx.load(saved(tmp_path / "plain.onnx", tensors))
    path = tmp_path / "beside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="beside.onnx.data", size_threshold=0)
    assert read_weights(path) == Weights(2 * 64 * 64 * 4, ("beside.onnx.data",))
    assert file_bytes(path) == path.stat().st_size + (tmp_path / "beside.onnx.data").stat().st_size
    assert file_bytes(path) > 2 * 64 * 64 * 4 > path.stat().st_size


def test_an_exported_program(tmp_path: Path) -> None:
    """A .pt2 file's weights are its state and constants, as torch counts them."""
    module = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5)).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(2, 7),)), tmp_path / "m.pt2")
    held = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    assert read_weights(tmp_path / "m.pt2") == Weights(held)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x3a\xff\xff\xff\x0f", bytes(range(256))])
def test_other_files_have_none(content: bytes, tmp_path: Path) -> None:
    """An engine, an empty or a cut-off file is no fault here."""
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    assert read_weights(path) is None
    assert file_bytes(path) == len(content)
