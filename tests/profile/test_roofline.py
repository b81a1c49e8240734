"""Ceilings measured on this machine, and where invented layers stand below invented ceilings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shipworthy.profile.bandwidth import KERNELS, Level, best_bandwidth, cache_sizes, levels
from shipworthy.profile.compute_peak import SIZES, best_rate, import_torch, ort_peaks, torch_dispatch_ns, torch_peaks
from shipworthy.profile.devices import cuda_absent
from shipworthy.profile.errors import BadPlan, ProfileError, RuntimeAbsent
from shipworthy.profile.layer_profile import Layer, LayerProfile
from shipworthy.profile.layer_table import layer_rows, summary_lines
from shipworthy.profile.plan import Plan
from shipworthy.profile.roofline import MemoryLevel, Peak, Placement, Roofline, measure_roofline, place
from shipworthy.profile.roofline_child import REPLY, REQUEST, main

KIB, MIB = 1 << 10, 1 << 20
ROOFS = Roofline(
    runtime="ort-cpu",
    threads=1,
    peaks=(Peak("float32", 100e9, "MatMul"), Peak("int8", 400e9, "QLinearMatMul")),
    levels=(MemoryLevel("L2", MIB, 50e9, "add"), MemoryLevel("DRAM", None, 10e9, "dot")),
    dispatch_ns=500.0,
    environment={},
)
"""In a nanosecond: 100 float32 operations, 400 in int8, 50 bytes in the cache, 10 beyond it."""


def layer(flops: int | None, size: int | None, ns: float, **entries: Any) -> Layer:
    """Make a layer of so many operations and bytes that takes so long."""
    entries = {"operator": "Conv", "provider": "CPU", "dtype": "float32", "calls": 1, **entries}
    return Layer(
        "conv", inputs=(), outputs=(), flops=flops, bytes=size, median_ns=ns, total_ns=int(ns), share=1.0, **entries
    )


# --- where a layer stands


@pytest.mark.parametrize(
    ("one", "wanted"),
    [
        # 1e6 operations take 10 us at the peak; 50,000 bytes take 1 us in the cache.
        (layer(10**6, 50_000, 20_000.0), Placement("compute", 0.5, "L2", 10_000.0)),
        (layer(10**6, 50_000, 20_000.0, dtype="int8"), Placement("compute", 0.125, "L2", 2_500.0)),
        # 10 MB do not fit into the cache: 1 ms beyond it.
        (layer(10**6, 10**7, 2e6), Placement("memory", 0.5, "DRAM", 1e6)),
        (layer(0, 500_000, 20_000.0), Placement("memory", 0.5, "L2", 10_000.0)),
        # Less than a tenth of what the roof allows, or shorter than two dispatches.
        (layer(10**6, 50_000, 101_000.0), Placement("overhead", 10 / 101, "L2", 10_000.0)),
        (layer(50_000, 100, 900.0), Placement("overhead", 500 / 900, "L2", 500.0)),
        (layer(0, 0, 5_000.0), Placement("overhead", 0.0, "L2", 0.0)),
        # Two calls, each of which fits into the cache.
        (layer(0, 2 * MIB, 2 * MIB / 50, calls=2), Placement("memory", 1.0, "L2", 2 * MIB / 50)),
        # Whole numbers count as float32 does; what was not counted or not tried is not placed.
        (layer(10**6, 50_000, 20_000.0, dtype="int64"), Placement("compute", 0.5, "L2", 10_000.0)),
        (layer(10**6, 50_000, 20_000.0, dtype="float16"), None),
        (layer(None, 50_000, 20_000.0), None),
        (layer(10**6, None, 20_000.0), None),
    ],
)
def test_a_layer_stands_under_the_nearer_roof(one: Layer, wanted: Placement | None) -> None:
    """The roof is the longer of the times that its operations and its bytes take at the ceilings."""
    found = place(one, ROOFS)
    if found is None or wanted is None:
        assert found is wanted
    else:
        assert found.share == pytest.approx(wanted.share)
        assert replace(found, share=wanted.share) == wanted


def test_the_share_is_that_of_the_attainable_rate() -> None:
    """Where there are operations, the share of the time is the achieved rate over min(peak, intensity x bandwidth)."""
    for flops, size in ((10**6, 50_000), (10**5, 500_000), (10**6, 10**7)):
        one = layer(flops, size, 2e6)
        found, attainable = place(one, ROOFS), ROOFS.attainable(flops / size, "float32", size)
        assert found is not None
        assert attainable is not None
        assert found.share == pytest.approx((one.flops_per_s or 0) / attainable)
    assert ROOFS.attainable(1.0, "float16", 1.0) is None


def test_a_level_holds_what_fits() -> None:
    """Exactly full still fits; the last level holds everything."""
    assert [ROOFS.level(size).name for size in (0, MIB, MIB + 1, 1 << 40)] == ["L2", "L2", "DRAM", "DRAM"]


def test_tables_tell_what_bounds_a_layer() -> None:
    """With ceilings the table has three columns more, and the summary says how the time divides."""
    layers = tuple(
        replace(one, share=share, facts=("reorder",))
        for one, share in ((layer(10**6, 50_000, 20_000.0), 0.75), (layer(None, None, 10_000.0), 0.25))
    )
    profile = LayerProfile("m", "ort-cpu", None, None, Plan(), {}, layers, (30_000,), (31_000,), (30_000,), 1000)
    head, first, second = layer_rows(profile, ROOFS)
    assert head[-3:] == ("bound", "of roof", "note")
    assert first[-3:] == ("compute", "50%", "reorder")
    assert second[-3:] == ("-", "-", "reorder")
    assert {len(row) for row in layer_rows(profile, ROOFS, top=1)} == {11}
    noted = summary_lines(replace(profile, notes=("one",)), replace(ROOFS, notes=("two",)))
    assert noted[-2:] == ["note: one", "note: two"]
    assert (
        summary_lines(profile, ROOFS)[-1].split("  ")[-1]
        == "compute 75.0%, memory 0.0%, overhead 0.0%, not known 25.0%"
    )


# --- ceilings of this machine


@pytest.fixture(scope="module")
def measured() -> Roofline:
    """This machine's, by a few passes of each kernel."""
    return measure_roofline(1, ("float32", "int8", "float16"), "ort-cpu", seconds=0.005)


def test_ceilings_are_the_best_of_what_was_tried(measured: Roofline) -> None:
    """Each type has the most that any kernel reached; each level at least that, and no less than those beyond it."""
    for peak in measured.peaks:
        tried = [one["flops_per_s"] for one in measured.tries if one.get("dtype") == peak.dtype]
        assert peak.flops_per_s == max(tried) > 0
    speeds = [level.bytes_per_s for level in measured.levels]
    assert speeds == sorted(speeds, reverse=True)
    for level in measured.levels:
        assert level.bytes_per_s >= max(one["bytes_per_s"] for one in measured.tries if one.get("level") == level.name)
    assert [peak.dtype for peak in measured.peaks] == ["float32", "int8"]
    assert [level.holds_bytes is None for level in measured.levels] == [False] * (len(measured.levels) - 1) + [True]
    assert measured.dispatch_ns >= 0
    assert measured.notes[0] == "float16: not tried, ort-cpu has no such product here"


def test_a_roofline_is_plain_data(measured: Roofline) -> None:
    """It survives JSON."""
    data = json.loads(json.dumps(measured.to_dict()))
    assert data["schema"] == 1
    assert data["peaks"][0]["flops_per_s"] == measured.peaks[0].flops_per_s
    assert len(data["tries"]) == len(measured.tries)


def test_torch_has_ceilings_of_its_own() -> None:
    """Its products are tried where it runs the model; int8 it has none of."""
    threads = torch.get_num_threads()
    tries = list(torch_peaks(("float32", "int8"), threads, 0.001))
    assert [(one["dtype"], one["kernel"]) for one in tries] == [("float32", f"mm {size}") for size in SIZES]
    assert all(one["flops_per_s"] > 0 for one in tries)
    assert torch_dispatch_ns(threads, 0.001) > 0
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(cuda_absent() is None, reason="there is a GPU")
def test_no_gpu_is_an_absent_runtime() -> None:
    """The child's refusal comes back as what it was."""
    with pytest.raises(RuntimeAbsent, match="roofline of a GPU: no NVIDIA driver is installed"):
        measure_roofline(1, ("float32",), "ort-cuda")


@pytest.mark.gpu
@pytest.mark.skipif(cuda_absent() is not None, reason="no GPU")
def test_a_gpu_has_ceilings_of_its_own() -> None:
    """Half precision is faster than single, and the cache faster than memory."""
    found = measure_roofline(1, ("float32", "float16", "int8"), "ort-cuda", seconds=0.05)
    single, half, _ = found.peaks
    assert half.flops_per_s > single.flops_per_s > 0
    assert found.levels[0].bytes_per_s > found.levels[1].bytes_per_s
    assert found.dispatch_ns > 0


@pytest.mark.parametrize(
    ("threads", "types", "runtime", "words"),
    [
        (0, ["float32"], "ort-cpu", "roofline: got 0 threads, wanted a whole number of at least 1"),
        (1, ["float8"], "ort-cpu", r"got types \['float8'\], wanted some of float32, float16, bfloat16, int8"),
        (1, [], "ort-cpu", r"got types \[\], wanted some of"),
        (1, ["float32"], "callable", "a roofline for runtime 'callable' cannot be measured, wanted one of ort-cpu"),
        (1, ["float32"], "ort", "runtime 'ort' is unknown"),
    ],
)
def test_what_cannot_be_tried_is_refused(threads: int, types: list[str], runtime: str, words: str) -> None:
    """Each refusal comes before a child is started."""
    with pytest.raises(BadPlan, match=words):
        measure_roofline(threads, types, runtime)


def test_a_child_that_takes_too_long_is_an_error() -> None:
    """It is ended, and the message says after how long."""
    with pytest.raises(ProfileError, match=r"did not end within 0\.05 s"):
        measure_roofline(timeout_s=0.05)


def test_a_child_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how it ended."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ProfileError, match="roofline: the child process ended with code 1"):
        measure_roofline()


def test_a_failure_in_the_child_is_told_by_name(tmp_path: Path) -> None:
    """What was not foreseen comes back as its kind and message."""
    request = {"place": "torch", "types": ["float32"], "threads": 0, "seconds": 0.0}
    (tmp_path / REQUEST).write_text(json.dumps(request))
    assert main(tmp_path) == 0
    reply = json.loads((tmp_path / REPLY).read_text())
    assert reply["failed"].startswith("RuntimeError: set_num_threads expects a positive integer")


@pytest.mark.parametrize(
    ("module", "run"), [("onnx", lambda: list(ort_peaks(("float32",), 1, 0.0))), ("torch", lambda: import_torch())]
)
def test_what_trying_needs_is_named(module: str, run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeAbsent, match=f"roofline: {module} is not installed.*pip install {module}"):
        run()


def test_the_child_imports_no_torch_for_onnx_runtime() -> None:
    """Importing the module and its child needs neither torch nor onnxruntime."""
    code = "import sys, shipworthy.profile.roofline_child, shipworthy.profile.layers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- memory


@pytest.mark.parametrize("threads", [1, 2])
def test_every_kernel_is_tried_at_every_size(threads: int) -> None:
    """Threads work on parts of their own and end together."""
    tries = best_bandwidth(Level("L2", 256 * KIB, (64 * KIB, 128 * KIB)), threads, 0.001)
    assert [(one["kernel"], one["bytes"]) for one in tries] == [
        (name, size) for size in (64 * KIB, 128 * KIB) for name in KERNELS
    ]
    assert all(one["bytes_per_s"] > 0 for one in tries)


def test_a_failing_kernel_ends_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread waits at a barrier for one that has failed."""

    def fail(size: int, repeats: int) -> Any:
        raise MemoryError("no room")

    monkeypatch.setitem(KERNELS, "add: read two, write one", fail)
    with pytest.raises(MemoryError, match="no room"):
        best_bandwidth(Level("L2", None, (KIB,)), 2, 0.001)


@pytest.mark.parametrize("name", list(KERNELS))
def test_kernels_move_the_bytes_that_they_claim(name: str) -> None:
    """A pass over so many bytes, several times, moves them as often."""
    run, moved = KERNELS[name](12 * KIB, 3)
    run()
    assert moved == 3 * 12 * KIB


def test_levels_follow_the_caches() -> None:
    """Each core brings its own L2, L3 is shared, and beyond it a quarter fits at the most, or an eighth of memory."""
    small, large, beyond = levels({"L2": MIB, "L3": 128 * MIB}, 4, 1 << 40)
    assert (small.holds_bytes, large.holds_bytes, beyond.holds_bytes) == (4 * MIB, 128 * MIB, None)
    assert small.tries_bytes == (MIB, 2 * MIB)
    assert beyond.tries_bytes == (512 * MIB,)
    assert levels({}, 1, None)[0].tries_bytes == (256 * MIB,)
    assert levels({"L2": MIB}, 1, 64 * MIB)[-1].tries_bytes == (8 * MIB,)


def test_cache_sizes_are_read_from_the_system(tmp_path: Path) -> None:
    """Data and unified caches of the second and third level count; without the folder usual sizes stand in."""
    caches = [("Data", 1, "32K"), ("Instruction", 2, "1M"), ("Unified", 2, "512K"), ("Unified", 3, "32M")]
    for i, (kind, level, size) in enumerate(caches):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, value in (("type", kind), ("level", str(level)), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    assert cache_sizes(tmp_path) == ({"L2": 512 * KIB, "L3": 32 * MIB}, True)
    found, told = cache_sizes(tmp_path / "absent")
    assert not told
    assert set(found) == {"L2", "L3"}


def test_a_rate_is_that_of_the_fastest_run() -> None:
    """A run that does nothing gives a large, finite rate; it runs at least three times."""
    runs: list[int] = []
    assert np.isfinite(best_rate(lambda: runs.append(1), 10, 0.0))
    assert len(runs) == 3
