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
from shipworthy.export.parity import Comparing, parity
from shipworthy.models.errors import BadInput
from shipworthy.models.model import Model, capture
from shipworthy.tests.small_nets import captured, images, outputs

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
        assert all(o.relative < 1e-5 and o.cosine > 0.99999 and 1e-7 < o.tolerance < 1e-5 for o in found.outputs)
        assert (found.precision, found.layer, found.notes) == ("fp32", None, ())
    assert [(o.max_abs, o.top1_agreement) for o in found.outputs] == [(0, None), (0, 1)]


def test_planted_faults_are_found(model: Model, exported: OnnxArtifact, tmp_path: Path) -> None:
    """A layer that is scaled by a hundredth, or holds a NaN, fails its own output only."""
    scaled = parity(model, _with_fault(exported, tmp_path / "s.onnx", lambda w: w * 1.01))
    assert [o.passed for o in scaled.outputs] == [True, False]
    assert scaled.layer is not None
    assert (scaled.layer.name, scaled.layer.operator, scaled.layer.kind) == ("fc", "Gemm", "first")
    assert scaled.outputs[1].relative == pytest.approx(1e-2, rel=0.7)
    broken = parity(model, _with_fault(exported, tmp_path / "n.onnx", _nan))
    assert [o.passed for o in broken.outputs] == [True, False]
    assert broken.outputs[1].max_abs == float("inf")
    assert not broken.passed
    assert broken.layer is not None
    assert (broken.layer.name, broken.layer.own) == ("fc", float("inf"))


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
    judged = parity(reference, shifted, {"x": x})
    assert not judged.passed
    assert judged.layer is not None
    assert (judged.layer.operator, judged.layer.own, judged.layer.before) == ("Add", 2.5 / 8, 0)
    assert judged.cost is not None
    assert (judged.cost.by, judged.cost.candidate, judged.cost.repaired) == ("agreement", 0.5, 1)
    assert parity(reference, shifted, {"x": x}, how=Comparing(layers=False)).layer is None


def test_what_is_no_number_on_both_sides_is_equal(graph: Graph) -> None:
    """The same NaN and infinities agree; one that only the candidate has is a breach, and its operator is named."""
    x = np.array([[-1, 0, 4], [1, -2, 0]], np.float32)
    root, safe = graph("a.onnx", "y = Log (x)"), graph("b.onnx", "a = Abs (x) y = Log (a)")
    with np.errstate(all="ignore"):
        assert parity(root, root, {"x": x}).passed
        found = parity(
            graph("c.onnx", "a = Abs (x) y = Sqrt (a)"), graph("d.onnx", "z = Identity (x) y = Sqrt (z)"), {"x": x}
        )
        other = parity(root, safe, {"x": x})
    assert not other.passed
    assert not found.passed
    assert found.layer is not None
    assert (found.layer.operator, found.layer.own) == ("Sqrt", float("inf"))


def test_a_callable_is_compared_too(model: Model, exported: OnnxArtifact) -> None:
    """Any function of inputs by name is a candidate or a reference; its layers cannot be read, and it is said."""
    x = images(5, dtype=torch.float32).numpy()
    truth = [np.asarray(y) for y in outputs(model, torch.from_numpy(x))]
    assert parity(exported, lambda feeds: truth, {"x": x}).passed
    found = parity(lambda feeds: truth, lambda feeds: [truth[0], truth[1] + 1], {"x": x})
    assert [o.passed for o in found.outputs] == [True, False]
    assert [o.noise for o in found.outputs] == [None, None]
    assert found.notes == (
        "the layers of an engine or a callable cannot be read: compare the ONNX file that it was made of",
    )
    with pytest.raises(BadInput, match="tells nothing of its inputs: give samples"):
        parity(lambda feeds: truth, exported)


def test_labels_say_what_a_breach_costs(graph: Graph) -> None:
    """With labels the cost is in accuracy, and labels that do not fit the samples are refused."""
    x = np.array([[1, 2, 4], [8, -8, 0]], np.float32)
    reference = graph("a.onnx", "y = Identity (x)")
    shifted = graph("b.onnx", "c = Constant <value = float[3] {0.5, 2.5, 0}> () y = Add (x, c)")
    found = parity(reference, shifted, {"x": x}, how=Comparing(np.array([2, 1])))
    assert found.cost is not None
    cost = found.cost
    assert (cost.by, cost.samples, cost.reference, cost.candidate, cost.repaired) == ("accuracy", 2, 0.5, 0, 0.5)
    for labels in (np.array([2]), np.array([0.0, 1.0])):
        with pytest.raises(BadInput, match=r"labels: got .*, wanted whole numbers of shape \(2,\)"):
            parity(reference, shifted, {"x": x}, how=Comparing(labels))


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


def test_inputs_without_a_batch_are_compared_too(tmp_path: Path) -> None:
    """The batch is where the file has it, an input without one goes in whole; a breach finds its layer there too."""

    def written(name: str, body: str, inputs: str, output: str) -> Path:
        text = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({output} y) {{ {body} }}'
        onnx.save(parser.parse_model(text), tmp_path / name)
        return tmp_path / name

    state = ("float[S, batch, 3] x, float k", "float[S, batch, 3]")
    x = np.random.default_rng(0).standard_normal((5, 7, 3), dtype=np.float32)
    given = {"x": x, "k": np.array(2, np.float32)}
    right = written("a.onnx", "z = Mul (x, k) y = Relu (z)", *state)
    assert parity(right, right, given).samples == 7
    found = parity(right, written("b.onnx", "z = Mul (x, k) y = Abs (z)", *state), given)
    assert found.layer is not None
    assert (found.layer.name, found.layer.operator) == ("Abs of y", "Abs")
    whole = ("float[2, 3] x", "float")
    total, mean = (written(f"{op}.onnx", f"y = {op} <keepdims = 0> (x)", *whole) for op in ("ReduceSum", "ReduceMean"))
    assert parity(total, total, {"x": x[0, :2]}).passed
    assert not parity(total, mean, {"x": x[0, :2]}).passed
    with pytest.raises(BadInput, match="an output is one number whatever the examples, and not 4 are taken at once"):
        parity(total, total, {"x": x[0, :4]})


# --- samples that do not fit


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"x": np.full((2, 3, 8, 8), np.nan, np.float32)}, "sample 'x' holds NaN or infinity"),
        ({"x": np.zeros((2, 1, 8, 8), np.float32)}, "the samples do not fit the model's inputs"),
        ({"x": np.zeros((2, 3, 8, 8), np.float64)}, "the samples do not fit the model's inputs"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, r"at least one; got \{'x': 0\}"),
        ({}, r"the model takes \['x'\], the samples give \[\]"),
        ({n: np.zeros((2, 3, 8, 8), np.float32) for n in "xy"}, "inputs|takes"),
        ({"x": np.zeros((2, 3, 8, 8), np.float32), "y": np.zeros(3, np.float32)}, r"takes \['x'\]"),
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
    with pytest.raises(BadInput, match="precision 'fp4': choose one of fp32, tf32, fp16, mixed, bf16, int8"):
        parity(model, exported, precision="fp4")
    with pytest.raises(BadInput, match=r"gone\.onnx: no such file"):
        parity(model, tmp_path / "gone.onnx")
    (tmp_path / "bad.onnx").write_text("no graph")
    with pytest.raises(BadInput, match=r"bad\.onnx: not an ONNX file"):
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
