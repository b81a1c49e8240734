"""Parity passes what is the same and finds what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from torch import Tensor, nn

from shipworthy.export.artifact import OnnxArtifact
from shipworthy.export.onnx_file import to_onnx
from shipworthy.export.parity import parity
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import captured, images

Graph = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Model:
    """A net with two outputs."""
    return captured("two-heads", torch.float32)


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """Its file."""
    return to_onnx(model, tmp_path_factory.mktemp("parity") / "m.onnx")


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """Write an ONNX graph of `x` given as text."""

    def written(name: str, body: str, shape: str = "N, 3") -> Path:
        text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}'
        onnx.save(parser.parse_model(text), tmp_path / name)
        return tmp_path / name

    return written


def _with_fault(source: OnnxArtifact, path: Path, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Path:
    """Write the file with one layer's weights changed: those of the vector of scores."""
    proto = onnx.load(source.path)
    weight = next(i for i in proto.graph.initializer if i.name.endswith("fc.weight"))
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight).copy()), weight.name))
    onnx.save(proto, path)
    return path


def _nan(weight: NDArray[Any]) -> NDArray[Any]:
    weight[0, 0] = np.nan
    return weight


# --- the same, and not the same


def test_a_model_and_its_file_agree(model: Model, exported: OnnxArtifact) -> None:
    """The graph against its file, the file against the graph, and the file against itself pass, output by output."""
    for left, right in ((model, exported), (exported, model), (exported, exported.path)):
        found = parity(left, right)
        assert found.passed
        assert found.samples == 64
        assert [o.name for o in found.outputs] == ["output_0", "output_1"]
        assert all(o.relative < 1e-5 and o.cosine > 0.99999 and o.tolerance == 1e-4 for o in found.outputs)
    assert all(o.max_abs == 0 and o.top1_agreement == 1 for o in found.outputs)


def test_planted_faults_are_found(model: Model, exported: OnnxArtifact, tmp_path: Path) -> None:
    """A layer that is scaled by a hundredth, or holds a NaN, fails its own output only."""
    scaled = parity(model, _with_fault(exported, tmp_path / "s.onnx", lambda w: w * 1.01))
    assert [o.passed for o in scaled.outputs] == [True, False]
    assert scaled.outputs[1].relative == pytest.approx(1e-2, rel=0.7)
    broken = parity(model, _with_fault(exported, tmp_path / "n.onnx", _nan))
    assert [o.passed for o in broken.outputs] == [True, False]
    assert broken.outputs[1].max_abs == float("inf")
    assert not broken.passed


def test_the_numbers_are_those_by_hand(graph: Graph) -> None:
    """Differences, cosine and agreement are numpy's, and the precision asked for sets the tolerance."""
    x = np.array([[1, 2, 4], [8, -8, 0]], np.float32)
    reference = graph("a.onnx", "y = Identity (x)")
    shifted = graph("b.onnx", "c = Constant <value = float[3] {0.5, 2.5, 0}> () y = Add (x, c)")
    (found,) = parity(reference, shifted, {"x": x}, "int8").outputs
    y = x + np.array([0.5, 2.5, 0], np.float32)
    assert (found.max_abs, found.relative, found.tolerance, found.passed) == (2.5, 2.5 / 8, 0.5, True)
    assert found.cosine == pytest.approx(float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())))
    assert found.top1_agreement == 0.5
    assert not parity(reference, shifted, {"x": x}).passed


def test_names_pair_the_samples_and_order_does_otherwise(model: Model, exported: OnnxArtifact) -> None:
    """Samples under the input's name or another one reach the only input; their number is reported."""
    x = images(5, dtype=torch.float32).numpy()
    assert parity(model, exported, {"x": x}).samples == 5
    assert parity(model, exported, {"picture": x}).passed


def test_a_fixed_batch_is_compared_too(graph: Graph) -> None:
    """A file of one batch size runs over any number of samples."""
    fixed, free = graph("f.onnx", "y = Identity (x)", "4, 3"), graph("a.onnx", "y = Identity (x)")
    assert parity(free, fixed, {"x": np.ones((10, 3), np.float32)}).passed
    assert parity(fixed, free).samples == 64


# --- samples that do not fit


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"x": np.full((2, 3, 8, 8), np.nan, np.float32)}, "sample 'x' holds NaN or infinity"),
        ({"x": np.zeros((2, 1, 8, 8), np.float32)}, "the samples do not fit the model's inputs"),
        ({"x": np.zeros((2, 3, 8, 8), np.float64)}, "the samples do not fit the model's inputs"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, r"at least one; got \{'x': 0\}"),
        ({}, r"at least one; got \{\}"),
        ({n: np.zeros((2, 3, 8, 8), np.float32) for n in "xy"}, "inputs|takes"),
        ({"x": np.zeros((2, 3, 8, 8), np.float32), "y": np.zeros(3, np.float32)}, r"got \{'x': 2, 'y': 3\}"),
    ],
    ids=["nan", "shape", "dtype", "empty", "none", "too-many", "unequal"],
)
def test_samples_that_do_not_fit_are_refused(
    samples: dict[str, NDArray[Any]], message: str, model: Model, exported: OnnxArtifact
) -> None:
    """Wrong samples are the user's, whichever side meets them first."""
    for left, right in ((model, exported), (exported, model)):
        with pytest.raises(BadInput, match=message):
            parity(left, right, samples)


def test_outputs_of_other_shapes_are_refused(model: Model, exported: OnnxArtifact, tmp_path: Path) -> None:
    """A candidate with other outputs is not the same model at all; an unknown precision has no tolerance."""
    other = capture(nn.Flatten(), (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(BadInput, match="the outputs differ in shape"):
        parity(model, other)
    with pytest.raises(BadInput, match="precision 'fp4': choose one of fp32, fp16, int8"):
        parity(model, exported, precision="fp4")
    with pytest.raises(BadInput, match=r"gone\.onnx: no such file"):
        parity(model, tmp_path / "gone.onnx")
    (tmp_path / "bad.onnx").write_text("no graph")
    with pytest.raises(BadInput, match=r"bad\.onnx: ONNX Runtime cannot load it"):
        parity(model, tmp_path / "bad.onnx")


class _Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return rows."""
        rows: Tensor = self.table(x)
        return rows


def test_inputs_that_cannot_be_drawn_need_samples(graph: Graph) -> None:
    """Random values mean nothing for integers, and have no size for open dimensions: the message asks for samples."""
    lookup = capture(_Lookup(), (torch.zeros(2, 3, dtype=torch.int64),))
    with pytest.raises(BadInput, match=r"input 'x' is int64: random values would mean nothing, give samples"):
        parity(lookup, lookup)
    assert parity(lookup, lookup, {"x": np.ones((4, 3), np.int64)}).passed
    free = graph("o.onnx", "y = Identity (x)", "N, M")
    with pytest.raises(BadInput, match=r"input 'x' has the open shape .*give samples"):
        parity(free, free)
