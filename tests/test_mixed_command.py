"""The command that chooses layers, its labels, and the stage of a build that does; what the reports say of both."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from shipworthy.models.errors import BadInput
from shipworthy.pipeline import layer_stage, quantizing
from shipworthy.pipeline.build import build
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.layer_choice import MixedPrecision
from shipworthy.pipeline.report import html_text, markdown_text
from shipworthy.tests.foreign_files import save
from shipworthy.tests.fragile_nets import MADE, READS, fragile
from shipworthy.tests.int8_nets import net, noise, outputs
from shipworthy.tests.tiny_project import Recorder, write_project, write_recipe


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure gains for a moment only."""
    monkeypatch.setattr(layer_stage, "_BUDGET_S", 0.3)
    monkeypatch.setattr(quantizing, "_SEARCH_S", 0.3)


def _run(*args: object) -> Any:
    return CliRunner().invoke(app, ["quantize", *(str(arg) for arg in args)])


@pytest.fixture
def base(tmp_path: Path) -> list[object]:
    """Give a file and its calibration, with labels beside the inputs; latency is not compared."""
    x = noise(200, seed=5)
    classes = outputs(fragile(1.0), x)[0].argmax(axis=1)
    np.savez(tmp_path / "d.npz", x=x, right=classes, shares=x[:, 0, 0, 0], wide=np.stack([classes] * 2, 1))
    save(tmp_path / "a.onnx", fragile())
    return [tmp_path / "a.onnx", "--calibration", tmp_path / "d.npz", "-o", tmp_path / "b.onnx", "--no-measure"]


@pytest.fixture
def plain(tmp_path: Path, base: list[object]) -> list[object]:
    """Give the same with inputs alone."""
    np.savez(tmp_path / "d.npz", x=noise(200, seed=5))
    return base


@pytest.mark.parametrize(
    ("examples", "words"), [(noise(9), "got 9 examples"), (noise(20).astype(np.int32), "holds int32")]
)
def test_calibration_is_looked_at_before_the_search(
    examples: Any, words: str, plain: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot calibrate is refused before minutes are spent, and in numbers of another width it works."""
    np.savez(tmp_path / "d.npz", x=examples)
    with monkeypatch.context() as patched:
        patched.delattr(quantizing, "search")
        shown = _run(*plain, "--max-drop", 5)
    assert shown.exit_code == 2
    assert words in " ".join(shown.output.split())
    assert not (tmp_path / "b.onnx").exists()
    np.savez(tmp_path / "d.npz", x=noise(200, seed=5).astype(np.float64))
    assert _run(*plain, "--max-drop", 5).exit_code == 0


def test_the_terminal_lists_the_layers(plain: list[object]) -> None:
    """What it came to stands above the layers, those that cost most first; all are in the data."""
    shown = _run(*plain, "--max-drop", 5)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("layers  2 of 4 layers stay in fp32: "))
    assert "points of agreement lost on 200 examples" in lines[head]
    assert lines[head + 2].split()[:3] == ["Module", "Layer", "Sensitivity,"]
    assert {line.split()[1] for line in lines[head + 4 : head + 6]} == {MADE, READS}
    assert all(line.endswith("fp32") for line in lines[head + 4 : head + 6])
    data = json.loads(_run(*plain, "--max-drop", 5, "--json").stdout)
    found = MixedPrecision.from_dict(data["mixed_precision"])
    assert set(data["kept"]) == set(found.keep) == {MADE, READS}
    assert all(one.gain_us is not None for one in found.layers)


def test_for_tensorrt_there_are_no_gains(plain: list[object]) -> None:
    """Nothing here runs it, and so the layer that costs most stays."""
    data = json.loads(_run(*plain, "--max-drop", 5, "--target", "tensorrt", "--json").stdout)
    assert data["kept"] == [READS]
    assert [one["gain_us"] for one in data["mixed_precision"]["layers"]] == [None] * 4


def test_labels_judge_by_accuracy(tmp_path: Path, base: list[object]) -> None:
    """The array of labels calibrates nothing."""
    x = noise(200, seed=5)
    np.savez(tmp_path / "d.npz", x=x, right=outputs(fragile(1.0), x)[0].argmax(axis=1))
    shown = _run(*base, "--max-drop", 5, "--labels", "right", "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)["mixed_precision"]
    assert (found["metric"], found["examples"], found["met"]) == ("accuracy", 200, True)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("wrong", "--labels: 'wrong' is no array of .*d.npz; it has x, right, shares, wide"),
        ("shares", r"--labels: 'shares' is float32 \(200,\), wanted one class number each"),
        ("wide", r"--labels: 'wide' is int64 \(200, 2\), wanted one class number each"),
    ],
)
def test_labels_that_are_none(labels: str, words: str, tmp_path: Path, base: list[object]) -> None:
    """The message says what is there instead, and nothing is written."""
    shown = _run(*base, "--max-drop", 5, "--labels", labels)
    assert shown.exit_code == 2
    assert re.search(words, shown.stderr.replace("\n", " "))
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("more", [["--scheme", "dynamic"], []])
def test_a_limit_needs_examples(more: list[str], tmp_path: Path) -> None:
    """Without calibration there is nothing to judge by."""
    shown = _run(save(tmp_path / "a.onnx", fragile()), "-o", tmp_path / "b.onnx", "--max-drop", 1, *more)
    assert shown.exit_code == 2
    assert "--max-drop is for scheme int8 with --calibration" in shown.stderr


def test_a_limit_that_is_missed_ends_with_1(tmp_path: Path) -> None:
    """The file is there, and the line and the exit code say that it is not what was asked for."""
    source = save(tmp_path / "a.onnx", net("p = GlobalAveragePool(x) f = Flatten(p) y = Gemm(f, w)", w=(3, 5)))
    np.savez(tmp_path / "d.npz", x=noise(64))
    options = ["--calibration", tmp_path / "d.npz", "-o", tmp_path / "b.onnx", "--no-measure", "--max-drop", 0]
    shown = _run(source, *options, "--weight-bits", 4)
    assert shown.exit_code == 1, shown.output
    assert "MISSED: found no choice with integers that holds 0" in shown.stdout
    assert (tmp_path / "b.onnx").exists()


def test_a_file_of_one_batch_size_is_measured(tmp_path: Path) -> None:
    """The examples that are timed fill its batch."""
    source = save(tmp_path / "a.onnx", fragile(1.0, batch="4"))
    np.savez(tmp_path / "d.npz", x=noise(64))
    data = json.loads(_run(source, "--calibration", tmp_path / "d.npz", "-o", tmp_path / "b.onnx", "--json").stdout)
    assert data["pays"]["ratio"] > 0


def test_a_build_searches_once_and_shows_it(tmp_path: Path) -> None:
    """Layers, what they cost and gain are in every report; the second run repeats nothing."""
    steps = [{"quantize": {"calibration": 32, "max_drop": 50.0, "insist": True}}]
    recipe = write_project(tmp_path, compress=steps, export=None)
    first = build(recipe, tmp_path / "out")
    [plain] = first.mixed_precision
    found = MixedPrecision.from_dict(plain)
    assert (plain["name"], plain["dropped"], found.met, found.keep) == ("quantize", False, True, ())
    assert (found.metric, found.examples) == ("accuracy", 160)
    assert [one.module for one in found.layers] == ["conv1", "conv2", "fc"]
    assert all("mixed_precision" not in step.facts for step in first.steps)
    page, text = html_text(first), markdown_text(first)
    assert "Which layers stay in fp32" in page
    assert all(f"quantize: {found.line}" in one for one in (page, text))
    drawing = page[page.index('<svg class="chart precision"') :]
    svg = ElementTree.fromstring(drawing[: drawing.index("</svg>") + 6])
    words = [one.text for one in svg.iter("text")]
    assert {"conv1", "conv2", "fc", "int8"} <= set(words)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["mixed_precision"] == [
        json.loads(json.dumps(plain))
    ]
    seen = Recorder()
    again = build(recipe, tmp_path / "out", seen)
    assert again.mixed_precision == first.mixed_precision
    assert "quantize-layers" in seen.kept
    assert not seen.made


def test_a_limit_without_data_is_refused(tmp_path: Path) -> None:
    """The message says what to add."""
    steps = [{"quantize": {"calibration": 32, "max_drop": 1.0}}]
    write_project(tmp_path, compress=steps, export=None)
    with pytest.raises(BadInput, match="data"):
        build(write_recipe(tmp_path, compress=steps, export=None, data=None), tmp_path / "out")
