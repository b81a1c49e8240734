"""Int8 of encoders: integers at every linear layer whatever the length, masks and embeddings as they should be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn
from typer.testing import CliRunner

from shipworthy.export.float_graph import float_graph
from shipworthy.export.int8 import Int8Settings, Scheme, to_int8
from shipworthy.export.parity_taps import open_graph
from shipworthy.export.quant_schemes import quantized
from shipworthy.export.session import OnnxSession
from shipworthy.models.errors import BadInput
from shipworthy.models.model import capture
from shipworthy.pipeline.cli import app
from shipworthy.tests.int8_nets import Array, apart, in_integers, net, noise, optimized, outputs, types

WORDS, WIDE, HEADS = 1024, 64, 4
LAYERS = 12
"""Linear layers: six in each of two blocks."""
IN_INTEGERS = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"}
LEAST = torch.finfo(torch.float32).min


class Block(nn.Module):
    """Attention behind a mask, and two layers; norms after the sums, as BERT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDE, WIDE) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDE, 2 * WIDE), nn.Linear(2 * WIDE, WIDE)
        self.norm1, self.norm2 = nn.LayerNorm(WIDE), nn.LayerNorm(WIDE)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return `(batch, length, width)`."""
        heads = [part(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for part in (self.query, self.key, self.value)]
        shares = (heads[0] @ heads[1].transpose(2, 3) / 4 + mask).softmax(-1)
        x = self.norm1(x + self.out((shares @ heads[2]).transpose(1, 2).reshape(x.shape)))
        found: Tensor = self.norm2(x + self.narrow(nn.functional.gelu(self.wide(x))))
        return found


class Encoder(nn.Module):
    """A small BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDE), nn.Embedding(64, WIDE)
        self.norm, self.blocks = nn.LayerNorm(WIDE), nn.ModuleList([Block(), Block()])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return `(batch, length, width)`; `mask` is 1 where a word is."""
        x: Tensor = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        away = torch.where(mask[:, None, None, :] > 0, 0.0, LEAST)
        for block in self.blocks:
            x = block(x, away)
        return x


@cache
def encoder() -> ModelProto:
    """Return the encoder as fp32 ONNX with a dynamic batch and length."""
    torch.manual_seed(0)
    length = {"ids": {1: "length"}, "mask": {1: "length"}}
    model = capture(
        Encoder(), (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)), dynamic=length
    )
    return float_graph(model, 20).filled()


def sentences(count: int, length: int, seed: int = 0) -> dict[str, Array]:
    """Return sentences of numbers, the later ones shorter, and their masks."""
    ids = np.random.default_rng(seed).integers(0, WORDS, (count, length))
    ends = np.linspace(length, 2, count).astype(int)
    return {"ids": ids, "mask": (np.arange(length) < ends[:, None]).astype(np.int64)}


def given() -> Iterator[dict[str, Array]]:
    """Give calibration examples."""
    yield sentences(32, 12)


def made_in(scheme: Scheme, **settings: object) -> ModelProto:
    """Return the encoder in a scheme."""
    examples = given if scheme == "int8" else None
    return quantized(encoder(), examples, "cpu", Int8Settings(scheme=scheme, **settings)).proto  # type: ignore[arg-type]  # of one test each


def run(proto: ModelProto, feeds: dict[str, Array]) -> Array:
    """Return what the real words give."""
    return open_graph(proto, OnnxSession).run(feeds)[0][feeds["mask"] > 0]


def nodes(proto: ModelProto, kind: str) -> list[NodeProto]:
    """Return the nodes of a kind."""
    return [node for node in proto.graph.node if node.op_type == kind]


@pytest.mark.parametrize("scheme", ["int8", "dynamic"])
def test_every_linear_layer_runs_in_integers(scheme: Scheme, tmp_path: Path) -> None:
    """ONNX Runtime has one integer kernel for each linear layer; only attention's own products stay in fp32."""
    kinds = types(optimized(made_in(scheme), tmp_path))
    assert sum(kind in IN_INTEGERS for kind in kinds) == LAYERS
    assert sum(kind in ("MatMul", "FusedMatMul", "Gemm") for kind in kinds) == 4
    assert "DequantizeLinear" not in kinds


@pytest.mark.parametrize("scheme", ["int8", "dynamic"])
@pytest.mark.parametrize("shape", [(1, 5), (3, 12), (2, 40)])
def test_any_length_is_near_fp32(scheme: Scheme, shape: tuple[int, int]) -> None:
    """Batches and lengths that calibration has not seen give nearly what fp32 gives."""
    feeds = sentences(*shape, seed=1)
    assert apart(run(made_in(scheme), feeds), run(encoder(), feeds)) < 0.05


def test_padding_changes_nothing() -> None:
    """In a static file words do not feel what stands behind the end of their sentence."""
    feeds = sentences(4, 12)
    other = {**feeds, "ids": np.where(feeds["mask"] > 0, feeds["ids"], 7)}
    proto = made_in("int8")
    assert np.array_equal(run(proto, feeds), run(proto, other))


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_masks_are_never_quantized(target: str) -> None:
    """No scale comes from the least number of a type: the largest is of the activations' size."""
    made = to_int8(encoder(), given, target).proto  # type: ignore[arg-type]  # one of two words
    held = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    scales = [held[node.input[1]].max() for node in nodes(made, "QuantizeLinear")]
    assert max(scales) < 1


@pytest.mark.parametrize("least", [-np.inf, LEAST, -1e4])
def test_a_constant_mask_stays_beside_integers(least: float) -> None:
    """A sum with a mask between convolutions is left in fp32, and the result is right."""
    mask = np.zeros((1, 4, 8, 8), np.float32)
    mask[..., 4:] = least
    body = "a = Conv(x, w) m = Add(a, mask) s = Sigmoid(m) y = Conv(s, v)"
    proto = net(body, w=(4, 3, 1, 1), v=(4, 4, 1, 1), mask=mask)
    made = in_integers(proto)
    assert len(made.products) == 2
    x = noise(4, seed=1)
    assert apart(outputs(made.proto, x)[0], outputs(proto, x)[0]) < 0.05


def test_a_value_is_quantized_once_for_all_that_read_it() -> None:
    """Query, key and value share the integers of their input, in both schemes."""
    for scheme, kind in (("int8", "QuantizeLinear"), ("dynamic", "DynamicQuantizeLinear")):
        quantizers = nodes(made_in(scheme), kind)  # type: ignore[arg-type]  # one of its words
        assert len(quantizers) == LAYERS - 4
        assert len({node.input[0] for node in quantizers}) == len(quantizers)


@pytest.mark.parametrize("scheme", ["int8", "dynamic"])
def test_embeddings_are_looked_up_as_integers(scheme: Scheme) -> None:
    """The large table is int8 with a scale for each row, the small one and named ones stay in fp32."""
    made = made_in(scheme)
    held = {one.name: one for one in made.graph.initializer}
    table = next(one for one in encoder().graph.initializer if list(one.dims) == [WORDS, WIDE])
    words = numpy_helper.to_array(table)
    whole, scale = (numpy_helper.to_array(held[f"{table.name}/{part}"]) for part in ("whole", "scale"))
    assert held[f"{table.name}/whole"].data_type == TensorProto.INT8
    assert (np.abs(whole * scale - words) <= scale * 0.5001).all()
    assert table.name not in held
    assert table.name in {one.name for one in made_in(scheme, keep_float=("Gather",)).graph.initializer}


def test_tables_of_tensorrt_stay_in_fp32() -> None:
    """TensorRT takes constants of int8 in front of a DequantizeLinear only."""
    table = next(one for one in encoder().graph.initializer if list(one.dims) == [WORDS, WIDE])
    made = to_int8(encoder(), given, "tensorrt").proto
    assert table.name in {one.name for one in made.graph.initializer}


def test_the_command_needs_no_examples(tmp_path: Path) -> None:
    """Without examples an open length has no size: the file is written, and that it is not measured is said."""
    onnx.save(encoder(), tmp_path / "a.onnx")
    args = ["quantize", str(tmp_path / "a.onnx"), "--scheme", "dynamic", "-o", str(tmp_path / "b.onnx")]
    shown = CliRunner().invoke(app, args)
    assert shown.exit_code == 0, shown.output
    assert f"dynamic {LAYERS} operators for cpu, 4 in fp32" in shown.stdout
    assert "speed   not measured: " in shown.stdout
    feeds = sentences(2, 9)
    assert apart(run(onnx.load(tmp_path / "b.onnx"), feeds), run(encoder(), feeds)) < 0.05


def test_a_graph_without_linear_layers_is_refused() -> None:
    """Dynamic quantization of convolutions alone says that there is nothing for it."""
    proto = net("y = Conv(x, w)", w=(4, 3, 3, 3))
    with pytest.raises(BadInput, match="dynamic: nothing to quantize: the graph has no matrix product"):
        quantized(proto, None, "cpu", Int8Settings(scheme="dynamic"))
