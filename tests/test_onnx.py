"""An exported file is the model: same outputs, same names, the same bytes every time, nothing of the machine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor, nn

from shipworthy.compress.quantize import Quantize
from shipworthy.export.artifact import OnnxArtifact
from shipworthy.export.onnx_file import to_onnx, write_onnx
from shipworthy.export.session import OnnxSession
from shipworthy.models.errors import BadInput, ToolFailed
from shipworthy.models.model import Model, TensorSpec, capture
from shipworthy.tests.small_nets import captured, images, outputs, quadrants

KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp16": {"precision": "fp16", "opset": 18},
    "int8-cpu": {"precision": "int8"},
    "int8-tensorrt": {"precision": "int8", "target": "tensorrt"},
}
# What another process does to make the same file.
AGAIN = """
import sys
from shipworthy.tests.test_onnx import KINDS, subject
from shipworthy.export.onnx_file import to_onnx
for kind in ("int8-cpu", "fp16"):
    print(to_onnx(subject(), sys.argv[1], **KINDS[kind]).sha256)
"""


def subject() -> Model:
    """Return a small residual net with calibration examples."""
    return Quantize(calibration=64)(captured("residual", torch.float32), data=quadrants()).model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxArtifact]:
    """One model in every precision."""
    folder = tmp_path_factory.mktemp("onnx")
    return {kind: to_onnx(subject(), folder / f"{kind}.onnx", **options) for kind, options in KINDS.items()}


def _run(file: OnnxArtifact, x: Tensor) -> list[NDArray[Any]]:
    return OnnxSession(file).run({file.inputs[0].name: x.numpy()})


def _constants(proto: ModelProto) -> dict[str, NDArray[Any]]:
    return {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}


def _operands(proto: ModelProto, kind: str) -> list[tuple[NDArray[Any] | None, NDArray[Any], NDArray[Any]]]:
    """Return constant input (or None), scale and zero point of each node of a kind."""
    known = _constants(proto)
    nodes = [n for n in proto.graph.node if n.op_type == kind]
    return [(known.get(n.input[0]), known[n.input[1]], known[n.input[2]]) for n in nodes]


# --- the same function


@pytest.mark.parametrize("name", ["squeeze-excite", "two-heads"])
def test_a_file_agrees_with_torch_at_any_batch(name: str, tmp_path: Path) -> None:
    """One file gives torch's outputs to 1e-5 for batches of 1 and 3, under the model's names and dimensions."""
    model = captured(name, torch.float32)
    file = to_onnx(model, tmp_path / "m.onnx")
    for batch in (1, 3):
        x = images(batch, dtype=torch.float32)
        for got, want in zip(_run(file, x), outputs(model, x), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-5 * float(want.abs().max()))
    session = OnnxSession(file)
    assert session.inputs == {"x": ("tensor(float)", ("batch", 3, 8, 8))}
    assert session.outputs == [spec.name for spec in model.outputs]
    graph = onnx.load(file.path).graph
    shapes = [tuple(d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim) for o in graph.output]
    assert shapes == [spec.shape for spec in model.outputs]


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2), ("int8-cpu", 0.2), ("int8-tensorrt", 0.2)]
)
def test_every_precision_is_close(kind: str, tolerance: float, files: dict[str, OnnxArtifact]) -> None:
    """Each precision stays within its own distance of torch on training images, at two batch sizes."""
    data = quadrants()
    for batch in (1, 3):
        x, _ = data.batch(data.train, torch.arange(batch))
        (want,) = outputs(subject(), x)
        (got,) = _run(files[kind], x)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=tolerance * float(want.abs().max()))


# --- the file


def test_an_artifact_describes_its_file(files: dict[str, OnnxArtifact]) -> None:
    """Hash, size, opset and specs are the file's; the checker passes; the default follows the quantize pass."""
    for kind, file in files.items():
        proto = onnx.load(file.path)
        onnx.checker.check_model(proto, full_check=True)
        assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
        assert file.bytes == file.path.stat().st_size
        assert file.opset == next(o.version for o in proto.opset_import if not o.domain) == KINDS[kind].get("opset", 20)
        assert file.inputs == (TensorSpec("x", "float32", ("batch", 3, 8, 8)),)
        assert file.to_dict()["path"] == str(file.path)
        assert {"torch", "onnx", "onnxscript"} <= file.tools.keys()
    assert [p.suffix for p in files["fp32"].path.parent.iterdir()] == [".onnx"] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_tells_nothing_of_its_machine(kind: str, files: dict[str, OnnxArtifact]) -> None:
    """No path, stack trace or module of the machine that made the file is in its bytes."""
    held = files[kind].path.read_bytes()
    traces = [b"site-packages", b".py", b"stack_trace", b"File ", str(Path(__file__).parents[1]).encode(), b"/tmp"]
    assert [trace for trace in traces if trace in held] == []


def test_the_same_model_gives_the_same_bytes(files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """A second export gives the same hashes, in this process and in a fresh one."""
    assert to_onnx(subject(), tmp_path / "again.onnx", **KINDS["int8-cpu"]).sha256 == files["int8-cpu"].sha256
    command = [sys.executable, "-c", AGAIN, str(tmp_path / "other.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [files[kind].sha256 for kind in ("int8-cpu", "fp16")]


# --- precision in the graph


def test_half_precision_keeps_inputs_and_outputs(files: dict[str, OnnxArtifact]) -> None:
    """All weights are fp16, what goes in and comes out is fp32, and the file is a good deal smaller."""
    graph = onnx.load(files["fp16"].path).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    kinds = {i.data_type for i in graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    assert files["fp16"].bytes < 0.75 * files["fp32"].bytes


def test_int8_for_cpus_is_u8s8_with_seven_bit_weights(files: dict[str, OnnxArtifact]) -> None:
    """Activations are unsigned; weights are signed, per channel, symmetric, and within 7 bits."""
    proto = onnx.load(files["int8-cpu"].path)
    assert {zero.dtype for _, _, zero in _operands(proto, "QuantizeLinear")} == {np.dtype(np.uint8)}
    held = _operands(proto, "DequantizeLinear")
    kernels = [(w, scale, zero) for w, scale, zero in held if w is not None and w.dtype == np.int8]
    assert len(kernels) == 7
    for weight, scale, zero in kernels:
        assert scale.shape == (max(weight.shape[0], 1),) or scale.shape == (weight.shape[-1],)
        assert not zero.any()
        assert 32 <= int(np.abs(weight.astype(int)).max()) <= 64


def test_int8_for_tensorrt_is_s8s8_without_integer_biases(files: dict[str, OnnxArtifact]) -> None:
    """Everything is signed and symmetric, no int32 bias is dequantized, weights are per channel in 8 bits."""
    proto = onnx.load(files["int8-tensorrt"].path)
    pairs = [*_operands(proto, "QuantizeLinear"), *_operands(proto, "DequantizeLinear")]
    assert {zero.dtype for _, _, zero in pairs} == {np.dtype(np.int8)}
    assert not any(zero.any() for _, _, zero in pairs)
    assert all(w is None or w.dtype != np.int32 for w, _, _ in pairs)
    kernels = [(w, scale) for w, scale, _ in pairs if w is not None and w.ndim > 1 and w.dtype == np.int8]
    assert len(kernels) == 7
    assert all(scale.size > 1 and int(np.abs(w.astype(int)).max()) > 100 for w, scale in kernels)


def test_global_means_become_pooling(tmp_path: Path) -> None:
    """A mean over all pixels that keeps them is pooling, which has integer kernels; others, and a fixed batch, stay."""

    class _Means(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            """Return means over pixels and over channels."""
            return x.mean((2, 3), keepdim=True), x.mean(1, keepdim=True)

    x = images(3, dtype=torch.float32)
    model = capture(_Means(), (x,), dynamic_batch=False)
    file = to_onnx(model, tmp_path / "m.onnx")
    assert OnnxSession(file).inputs == {"x": ("tensor(float)", (3, 3, 8, 8))}
    assert [n.op_type for n in onnx.load(file.path).graph.node] == ["GlobalAveragePool", "ReduceMean"]
    for got, want in zip(_run(file, x), outputs(model, x), strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-6)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 9}, "opset 9: choose 18 to 25"),
        ({"opset": 99}, "opset 99: choose 18 to 25"),
        ({"precision": "fp8"}, "precision 'fp8': choose one of fp32, fp16, bf16, mixed, int8"),
        ({"precision": "bf16", "opset": 20}, "opset 20: bf16 needs 22 or more, as convolutions take it from there on"),
        ({"target": "gpu"}, "target 'gpu': choose one of cpu, tensorrt"),
        ({"precision": "int8"}, "int8 needs calibration: put the model through Quantize first"),
        (
            {"precision": "int8", "calibration": torch.zeros(4, 1, 8, 8)},
            r"shapes \[\(4, 1, 8, 8\)\], the model's inputs",
        ),
        ({"precision": "int8", "calibration": torch.zeros(0, 3, 8, 8)}, "give some for each"),
    ],
)
def test_requests_without_sense_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """What cannot be made is refused with the choices, and a file that was there stays as it was."""
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(BadInput, match=message):
        to_onnx(captured("plain", torch.float32), tmp_path / "m.onnx", **options)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("m.onnx", "old")]


def test_calibration_can_be_given_with_the_export(files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """Examples given to the exporter stand in for the quantize pass."""
    data = quadrants()
    x, _ = data.batch(data.train, data.sample(64, 0))
    file = to_onnx(replace(subject(), quantization=None), tmp_path / "m.onnx", precision="int8", calibration=x)
    assert file.sha256 == files["int8-cpu"].sha256


def test_a_graph_that_the_checker_refuses_is_not_written(files: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """A graph with an operator that ONNX does not have is an error, and leaves no file."""
    proto = onnx.load(files["fp32"].path)
    proto.graph.node[0].op_type = "Convolve"
    with pytest.raises(ToolFailed, match="the ONNX checker refuses the exported graph"):
        write_onnx(proto, tmp_path / "m.onnx", subject(), "fp32", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    """Where the exporter has no translation the message is one line, and nothing is written."""

    class _Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Return a function that ONNX does not have."""
            found: Tensor = torch.special.bessel_j0(x)
            return found

    with pytest.raises(ToolFailed, match=r"the ONNX exporter failed: .+") as raised:
        to_onnx(capture(_Bessel(), (torch.zeros(2, 3),)), tmp_path / "m.onnx")
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


class _Masked(nn.Module):
    """Attention with a bias to its scores, whose result is put together by a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias, self.fc = nn.Linear(8, 24), nn.Parameter(torch.rand(1, 2, 5, 5)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)` of tokens `(batch, 5, 8)`."""
        q, k, v = self.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias).transpose(1, 2).reshape(-1, 5, 8)
        scores: Tensor = self.fc(x.mean(1))
        return scores


def test_attention_with_a_bias_is_exported(tmp_path: Path) -> None:
    """What attention lays out such that it can be viewed, and the exporter's parts of it do not, is laid out anew."""
    model, x = capture(_Masked(), (torch.randn(2, 5, 8),)), torch.randn(3, 5, 8)
    (given,) = OnnxSession(to_onnx(model, tmp_path / "m.onnx")).run({"x": x.numpy()})
    np.testing.assert_allclose(given, model.module(x).detach().numpy(), rtol=1e-4, atol=1e-6)


class _Standardized(nn.Module):
    """A convolution whose weights are normalized before each use, too many for the exporter to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight, self.fc = nn.Conv2d(3, 64, 1), nn.Parameter(torch.randn(64, 64, 3, 3)), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4)`."""
        flat = F.batch_norm(self.weight.reshape(1, 64, -1), None, None, training=True, momentum=0.0)
        scores: Tensor = self.fc(F.conv2d(self.stem(x), flat.reshape_as(self.weight)).mean((2, 3)))
        return scores


def test_standardized_weights_are_stored_as_they_are_used(tmp_path: Path) -> None:
    """Weights that the graph normalizes before each use are constants of the file; no arithmetic is left."""
    model, x = capture(_Standardized(), (torch.zeros(2, 3, 8, 8),)), torch.randn(3, 3, 8, 8)
    code = model.module.code
    file = to_onnx(model, tmp_path / "m.onnx")
    proto = onnx.load(file.path)
    held = {init.name for init in proto.graph.initializer}
    assert all(node.input[1] in held for node in proto.graph.node if node.op_type == "Conv")
    (given,) = OnnxSession(file).run({"x": x.numpy()})
    np.testing.assert_allclose(given, model.module(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert model.module.code == code
