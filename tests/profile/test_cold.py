"""Cold starts in real child processes, and what is derived from invented ones."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shipworthy.profile.cold import (
    EVICTED,
    STAGES,
    WARM,
    ColdStart,
    Start,
    cached_share,
    cold_start,
    evict,
    files_of,
    first_is_slow,
    lines,
    start_of,
)
from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.plan import Plan

Write = Callable[[str, str], Path]
MS = 1_000_000
WHOLE = Start(20 * MS, 300 * MS, 50 * MS, 5 * MS, 1 * MS, 90 * MS, 1.0)

linux = pytest.mark.skipif(sys.platform != "linux", reason="files are evicted on Linux alone")


def invented(*starts: Start) -> ColdStart:
    """Make a result of given starts."""
    return ColdStart("m.onnx", "ort-cpu", "m.onnx", "", Plan(), {}, starts, WARM, "random", "repeats")


def refused(words: str, kind: type[Exception] = BadPlan) -> Any:
    """Expect an error with these words."""
    return pytest.raises(kind, match=re.escape(words))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A file whose weights of 4 MiB are in another file beside it, of a name that does not tell."""
    weights = onnx.numpy_helper.from_array(np.full((1024, 1024), 0.01, np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 1024]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    path = tmp_path / "split.onnx"
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=10),
        path,
        save_as_external_data=True,
        location="weights.bin",
    )
    return path


def test_every_stage_of_every_start_is_kept(model: Path) -> None:
    """Each start times all stages in a process of its own; their sum up to the first result is the total."""
    shares: list[float] = []
    found = cold_start(model, repeats=2, report=lambda share, text: shares.append(share))
    assert (len(found.starts), found.stop_reason, found.failed) == (2, "repeats", None)
    for start in found.starts:
        stages = [getattr(start, f"{stage}_ns") for stage in STAGES]
        assert all(ns > 0 for ns in stages)
        assert start.total_ns == sum(stages[:4])
        assert (start.own_ns or 0) > 0
    assert (found.file, found.page_cache, found.inputs, found.plan) == (str(model), WARM, "random", Plan())
    assert shares == [0.5, 1.0]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["schema"], data["starts"][1]["total_ns"]) == (1, found.starts[1].total_ns)
    assert data["medians"]["open_ns"]["value"] == np.median([start.open_ns or 0 for start in found.starts])


@linux
def test_the_file_and_its_weights_are_evicted_before_each_start(split: Path) -> None:
    """The result says which state the page cache was in, and how much of the file was there all the same."""
    for file in files_of(split):
        evict(file)
    possible = cached_share(files_of(split)[1:])  # 1 where the file system keeps its files in memory
    warm, found = cold_start(split, repeats=1), cold_start(split, repeats=1, drop_cache=True)
    assert (warm.page_cache, warm.starts[0].cached_share) == (WARM, 1.0)
    assert (found.page_cache, found.starts[0].cached_share) == (EVICTED, possible)
    left = "up to 100% of the file was in the page cache all the same"
    assert (left in found.notes) == (possible == 1.0)


@linux
def test_eviction_shows_in_the_page_cache(split: Path) -> None:
    """What was read is in the page cache wholly; evicted, it is not, where the file system is on a disk."""
    files = files_of(split)
    assert [file.name for file in files] == ["split.onnx", "weights.bin"]
    for file in files:
        file.read_bytes()
    assert cached_share(files) == 1.0
    for file in files:
        evict(file)
    share = cached_share(files)
    if share == 1.0:
        pytest.skip("this file system keeps its files in memory")
    assert share == 0.0
    files[0].read_bytes()
    assert 0.0 < (cached_share(files) or 0.0) < 0.1


def test_an_empty_file_has_no_share(tmp_path: Path) -> None:
    """Nothing cannot be cached."""
    empty = tmp_path / "empty"
    empty.touch()
    assert cached_share([empty]) is None


def test_given_inputs_reach_the_child(write: Write) -> None:
    """Inputs travel to the child; without them a dynamic length is refused there, as bad input here."""
    path = write("length", "main (float[N, length] x) => (float[N, length] y) { y = Relu(x) }")
    found = cold_start(path, inputs={"x": np.ones((1, 5), np.float32)}, repeats=1)
    assert (found.failed, found.inputs) == (None, "given")
    with refused("dimension 1 is dynamic and not the batch; give inputs"):
        cold_start(path, repeats=1)


def test_a_failing_inference_is_a_result(write: Write) -> None:
    """A file that loads and cannot run keeps the stages before, and is not started again."""
    graph = "main (float[N, 4] x) => (float[a, b] y) <int64[2] s = {3, 5}> { y = Reshape(x, s) }"
    found = cold_start(write("reshape", graph), repeats=3)
    assert (len(found.starts), found.stop_reason) == (1, "failed")
    start = found.starts[0]
    assert (start.open_ns or 0) > 0
    assert (start.first_ns, start.total_ns, found.total_ns) == (None, None, None)
    assert "Reshape" in (found.failed or "")
    text = lines(found)
    assert "cold start: no result, 1 start(s)" in text[0]
    assert "opening the file" in text[1]
    assert text[2].startswith("failed: ")


def test_a_child_that_takes_too_long_is_a_result(model: Path) -> None:
    """A timeout ends the child, whatever it had reached."""
    found = cold_start(model, repeats=2, timeout_s=0.001)
    assert found.failed == "the child process did not end within 0.001 s"
    assert found.starts[0].total_ns is None


def test_the_budget_ends_it_and_says_so(model: Path) -> None:
    """No further process is started after the budget; one always is."""
    found = cold_start(model, repeats=5, budget_s=0.0)
    assert (len(found.starts), found.stop_reason) == (1, "budget")
    assert "the budget of 0 s ended it after 1 of 5 starts" in found.notes


def test_medians_of_stages() -> None:
    """Medians are over the starts that got there, with an interval where there are enough."""
    starts = [replace(WHOLE, open_ns=ns * MS) for ns in (50, 52, 48, 51, 49, 47, 53, 50, 52, 48)]
    found = invented(*starts, Start(process_ns=20 * MS))
    opening, total = found.stage_ns("open"), found.total_ns
    assert opening is not None
    assert total is not None
    assert (opening.value, total.value) == (50 * MS, 375 * MS)
    assert opening.low is not None
    assert 47 * MS <= opening.low <= opening.value
    assert invented(WHOLE).total_ns is not None
    assert invented(Start()).stage_ns("second") is None


def test_lines_name_the_total_and_its_parts() -> None:
    """The total first, then where it goes."""
    text = lines(invented(WHOLE))
    head = "m.onnx on ort-cpu, cold start: 375 ms (too few for an interval) to the first result"
    assert text[0] == f"{head}, 1 start(s), warm page cache"
    assert text[1] == (
        "starting Python 20 ms, importing the runtime 300 ms, opening the file 50 ms, the first inference 5 ms, "
        "the second inference 1 ms"
    )


def test_a_slow_first_start_is_told_apart() -> None:
    """Half as long again as the others' median is slow; of two starts nobody can tell."""
    assert first_is_slow([160, 100, 101, 99])
    assert not first_is_slow([140, 100, 101, 99])
    assert not first_is_slow([500, 100])


def test_a_clock_that_is_not_shared_is_refused() -> None:
    """A child that was ready before it began would make a total that lies."""
    assert start_of({"ready_at_ns": 70, "open_ns": 5}, 50, 0.5) == Start(process_ns=20, open_ns=5, cached_share=0.5)
    assert start_of({}, 50, None) == Start()
    with refused("the child's clock is behind the parent's", ProfileError):
        start_of({"ready_at_ns": 40}, 50, None)


def test_what_a_child_cannot_open_is_refused(model: Path, tmp_path: Path) -> None:
    """Callables, missing and corrupt files, runtimes without a session, and settings out of range are bad input."""
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"nothing")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (len, {}, "runtime ort-cpu takes a path"),
        (tmp_path / "absent.onnx", {}, "no such file; wanted an ONNX file"),
        (model, {"runtime": "torch"}, "cold start in runtime 'torch' cannot be measured, wanted one of ort-cpu"),
        (model, {"runtime": "ort"}, "runtime 'ort' is unknown"),
        (model, {"inputs": [1]}, "got inputs as a list, wanted a dict"),
        (corrupt, {}, "cannot load it"),
        (model, {"repeats": 0}, "got repeats 0, wanted a whole number of at least 1"),
        (model, {"budget_s": -1.0}, "got budget_s -1.0 and timeout_s 120.0, wanted seconds above 0"),
        (model, {"timeout_s": 0.0}, "got budget_s 60.0 and timeout_s 0.0, wanted seconds above 0"),
    ]
    for target, settings, words in cases:
        with refused(words):
            cold_start(target, **settings)


def test_eviction_is_refused_elsewhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files cannot be evicted, asking for it is an error and not a figure that pretends."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with refused("got drop_cache on darwin; files can be evicted on Linux alone"):
        cold_start(model, drop_cache=True)
    assert cached_share([model]) is None


@pytest.mark.skipif(cuda_absent() is None, reason="there is a GPU")
def test_a_runtime_that_the_child_lacks_is_absent(model: Path) -> None:
    """The child's refusal comes back as the error that it was."""
    with refused("runtime ort-cuda: no NVIDIA driver is installed", RuntimeAbsent):
        cold_start(model, "ort-cuda", repeats=1)


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_a_cold_start_on_the_gpu(model: Path) -> None:
    """With a GPU every stage is there."""
    assert cold_start(model, "ort-cuda", repeats=1).total_ns is not None
