"""Examples per second over batches: rules on invented numbers, calls on an invented clock, and real files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.plan import Plan
from shipworthy.profile.stats import Estimate
from shipworthy.profile.throughput import (
    Row,
    best,
    fit_rows,
    given_rows,
    has_rows,
    knee,
    lines,
    per_second,
    throughput,
    ties,
)

Write = Callable[[str, str], Path]
US = 1_000


class Server:
    """A call that takes 100 us and 10 us more for each row, on its own clock."""

    def __init__(self, limit: int = 1000, breaks_at: int = 0) -> None:
        self.now, self.runs, self.limit, self.breaks_at = 0, 0, limit, breaks_at

    def __call__(self, x: Any) -> None:
        """Do one inference."""
        self.runs += 1
        if len(x) > self.limit:
            raise MemoryError("out of device memory")
        if self.runs == self.breaks_at:
            raise RuntimeError("device lost")
        self.now += (100 + 10 * len(x)) * US

    def clock(self) -> int:
        """Return nanoseconds."""
        return self.now


def refused(words: str) -> Any:
    """Expect BadPlan with these words."""
    return pytest.raises(BadPlan, match=re.escape(words))


def test_the_knee_is_the_smallest_batch_near_the_best() -> None:
    """Within 5 % of the best rate counts as near; the best of equal rates is the smaller batch."""
    rates = {1: 100.0, 2: 180.0, 4: 286.0, 8: 300.0, 16: 299.0}
    assert (best(rates), knee(rates)) == (8, 4)
    assert knee(rates, share=0.0) == 8
    assert knee(rates, share=0.5) == 2
    assert (best({4: 7.0, 2: 7.0}), knee({3: 1.0})) == (2, 3)


def test_a_rate_is_the_batch_over_the_latency_with_the_ends_exchanged() -> None:
    """8 rows in 2 ms (1 to 4) are 4000 rows a second (2000 to 8000); an unknown end stays unknown."""
    assert per_second(8, Estimate(2e6, 1e6, 4e6)) == Estimate(4000.0, 2000.0, 8000.0)
    assert per_second(8, Estimate(2e6)) == Estimate(4000.0)
    assert (Row(4, failed="too large").examples_per_s, Row(4, failed="too large").p50_ns) == (None, None)


def test_rows_are_repeated_or_cut() -> None:
    """The first array's first dimension is the batch; arrays with as many rows follow it, others stay."""
    given = {"x": np.array([[1.0], [2.0], [3.0]]), "mask": np.array([1, 2, 3]), "scale": np.ones(4), "k": 7}
    five, two = fit_rows(given, 5), fit_rows(given, 2)
    assert isinstance(five, dict)
    assert isinstance(two, dict)
    assert five["x"].tolist() == [[1.0], [2.0], [3.0], [1.0], [2.0]]
    assert two["mask"].tolist() == [1, 2]
    assert five["scale"] is given["scale"]
    assert five["k"] == 7
    tensors = fit_rows((torch.tensor([[1.0], [2.0]]), 3), 3)
    assert isinstance(tensors, tuple)
    assert tensors[0].tolist() == [[1.0], [2.0], [1.0]]
    assert (fit_rows(None, 3), fit_rows((1, 2), 3)) == (None, (1, 2))
    assert (given_rows(given), given_rows((1,)), given_rows(None), given_rows([np.float32(1)])) == (3, None, None, None)


def test_a_batch_must_show_in_some_shape() -> None:
    """A file whose inputs do not grow with the batch would be counted several times over."""
    assert has_rows({"k": (), "x": (4, 64)}, 4)
    assert not has_rows({"x": (1, 64)}, 4)
    assert not has_rows({"k": ()}, 1)


def test_ties_are_judged_by_paired_rounds() -> None:
    """Under a drift that both share, a batch 3 % slower is told apart, and one as fast as the best is not."""
    drift = np.exp(np.linspace(0.0, 0.5, 200)) * (1 + 0.001 * np.random.default_rng(0).standard_normal((3, 200)))
    rows = [
        Row(batch, tuple(int(ns) for ns in batch * 1e6 * factor * noise))
        for batch, factor, noise in zip((2, 4, 8), (1.03, 1.0, 1.0), drift, strict=True)
    ]
    assert set(ties(rows)) | {best({row.batch: row.examples_per_s.value for row in rows if row.examples_per_s})} == {
        4,
        8,
    }
    assert ties([*rows[:1], Row(16, failed="no memory")]) == ()


def test_rates_on_an_invented_clock_are_exact() -> None:
    """A batch of b takes 100 + 10 b us: its rate is b over that, the largest is best, and a smaller one the knee."""
    server = Server()
    plan = Plan(min_rounds=20, max_rounds=40, least_s=0)
    found = throughput(server, "callable", (64, 1, 256, 512), plan, (np.ones((3, 2)),), clock=server.clock)
    assert [row.batch for row in found.rows] == [1, 64, 256, 512]
    assert found.rates() == {b: pytest.approx(b * 1e6 / (100 + 10 * b)) for b in (1, 64, 256, 512)}
    assert all(len(row.samples_ns) == 20 for row in found.rows)
    assert (found.best, found.knee, found.stop_reason, found.plan) == (512, 256, "precision", plan)
    assert found.notes == ("batch 512 is the largest that ran: larger ones may be faster still",)


def test_disturbed_rounds_are_taken_again_and_noted() -> None:
    """A watch sets windows aside, as in any measurement."""
    server, seen = Server(), iter(["other processes took the cores"])

    class Watch:
        def begin(self) -> None:
            """Nothing is to be begun."""

        def disturbance(self) -> str | None:
            return next(seen, None)

        def rest(self) -> None:
            server.now += 1

    plan = Plan(min_rounds=20, max_rounds=40)
    given = (np.ones((1, 2)),)
    found = throughput(server, "callable", (1, 2), plan, given, watch=Watch(), clock=server.clock)
    assert len(found.rows[0].samples_ns) >= 20
    assert any(re.match(r"\d+ rounds were disturbed and taken again; 0 .* were kept", note) for note in found.notes)


def test_a_batch_that_does_not_fit_is_a_row_with_the_reason() -> None:
    """The others are measured all the same."""
    server = Server(limit=8)
    found = throughput(server, "callable", (4, 8, 16), Plan(max_rounds=200), (np.ones((1, 2)),), clock=server.clock)
    assert found.rows[2].failed == "Server: an inference failed: out of device memory"
    assert found.rows[2].samples_ns == ()
    assert list(found.rates()) == [4, 8]
    assert lines(found)[3] == "batch 16: failed: Server: an inference failed: out of device memory"


def test_a_batch_that_breaks_later_is_an_error_with_its_name() -> None:
    """What worked once and then fails is a broken device, not a batch that is too large."""
    server = Server(breaks_at=50)
    with pytest.raises(ProfileError, match=r"Server at batch \d: an inference failed .*device lost"):
        throughput(server, "callable", (1, 2), Plan(), (np.ones((1, 2)),), clock=server.clock)


def test_a_file_is_swept(model: Path, quick: Plan) -> None:
    """A real file runs at each batch, with as many paired rounds each, and the result is plain JSON."""
    found = throughput(model, batches=(1, 8, 64), plan=quick)
    assert {len(row.samples_ns) for row in found.rows} <= {len(found.rows[0].samples_ns)}
    assert len(found.rows[0].samples_ns) >= 10
    rates = found.rates()
    assert all(rate > 0 for rate in rates.values())
    assert (found.file, found.inputs, found.plan) == (str(model), "random", quick)
    assert found.details["input_shapes"] == {"x": [found.best, 64]}
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["schema"], data["best"], data["knee"]) == (1, found.best, found.knee)
    assert data["rows"][1]["examples_per_s"]["value"] == rates[8]
    text = lines(found)
    assert text[0].startswith("chain1.onnx on ort-cpu: throughput by batch, 1 thread(s), ")
    assert re.match(r"batch 8: [\d.e+]+ examples/s.*, p50 .* ms", text[2])
    assert text[4].startswith(f"best at batch {found.best}: ")


def test_given_rows_reach_a_file(model: Path, quick: Plan) -> None:
    """Three given rows are repeated to four and cut to two."""
    found = throughput(model, batches=(2, 4), plan=quick, inputs={"x": np.ones((3, 64), np.float32)})
    assert found.inputs == "given"
    assert list(found.rates()) == [2, 4]


def test_a_fixed_batch_in_the_file_fails_the_others(write: Write, quick: Plan) -> None:
    """Only the batch that the file was exported with is measured; without it nothing is, and the reason is told."""
    path = write("fixed", "main (float[4, 8] x) => (float[4, 8] y) { y = Relu(x) }")
    found = throughput(path, batches=(1, 4), plan=quick)
    assert "its batch is fixed, but plan.batch is 1" in (found.rows[0].failed or "")
    assert (found.best, found.knee) == (4, 4)
    with refused("throughput: none of the batches 1, 2 runs; the first: "):
        throughput(path, batches=(1, 2), plan=quick)


def test_a_file_without_a_batch_dimension_is_refused(write: Write, quick: Plan) -> None:
    """A vector of fixed length runs at any batch, and each would be counted as that many examples."""
    path = write("vector", "main (float[8] x) => (float[8] y) { y = Relu(x) }")
    with refused("no input has a batch dimension of 2"):
        throughput(path, batches=(2,), plan=quick)


def test_a_module_is_swept(quick: Plan) -> None:
    """Tensors are repeated and cut too, and the process has its thread count back afterwards."""
    before = torch.get_num_threads()
    found = throughput(torch.nn.Linear(4, 2).eval(), "torch", (1, 6), quick, (torch.ones(2, 4),))
    assert list(found.rates()) == [1, 6]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("batches", [(), (0, 1), (2, 2), (1.5,), (True,)])
def test_batches_out_of_range_are_refused(batches: Any, model: Path) -> None:
    """Different whole numbers above 0."""
    with refused("wanted different whole numbers of at least 1"):
        throughput(model, batches=batches)


def test_what_cannot_be_swept_is_refused(model: Path) -> None:
    """A callable without rows, an unknown runtime, and a file that is not there."""
    with refused("throughput in runtime callable: got no input with rows, so a batch would change nothing"):
        throughput(len, "callable")
    with refused("throughput in runtime command: got no input with rows"):
        throughput("true", "command")
    with refused("throughput in runtime ort-cpu: got no input with rows"):
        throughput(model, inputs={"x": np.float32(1)})
    with refused("did you mean ort-cpu?"):
        throughput(model, "ort_cpu")
    with refused("no such file; wanted an ONNX file"):
        throughput(model.with_name("absent.onnx"))


@pytest.mark.skipif(cuda_absent() is None, reason="there is a GPU")
def test_an_absent_runtime_is_no_row(model: Path) -> None:
    """A device that is not there is not the fault of a batch."""
    with pytest.raises(RuntimeAbsent, match="runtime ort-cuda"):
        throughput(model, "ort-cuda")


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_a_file_is_swept_on_the_gpu(model: Path, quick: Plan) -> None:
    """With a GPU every batch runs there."""
    assert list(throughput(model, "ort-cuda", (1, 8), quick).rates()) == [1, 8]
