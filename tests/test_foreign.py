"""ONNX files of other tools: what `inspect` says of them, and that they run, or say why not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from shipworthy.export.session import OnnxSession, find_batch
from shipworthy.models.errors import BadInput
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.foreign_summary import OnnxSummary, summarize_onnx
from shipworthy.pipeline.input_shapes import random_samples, read_shapes
from shipworthy.tests.foreign_files import (
    convolution,
    custom,
    external,
    functions,
    literal_batch,
    loop,
    recurrent,
    save,
    sequence,
    texts,
    tokens,
)

QUICK = ["--budget", "0.05"]


def run(*words: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    found = CliRunner().invoke(app, list(words))
    return found.exit_code, found.stdout, found.stderr


def summary(tmp_path: Path, model: onnx.ModelProto, **shapes: Any) -> OnnxSummary:
    """Summarize a model by its file."""
    return summarize_onnx(save(tmp_path / "m.onnx", model), shapes)


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_an_old_convolution_is_counted(tmp_path: Path, opset: int) -> None:
    """Weights among the inputs are no inputs, batch-norm has parameters, and MACs are those of one example."""
    found = summary(tmp_path, convolution(opset))
    assert [value.name for value in found.facts.inputs] == ["x"]
    assert (found.facts.params, found.macs, found.not_counted) == (54 + 8, 2 * 36 * 27, ())
    assert [(row.kind, row.params, row.macs) for row in found.layers] == [
        ("Conv", 54, 1944),
        ("BatchNormalization", 8, 0),
    ]
    assert found.facts.opsets == {"ai.onnx": opset}


@pytest.mark.parametrize("batch", ["4", "N"])
def test_macs_are_those_of_one_example(tmp_path: Path, batch: str) -> None:
    """A batch that is fixed at 4 costs four times as much and is divided by it."""
    found = summary(tmp_path, convolution(batch=batch))
    assert (found.macs, found.batch) == (1944, 4 if batch == "4" else 1)


@pytest.mark.parametrize("size", [-1, 0])
def test_a_batch_written_as_minus_one_or_zero_is_open(tmp_path: Path, size: int) -> None:
    """MACs are counted at batch 1."""
    assert summary(tmp_path, literal_batch(size)).macs == 1944


def test_an_lstm_is_counted_with_weights_in_constant_nodes(tmp_path: Path) -> None:
    """Steps x batch x weights; without a length the answer says which option gives it."""
    shapes = {"x": (None, 7, 4)}
    found = summary(tmp_path, recurrent(), **shapes)
    assert (found.facts.params, found.macs, found.not_counted) == (20 * 9, 7 * 20 * 9, ())
    open_length = summary(tmp_path, recurrent())
    assert (open_length.macs, open_length.not_counted) == (
        0,
        ("1 x LSTM: the shapes are not known; give --shape x=1,SIZE,4",),
    )


def test_sizes_bind_names_in_all_inputs(tmp_path: Path) -> None:
    """The length of one input gives those of others, formulas among them; what contradicts it is refused."""
    assert summary(tmp_path, tokens(), ids=(None, 5)).macs == 5 * 4 * 2
    samples = random_samples(tmp_path / "m.onnx", 3, {"ids": (None, 5)})
    assert {name: array.shape for name, array in samples.items()} == {"ids": (3, 5), "mask": (3, 11)}
    with pytest.raises(BadInput, match=re.escape("mask=3,10: got 10 where it declares 2*seq+1 (11)")):
        random_samples(tmp_path / "m.onnx", 3, {"ids": (None, 5), "mask": (3, 10)})


def test_what_runs_unknown_times_is_not_counted(tmp_path: Path) -> None:
    """Its parameters are, and the answer says so."""
    found = summary(tmp_path, loop())
    assert (found.facts.params, found.macs) == (16, 0)
    assert found.not_counted == ("1 x MatMul inside Loop: how often they run is not in the file",)


def test_custom_operators_are_named(tmp_path: Path) -> None:
    """A total without them does not pass for the whole; functions that the file brings along are unfolded."""
    assert summary(tmp_path, custom()).not_counted[0].startswith("1 x my.ops.Magic")
    assert summary(tmp_path, functions(3)).not_counted == ()


def test_inspect_shows_a_file_without_torch(tmp_path: Path) -> None:
    """Text and data agree, with files beside it in the size."""
    save(tmp_path / "w.bin", np.ones(2, np.float32).tobytes())
    path = str(save(tmp_path / "m.onnx", external("w.bin")))
    code, text, _ = run("inspect", path)
    assert code == 0
    assert "format  ONNX IR 8, opset ai.onnx 17" in text
    data = json.loads(run("inspect", path, "--json")[1])
    assert data["facts"]["bytes"] == Path(path).stat().st_size + 8
    assert (data["facts"]["beside"], data["facts"]["params"]) == (["w.bin"], 2)
    assert run("inspect", path, "--groups")[0] == 2


def test_state_is_cut_where_its_batch_is(tmp_path: Path) -> None:
    """A file of one batch runs many examples in parts, and gives what the open one gives at once."""
    fixed = OnnxSession(save(tmp_path / "fixed.onnx", recurrent("2")))
    whole = OnnxSession(save(tmp_path / "open.onnx", recurrent()))
    assert (fixed.batch_axes, whole.fixed_batch) == ({"x": 0, "h0": 1, "c0": 1}, None)
    feeds = random_samples(tmp_path / "open.onnx", 5, {"x": (None, 3, 4)})
    assert feeds["h0"].shape == (1, 5, 5)
    for got, wanted in zip(whole.run(feeds), fixed.run(feeds), strict=True):
        assert got.shape == (1, 5, 5)
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_the_batch_is_found_by_its_name_or_number() -> None:
    """By a name that speaks of a batch wherever it stands, else by the first dimension of the first input."""
    assert find_batch({"x": ("length", "batch", 4), "n": ()}) == ({"x": 1, "n": None}, None)
    assert find_batch({"x": (1, 16), "h": (2, 1, 8)}) == ({"x": 0, "h": 1}, 1)
    assert find_batch({"x": (None, 16), "y": ("N", 2)}) == ({"x": 0, "y": None}, None)


RUNS = {
    "old": (convolution(), []),
    "minus one": (literal_batch(-1), []),
    "state": (recurrent(), ["--shape", "x=batch,7,4"]),
    "formula": (tokens(), ["--shape", "ids=batch,5"]),
    "loop": (loop(), []),
    "sequence": (sequence(), ["--batch", "2"]),
    "functions": (functions(3), []),
}


@pytest.mark.parametrize("name", RUNS)
def test_profile_and_compare_run(tmp_path: Path, name: str) -> None:
    """Each kind of file is measured, and compared with itself."""
    model, options = RUNS[name]
    path = str(save(tmp_path / "m.onnx", model))
    code, text, fault = run("profile", path, *options, *QUICK)
    assert (code, "p50" in text) == (0, True), fault
    code, text, fault = run("compare", path, path, *options, *QUICK)
    assert (code in (0, 3), "p50" in text) == (True, True), fault


REFUSED = {
    "text": (texts(), [], "text cannot be invented; give inputs (--samples)"),
    "zero": (literal_batch(0), [], "its batch is declared as 0, and ONNX Runtime takes it so"),
    "length": (tokens(), [], "its shape (--shape ids=batch,SIZE, or Plan(shapes=...))"),
    "custom": (custom(), [], "my.ops:Magic"),
    "batch": (tokens(), ["--shape", "ids=2,5"], "its batch is 2, and the plan's is 1"),
    "name": (tokens(), ["--shape", "words=2,5"], "no such input, wanted one of ids, mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_says_why(tmp_path: Path, name: str) -> None:
    """The exit code is that of bad input, for both commands."""
    model, options, words = REFUSED[name]
    path = str(save(tmp_path / "m.onnx", model))
    for command in (["profile", path], ["compare", path, path]):
        code, _, fault = run(*command, *options, *QUICK)
        assert (code, words in fault) == (2, True), fault


def test_text_runs_where_it_is_given(tmp_path: Path) -> None:
    """Strings cannot be bound, and are handed over at each run."""
    np.savez(tmp_path / "in.npz", x=np.array(["a", "bc"]))
    path = str(save(tmp_path / "m.onnx", texts()))
    code, _, fault = run("profile", path, "--samples", str(tmp_path / "in.npz"), "--batch", "2", *QUICK)
    assert code == 0, fault


@pytest.mark.parametrize("text", ["ids", "ids=", "=2", "ids=a", "ids=1,-2", "ids=1 2"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    """An empty shape is that of a single number; everything else needs sizes."""
    if text == "ids=":
        assert read_shapes([text]) == {"ids": ()}
        return
    with pytest.raises(BadInput, match="wanted a name and sizes"):
        read_shapes([text])
    with pytest.raises(BadInput, match="comes twice"):
        read_shapes(["a=1", "a=2"])


def test_the_network_zoo_is_read() -> None:
    """MACs of known networks of 2017, opset 9, are those of their papers."""
    zoo = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    wanted = {"resnet50": 4.09e9, "vgg19": 19.6e9, "squeezenet": 0.35e9}
    for name, macs in wanted.items():
        found = summarize_onnx(zoo / f"light_{name}.onnx")
        assert found.macs == pytest.approx(macs, rel=0.01)
        assert found.not_counted == ()
