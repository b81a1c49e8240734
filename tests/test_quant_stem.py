from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn

import shipworthy as sw
from shipworthy.export import int8
from shipworthy.export.artifact import Target
from shipworthy.export.int8 import Int8Settings
from shipworthy.export.quantize_file import quantize_onnx
from shipworthy.export.session import OnnxSession
from shipworthy.profile.integer_share import integer_share


def _files(
    folder: Path, conv: nn.Conv2d, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, target: Target = "cpu"
) -> tuple[Path, Path]:
    """Quantize a net that begins with `conv` twice: as it is written, and with its image read in blocks."""
    torch.manual_seed(0)
    net = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(conv.out_channels, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = torch.randn(2, conv.in_channels, *size)
    made = sw.to_onnx(sw.capture(net.eval(), (image,), source="net"), folder / "net.onnx")
    examples = {made.inputs[0].name: np.random.default_rng(0).standard_normal((32, *image.shape[1:]), np.float32)}
    blocks, plain = folder / "blocks.onnx", folder / "plain.onnx"
    quantize_onnx(made.path, blocks, examples, target)
    with monkeypatch.context() as patched:
        patched.setattr(int8, "stems_in_blocks", lambda proto: proto)
        quantize_onnx(made.path, plain, examples, target)
    return plain, blocks


def _read(path: Path) -> ModelProto:
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _kinds(path: Path) -> list[str]:
    return [node.op_type for node in _read(path).graph.node]


@pytest.mark.parametrize(
    ("kernel", "padding", "channels", "size"),
    [
        (3, 1, 3, (32, 48)),
        (7, 3, 3, (32, 48)),
        (5, 2, 1, (28, 28)),
        (3, 0, 4, (34, 32)),
        (4, 1, 3, (32, 32)),
        ((3, 7), (1, 3), 3, (32, 48)),
        (6, 2, 1, (28, 28)),
        (3, 2, 2, (32, 32)),
    ],
    ids=str,
)
def test_blocks_change_no_result(
    kernel: int | tuple[int, int], padding: int | tuple[int, int], channels: int, size: tuple[int, int],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Scores equal those of the file that reads pixels, bit by bit, at any batch."""
    conv = nn.Conv2d(channels, 8, kernel, stride=2, padding=padding)
    plain, blocks = _files(tmp_path, conv, size, monkeypatch)
    assert "SpaceToDepth" in _kinds(blocks)
    assert "SpaceToDepth" not in _kinds(plain)
    draw = np.random.default_rng(1)
    for batch in (1, 3):
        image = draw.standard_normal((batch, channels, *size), np.float32)
        found = [session.run({next(iter(session.inputs)): image})[0] for session in map(OnnxSession, (plain, blocks))]
        np.testing.assert_array_equal(found[0], found[1])
        assert np.ptp(found[0]) > 0


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(3, 8, 3, stride=1, padding=1), (32, 32)),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (33, 32)),
        (nn.Conv2d(3, 8, 3, stride=(2, 1), padding=1), (32, 32)),
        (nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2), (32, 32)),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), (32, 32)),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (32, 32)),
        (nn.Conv2d(3, 8, 2, stride=2), (32, 32)),
    ],
    ids=["one step", "odd height", "steps differ", "dilated", "deep", "groups", "no overlap"],
)
def test_others_are_left_alone(
    conv: nn.Conv2d, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where blocks do not fit, or gain nothing, the file is the same to the byte."""
    plain, blocks = _files(tmp_path, conv, size, monkeypatch)
    assert plain.read_bytes() == blocks.read_bytes()


def test_tensorrt_reads_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels gather an image by themselves."""
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    plain, blocks = _files(tmp_path, conv, (32, 32), monkeypatch, "tensorrt")
    assert plain.read_bytes() == blocks.read_bytes()


def test_the_old_weight_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file holds the weight once, and the kernel that runs is the integer one."""
    _, blocks = _files(tmp_path, nn.Conv2d(3, 8, 3, stride=2, padding=1), (32, 32), monkeypatch)
    shapes = [tuple(one.dims) for one in _read(blocks).graph.initializer]
    assert (8, 12, 2, 2) in shapes
    assert (8, 3, 3, 3) not in shapes
    assert integer_share(blocks).share == 1.0


def test_a_kept_stem_is_as_it_was(tmp_path: Path) -> None:
    """A convolution that stays in fp32 reads pixels."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    made = sw.to_onnx(sw.capture(net, (torch.randn(2, 3, 32, 32),), source="net"), tmp_path / "net.onnx")
    examples = {made.inputs[0].name: np.random.default_rng(0).standard_normal((32, 3, 32, 32), np.float32)}
    quantize_onnx(made.path, tmp_path / "int8.onnx", examples, "cpu", Int8Settings(keep_float=("0",)))
    assert "SpaceToDepth" not in _kinds(tmp_path / "int8.onnx")


def test_biases_are_corrected_beside_it(tmp_path: Path) -> None:
    """A first convolution that reads blocks takes bias correction like any other."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    made = sw.to_onnx(sw.capture(net.eval(), (torch.randn(2, 3, 16, 16),), source="net"), tmp_path / "net.onnx")
    images = np.random.default_rng(0).standard_normal((32, 3, 16, 16), np.float32)
    file = tmp_path / "int8.onnx"
    quantize_onnx(made.path, file, {made.inputs[0].name: images}, "cpu", Int8Settings(correct_bias=True, weight_bits=4))
    assert "SpaceToDepth" in _kinds(file)
    wanted, found = (OnnxSession(one).run({made.inputs[0].name: images})[0] for one in (made.path, file))
    plain = tmp_path / "plain.onnx"
    quantize_onnx(made.path, plain, {made.inputs[0].name: images}, "cpu", Int8Settings(weight_bits=4))
    before = OnnxSession(plain).run({made.inputs[0].name: images})[0]
    assert np.square(found - wanted).mean() <= np.square(before - wanted).mean()
