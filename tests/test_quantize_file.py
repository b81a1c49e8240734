"""ONNX files of any origin become int8 files, whole or not at all, as a function and as a command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from typer.testing import CliRunner

from shipworthy.export.int8 import Int8Settings
from shipworthy.export.npz_stream import in_kind, open_npz
from shipworthy.export.quantize_file import quantize_onnx
from shipworthy.models.errors import BadInput
from shipworthy.pipeline.cli import app
from shipworthy.tests.foreign_files import convolution, parsed, save, tokens
from shipworthy.tests.int8_nets import apart, net, noise, outputs, types

KERNEL = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"


def _plain(head: str = '<ir_version: 8, opset_import: ["": 17]>\n', batch: str = "N") -> ModelProto:
    return net(f"c = Conv<{KERNEL}>(x, w, b) r = Relu(c) y = Conv(r, v)", head, f"float[{batch},3,8,8] x",
               w=(8, 3, 3, 3), b=(8,), v=(4, 8, 3, 3))  # fmt: skip


def _constants() -> ModelProto:
    """Return weights in Constant nodes."""
    model = _plain()
    nodes = [helper.make_node("Constant", [], [one.name], value=one) for one in model.graph.initializer]
    del model.graph.initializer[:]
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    return model


def _with_norm(opset: int) -> ModelProto:
    """Return an old file: a batch-norm, weights among the inputs, random values."""
    model = convolution(opset)
    draw = np.random.default_rng(0)
    for held in model.graph.initializer:
        values = draw.uniform(0.2, 1, list(held.dims)).astype(np.float32)
        held.CopyFrom(onnx.numpy_helper.from_array(values, held.name))
    return model


def _half() -> ModelProto:
    return parsed("g (float16[N,2] x) => (float16[N,2] y) <float16[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }")


FOREIGN = {
    "constants": _constants(),
    "opset 9": _with_norm(9),
    "opset 11": _with_norm(11),
    "fixed batch": _plain(batch="1"),
    "opset 11 plain": _plain('<ir_version: 6, opset_import: ["": 11]>\n'),
    "opset 22": _plain('<ir_version: 10, opset_import: ["": 22]>\n'),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_foreign_files(name: str, target: str, tmp_path: Path) -> None:
    """Files as others write them are prepared, not refused; inputs and outputs keep their names, and the function."""
    source, x = save(tmp_path / "a.onnx", FOREIGN[name]), noise()
    made = quantize_onnx(source, tmp_path / "b.onnx", {"x": x}, target)  # type: ignore[arg-type]  # parametrized
    proto = onnx.load(made.path)
    onnx.checker.check_model(proto, full_check=True)
    assert made.kept == ()
    assert [one.name for one in proto.graph.input] == ["x"]
    assert [one.name for one in proto.graph.output] == ["y"]
    assert "BatchNormalization" not in types(proto)
    assert apart(outputs(proto, x)[0], outputs(FOREIGN[name], x)[0]) < 0.05
    assert made.bytes == made.path.stat().st_size
    assert {entry.key: entry.value for entry in proto.metadata_props}["shipworthy.precision"] == "int8"


def test_other_inputs_than_images(tmp_path: Path) -> None:
    """Inputs of integers and of two kinds, with a dimension of their own, are calibrated alike."""
    source = save(tmp_path / "a.onnx", tokens())
    x: dict[str, Any] = {"ids": np.arange(80).reshape(20, 4) % 9, "mask": np.ones((20, 9), np.float32)}
    made = quantize_onnx(source, tmp_path / "b.onnx", x)
    assert (made.products, made.examples) == (1, 20)


def test_the_same_bytes_from_arrays_and_from_a_file(tmp_path: Path) -> None:
    """Arrays, and the same arrays in a file, give the same file, however often."""
    source, x = save(tmp_path / "a.onnx", _plain()), noise(300)
    np.savez(tmp_path / "d.npz", x=x)
    sources: list[Any] = [{"x": x}, tmp_path / "d.npz", str(tmp_path / "d.npz")]
    made = [
        quantize_onnx(source, tmp_path / f"{place}.onnx", given, "cpu", Int8Settings("entropy"))
        for place, given in enumerate(sources)
    ]
    assert len({one.sha256 for one in made}) == 1


def test_numbers_of_another_width_are_converted(tmp_path: Path) -> None:
    """Doubles, from memory or from a file, give the file that the same numbers in single precision give."""
    source, x = save(tmp_path / "a.onnx", _plain()), noise()
    wide = x.astype(np.float64)
    np.savez(tmp_path / "d.npz", x=wide)
    sources: list[Any] = [{"x": x}, {"x": wide}, tmp_path / "d.npz"]
    made = [quantize_onnx(source, tmp_path / f"{place}.onnx", given) for place, given in enumerate(sources)]
    assert len({one.sha256 for one in made}) == 1


def test_integers_are_not_wrapped_around(tmp_path: Path) -> None:
    """A token that fits converts; one that is too large for the file's type is named, from a file too."""
    held = {"x": np.array([[1], [2**40]], np.int64)}
    np.savez(tmp_path / "d.npz", x=held["x"])
    narrow = np.dtype(np.int32)
    assert in_kind(held["x"][:1], narrow, "here").dtype == narrow
    with pytest.raises(BadInput, match="here holds integers from 1 to 1099511627776, too large for int32"):
        in_kind(held["x"], narrow, "here")
    stream = replace(open_npz(tmp_path / "d.npz"), read_as={"x": narrow})
    with pytest.raises(BadInput, match="array 'x' holds integers"):
        list(stream())


def _nan() -> dict[str, Any]:
    x = noise()
    x[3, 0, 0, 0] = np.nan
    return {"x": x}


NOTHING = net("y = Relu(x)")
BAD: dict[str, tuple[ModelProto, dict[str, Any], str]] = {
    "names": (_plain(), {"z": noise()}, r"got arrays \['z'\], the file takes \['x'\]"),
    "shape": (_plain(), {"x": noise(shape=(3, 9, 9))}, r"has the shape \(32, 3, 9, 9\), the file takes"),
    "rank": (_plain(), {"x": noise(shape=(3, 8))}, "give one row for each example"),
    "few": (_plain(), {"x": noise(9)}, "got 9 examples, wanted at least 16, better 128"),
    "none": (_plain(), {"x": noise(0)}, "got 0 examples"),
    "nan": (_plain(), _nan(), "input 'x' holds NaN or infinity"),
    "bytes": (_plain(), {"x": noise().astype(np.uint8)}, "'x' holds uint8, the file takes float32; convert it as"),
    "nothing": (NOTHING, {"x": noise()}, "nothing to quantize"),
    "half": (_half(), {"x": noise(32, (2,)).astype(np.float16)}, "half precision; quantize the fp32 file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_quantized(case: str, tmp_path: Path) -> None:
    """The message says what is wrong and what to do, and no file is left behind."""
    proto, calibration, words = BAD[case]
    source = save(tmp_path / "a.onnx", proto)
    with pytest.raises(BadInput, match=words):
        quantize_onnx(source, tmp_path / "b.onnx", calibration)
    assert list(tmp_path.iterdir()) == [source]


def test_twice_and_onto_itself(tmp_path: Path) -> None:
    """A quantized file is refused, and so is writing over the source."""
    source = save(tmp_path / "a.onnx", _plain())
    made = quantize_onnx(source, tmp_path / "b.onnx", {"x": noise()})
    with pytest.raises(BadInput, match=r"is quantized already \(QuantizeLinear"):
        quantize_onnx(made, tmp_path / "c.onnx", {"x": noise()})
    with pytest.raises(BadInput, match="is the file to quantize"):
        quantize_onnx(source, source, {"x": noise()})
    with pytest.raises(BadInput, match=r"keep_float: 'Conw' fits no node.*nearest name is 'Conv'"):
        quantize_onnx(source, tmp_path / "c.onnx", {"x": noise()}, settings=Int8Settings(keep_float=("Conw",)))
    assert not (tmp_path / "c.onnx").exists()


def _run(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_command(tmp_path: Path) -> None:
    """Every option reaches the file, and both forms of the answer say what was made."""
    source = save(tmp_path / "a.onnx", _plain())
    np.savez(tmp_path / "d.npz", x=noise())
    base = ["quantize", source, "--calibration", tmp_path / "d.npz", "--no-measure"]
    shown = _run(*base, "-o", tmp_path / "b.onnx", "--equalize", "--correct-bias", "--smooth", "0.4", "--method", "mse")
    assert shown.exit_code == 0, shown.output
    assert "int8    2 operators for cpu, by 32 examples" in shown.stdout
    more = ["--target", "tensorrt", "--weight-bits", "5", "--weights-by-error", "--keep-float", "Conv_2", "--json"]
    data = _run(*base, "-o", tmp_path / "c.onnx", *more)
    assert data.exit_code == 0, data.output
    found = json.loads(data.stdout)
    assert (found["target"], found["products"], found["kept"]) == ("tensorrt", 1, ["Conv_2"])
    held = [one for one in onnx.load(tmp_path / "c.onnx").graph.initializer if one.data_type == TensorProto.INT8]
    assert max(np.abs(onnx.numpy_helper.to_array(one).astype(int)).max() for one in held if len(one.dims) > 1) <= 16
    plain = _run(*base, "-o", tmp_path / "d.onnx", "--json")
    assert json.loads(plain.stdout)["sha256"] != json.loads(_run(*base, "-o", tmp_path / "e.onnx", "--equalize", "--json").stdout)["sha256"]  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("options", "words"),
    [(["-o", "b.txt"], "wanted a name that ends in .onnx"), (["-o", "b.onnx", "--smooth", "2"], "smooth")],
)
def test_wrong_options(options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong options end with 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.onnx", _plain())
    np.savez(tmp_path / "d.npz", x=noise())
    shown = _run("quantize", "a.onnx", "--calibration", "d.npz", *options)
    assert shown.exit_code == 2
    assert words in shown.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "d.npz"]
