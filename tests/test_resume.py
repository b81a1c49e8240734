"""Runs that are killed end, when started again, as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shipworthy.models.files import sha256_of
from shipworthy.pipeline.progress import Silent
from shipworthy.pipeline.store import open_store
from shipworthy.tests.tiny_project import write_project

# Where a run is killed, one after the other: when a stage has just begun, or so many seconds into it.
KILLS = (("capture", 0.3), ("export-baseline", 0.0), ("distill", 0.3), ("export-quantize", 0.7), ("engine", 0.0), ("measure-ort-cpu", 0.5))  # fmt: skip # noqa: E501
# A hash seed of its own for each process shows whether an order of sets decides over bytes.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"} | {"OMP_NUM_THREADS": "1"}


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    """Start `shipworthy build`."""
    command = [sys.executable, "-m", "shipworthy", "build", str(recipe), "-w", str(out), "--json"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=recipe.parent, env=ENVIRONMENT
    )


def killed_in(stage: str, seconds: float, recipe: Path, out: Path) -> None:
    """Run a build until a stage begins, and a little further, and kill it."""
    with start(recipe, out) as process:
        assert process.stderr
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.strip() == f"{stage} ...":
                break
        else:
            pytest.fail(f"{stage} never began: {''.join(seen)}")
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        process.kill()
    assert process.returncode == -9


def finished(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """Wait for a build; return its record and what it told."""
    said, told = process.communicate()
    assert process.returncode == 0, told
    record: dict[str, Any] = json.loads(said)
    return record, told


def hashes(out: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the hashes of delivered files."""
    return {name: sha256_of(out / name) for name in names}


def test_a_run_killed_again_and_again_ends_with_the_same_files(tmp_path: Path) -> None:
    """After SIGKILL in six stages the last run reuses what was finished and delivers the bytes of an undisturbed run.

    The undisturbed run is another process in another folder: two runs from scratch give the same bytes.
    """
    recipe = write_project(tmp_path)
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    with start(recipe, calm) as undisturbed:
        for stage, seconds in KILLS:
            killed_in(stage, seconds, recipe, torn)
            assert not (torn / "report.json").exists()
        record, told = finished(start(recipe, torn))
        wanted, _ = finished(undisturbed)
    assert {"distill: reused", "engine: reused", "capture: reused"} <= set(told.splitlines())
    assert [row["sha256"] for row in record["artifacts"]] == [row["sha256"] for row in wanted["artifacts"]]
    names = ["baseline.onnx", "model.onnx", "model.tensorrt.onnx", "model.engine", "model.pt2"]
    assert hashes(torn, names) == hashes(calm, names)
    kept, whole = ({path.name for path in (out / "stages").iterdir()} for out in (torn, calm))
    assert kept == whole
    assert not [path for path in torn.rglob(".*") if path.name != ".lock"]


def test_training_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Killed in the middle of distillation, a build goes on there, and delivers the bytes of an undisturbed run."""
    steps = {"steps": 700, "batch": 16, "flip": False, "validation": 0.2}
    passes = [{"prune": {"ratio": 0.5, "insist": True}}, {"distill": steps}]
    recipe = write_project(tmp_path, compress=passes, export=None, goals={"size_mb": {"max": 100}})
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    with start(recipe, torn) as process:
        while process.poll() is None and not [*torn.glob("unfinished/distill-*/training.pt")]:
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -9
    (state,) = torn.glob("unfinished/distill-*/training.pt")
    done = len(torch.load(state, weights_only=True)["losses"])
    assert 0 < done < 700
    record, _ = finished(start(recipe, torn))
    wanted, _ = finished(start(recipe, calm))
    assert [row["sha256"] for row in record["artifacts"]] == [row["sha256"] for row in wanted["artifacts"]]
    assert not [*torn.glob("unfinished/*")]


def test_two_builds_at_once_do_not_share_a_work_folder(tmp_path: Path) -> None:
    """While one process has the work folder, another is refused with code 2 and touches nothing."""
    recipe = write_project(tmp_path, compress=None, export=None)
    with open_store(tmp_path / "out", Silent()):
        half = tmp_path / "out" / "stages" / ".making-now"
        half.mkdir()
        _, told = (second := start(recipe, tmp_path / "out")).communicate()
        assert half.is_dir()
    assert second.returncode == 2
    assert "another build is using this work folder" in told


def test_the_reference_model_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    """Two processes that capture and export the model in the package write equal files."""
    command = [sys.executable, "-m", "shipworthy", "export", "reference:fashion-resnet20", "-o"]
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    runs = [subprocess.Popen([*command, str(file)], stdout=subprocess.DEVNULL, env=ENVIRONMENT) for file in files]
    assert [run.wait() for run in runs] == [0, 0]
    assert sha256_of(files[0]) == sha256_of(files[1])
