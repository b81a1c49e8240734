from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from shipworthy.models.errors import BadInput
from shipworthy.pipeline import recipe_checks as checks
from shipworthy.pipeline.recipe import PASSES, OnnxPart, Recipe, RecipeFaults, Runtime, read_recipe

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "01_fashion.yaml"

GOOD = """\
shipworthy: 1
seed: 3
model: {source: "reference:fashion-resnet20"}
data: {source: fashion-mnist}
compress:
  - prune: {ratio: 0.5, score: taylor}
  - distill: {steps: 10, learning_rate: 1e-2}
  - quantize
export: {onnx: {opset: 20, dynamic_batch: [1, 32]}, tensorrt: {flavour: rtx}}
profile: {runtimes: [ort-cpu, tensorrt], batch: 1, threads: 1}
goals:
  latency_p50_ms: {max: 1.0, on: ort-cpu}
  size_mb: {max: 0.5}
  accuracy_drop: {max: 1}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Give a writer of recipes: the good one, with something replaced."""

    def put(text: str | bytes = GOOD, old: str = "", new: str = "") -> Path:
        path = tmp_path / "recipe.yaml"
        if isinstance(text, str):
            assert old in text
            text = (text.replace(old, new, 1) if old else text).encode()
        path.write_bytes(text)
        return path

    return put


def faults_of(path: Path) -> RecipeFaults:
    """Return the error that a recipe gives."""
    with pytest.raises(RecipeFaults) as caught:
        read_recipe(path)
    return caught.value


def test_a_good_recipe_becomes_plain_values(write: Write) -> None:
    """What is written arrives, what is left out has its default, and `on` is a word and not true."""
    recipe = read_recipe(write())
    assert [step.name for step in recipe.compress] == ["prune", "distill", "quantize"]
    assert recipe.compress[1].settings == PASSES["distill"](steps=10, learning_rate=0.01, seed=3)  # type: ignore[call-arg]  # settings of the pass named
    assert (recipe.goals[0].metric, recipe.goals[0].max, recipe.goals[0].on) == ("latency_p50_ms", 1.0, "ort-cpu")
    assert recipe.goals[1].on is None
    assert (recipe.profile.budget_seconds, recipe.tensorrt_precision, recipe.seed) == (20.0, "int8", 3)


def test_a_pass_that_draws_nothing_takes_no_seed(write: Write) -> None:
    """The recipe's seed goes to those that have one; 2:4 needs no quotes."""
    recipe = read_recipe(write(GOOD, "- quantize", "- sparsify: {pattern: 2:4, ignore: [conv1]}\n  - quantize"))
    assert recipe.compress[2].settings == PASSES["sparsify"](pattern="2:4", ignore=("conv1",))  # type: ignore[call-arg]  # settings of the pass named


def test_a_recipe_of_two_keys_is_enough(write: Write) -> None:
    """Everything but the schema and the model has a default, and so has a section left empty."""
    recipe = read_recipe(write("shipworthy: 1\nmodel: {source: 'torchvision:resnet18'}\ngoals:\ncompress:\nexport:\n"))
    assert (recipe.data, recipe.compress, recipe.goals, recipe.export.tensorrt) == (None, (), (), None)
    assert (recipe.export.onnx.opset, recipe.profile.runtimes, recipe.tensorrt_precision) == (20, ("ort-cpu",), None)


def test_the_example_reads() -> None:
    """The recipe that the package shows is a good one and aims at what the package promises."""
    recipe = read_recipe(EXAMPLE)
    assert {goal.metric for goal in recipe.goals} == {"speedup", "size_ratio", "accuracy_drop"}
    assert recipe.quantizes


# What is replaced in GOOD, by what; the line and key of the fault; words of what was got, wanted, or the remedy.
BREAKS = {
    "top-level key": ("seed: 3", "sede: 3", 2, "sede", "did you mean `seed`"),
    "schema number": ("shipworthy: 1", "shipworthy: 7", 1, "shipworthy", "reads schema 1"),
    "schema text": ("shipworthy: 1", 'shipworthy: "1"', 1, "shipworthy", 'got "1" (text)'),
    "schema true": ("shipworthy: 1", "shipworthy: true", 1, "shipworthy", "got true"),
    "schema missing": ("shipworthy: 1\n", "", 1, "shipworthy", "add `shipworthy: 1`"),
    "seed text": ("seed: 3", "seed: abc", 2, "seed", 'got "abc" (text), wanted a whole number'),
    "seed negative": ("seed: 3", "seed: -1", 2, "seed", "wanted a whole number from 0"),
    "model missing": ('model: {source: "reference:fashion-resnet20"}\n', "", 1, "model", "add `model: {source: ...}`"),
    "model null": ('model: {source: "reference:fashion-resnet20"}', "model:", 3, "model", "wanted a mapping"),
    "model text": ('{source: "reference:fashion-resnet20"}', "resnet18", 3, "model", "wanted a mapping"),
    "model key": ("model: {source:", "model: {sorce:", 3, "model.sorce", "did you mean `source`"),
    "source missing": ('{source: "reference:fashion-resnet20"}', "{classes: 10}", 3, "model.source", "missing"),
    "reference name": ("fashion-resnet20", "fashion-resnet2", 3, "model.source", "did you mean `fashion-resnet20`"),
    "source prefix": ("reference:f", "torchvison:f", 3, "model.source", "did you mean `torchvision`"),
    "teacher": ("steps: 10", "steps: 9, teachers: [gone.pt2]", 7, "compress[1].distill.teachers[0]", "no such file"),
    "source bare": ("reference:fashion-resnet20", "resnet18", 3, "model.source", "wanted `reference:NAME`"),
    "pt2 absent": ("reference:fashion-resnet20", "nowhere.pt2", 3, "model.source", "no such file"),
    "py absent": ("reference:fashion-resnet20", "nowhere.py:make", 3, "model.source", "nowhere.py"),
    "py without name": ("reference:fashion-resnet20", "nowhere.py", 3, "model.source", "`nowhere.py:NAME`"),
    "weights absent": ('resnet20"}', 'resnet20", weights: no.pt}', 3, "model.weights", "wanted a state-dict file"),
    "input number": ('resnet20"}', 'resnet20", input: 28}', 3, "model.input", "wanted a list"),
    "input zero": ('resnet20"}', 'resnet20", input: [0, 28]}', 3, "model.input[0]", "got 0 (a whole number), wanted 1"),
    "input empty": ('resnet20"}', 'resnet20", input: []}', 3, "model.input", "wanted at least 1"),
    "classes true": ('resnet20"}', 'resnet20", classes: true}', 3, "model.classes", "got true (a yes or no)"),
    "data name": ("fashion-mnist", "fashion-minst", 4, "data.source", "did you mean `fashion-mnist`"),
    "data folder": ("fashion-mnist", "some/where", 4, "data.source", "a folder of images or recordings per class"),
    "data root": ("fashion-mnist}", "fashion-mnist, root: no/where}", 4, "data.root", "no such folder"),
    "mean empty": ("fashion-mnist}", "fashion-mnist, mean: []}", 4, "data.mean", "wanted at least 1 in the list"),
    "std zero": ("fashion-mnist}", "fashion-mnist, std: [0.0]}", 4, "data.std[0]", "wanted more than 0"),
    "std long": ("fashion-mnist}", "fashion-mnist, mean: [0.5], std: [1, 1]}", 4, "data.std", "got 2 numbers"),
    "data missing": ("data: {source: fashion-mnist}\n", "", 5, "compress[0].prune", "or use `score: l2`"),
    "compress mapping": ("compress:\n", "compress: {}\nx:\n", 5, "compress", "wanted a list of passes"),
    "pass name": ("- distill", "- distil", 7, "compress[1].distil", "did you mean `distill`"),
    "transfer later": ("- quantize", "- transfer: {steps: 5}", 8, "compress[2].transfer", "must be the first pass"),
    "two passes in one": ("- quantize", "- {quantize: , prune: }", 8, "compress[2]", "wanted one pass an entry"),
    "pass number": ("- quantize", "- 3", 8, "compress[2]", "wanted one pass an entry"),
    "pass required": ("- quantize", "- trim: {}", 8, "compress[2].trim.blocks", "missing"),
    "pass text for list": ("- quantize", "- trim: {blocks: a}", 8, "compress[2].trim.blocks", "wanted a list"),
    "blocks without data": (
        GOOD[GOOD.index("data:") : GOOD.index("export:")],
        "compress: [{trim: {blocks: 2}}]\n",
        4,
        "compress[0].trim",
        "or name them",
    ),
    "blocks zero": ("- quantize", "- trim: {blocks: 0}", 8, "compress[2].trim.blocks", "wanted 1 or more"),
    "blocks true": ("- quantize", "- trim: {blocks: true}", 8, "compress[2].trim.blocks", "wanted a list"),
    "blocks name": ("- quantize", "- trim: {blocks: [a, 1]}", 8, "compress[2].trim.blocks[1]", "wanted text"),
    "pass setting": ("ratio: 0.5", "ratoi: 0.5", 6, "compress[0].prune.ratoi", "did you mean `ratio`"),
    "pass range": ("ratio: 0.5", "ratio: 1.5", 6, "compress[0].prune.ratio", "wanted less than 1"),
    "pass infinity": ("ratio: 0.5", "ratio: .inf", 6, "compress[0].prune.ratio", "wanted a finite number"),
    "pass quotes": ("ratio: 0.5", 'ratio: "0.5"', 6, "compress[0].prune.ratio", "take off the quotes"),
    "pass choice": ("score: taylor", "score: tailor", 6, "compress[0].prune.score", "did you mean `taylor`"),
    "pass float for int": ("steps: 10", "steps: 1.5", 7, "compress[1].distill.steps", "wanted a whole number"),
    "pass contradiction": ("steps: 10", "steps: 10, epochs: 1", 7, "compress[1].distill", "either epochs or steps"),
    "pass list": ("- quantize", "- quantize: [1]", 8, "compress[2].quantize", "got a list, wanted a mapping"),
    "pass after quantize": ("- quantize", "- quantize\n  - prune: {}", 9, "compress[3].prune", "must be the last"),
    "prune tears": ("- quantize", "- sparsify: {pattern: 2:4}\n  - prune", 9, "compress[3].prune", "groups of four"),
    "sparsify seed": ("- quantize", "- sparsify: {seed: 1}", 8, "compress[2].sparsify.seed", "unknown key"),
    "2:4 of 0.7": ("- quantize", "- sparsify: {pattern: 2:4, ratio: 0.7}", 8, "compress[2].sparsify", "leave ratio"),
    "opset": ("opset: 20", "opset: 17", 9, "export.onnx.opset", "got 17 (a whole number), wanted 18 or more"),
    "batch swapped": ("[1, 32]", "[32, 1]", 9, "export.onnx.dynamic_batch", "swap the two"),
    "batch of three": ("[1, 32]", "[1, 2, 3]", 9, "export.onnx.dynamic_batch", "at most 2"),
    "flavour": ("rtx}", "rxt}", 9, "export.tensorrt.flavour", "did you mean `rtx`"),
    "int8 unquantized": ("  - quantize\n", "", 8, "export.tensorrt.precision", "add `- quantize`"),
    "bf16 of old": ("rtx}", "rtx, precision: bf16}", 9, "export.tensorrt.precision", "set it to 22"),
    "no engine": (", tensorrt: {flavour: rtx}", "", 10, "profile.runtimes[1]", "add `tensorrt: {}` to `export`"),
    "runtime": ("[ort-cpu, ", "[ort-gpu, ", 10, "profile.runtimes[0]", "did you mean `ort-cpu`"),
    "runtime twice": ("[ort-cpu, ", "[ort-cpu, ort-cpu, ", 10, "profile.runtimes[1]", "given twice"),
    "runtimes text": ("[ort-cpu, tensorrt]", "ort-cpu", 10, "profile.runtimes", "wanted a list"),
    "threads": ("threads: 1", "threads: 0", 10, "profile.threads", "wanted 1 or more"),
    "figure": ("threads: 1}", "threads: 1, figures: [cold, gap]}", 10, "profile.figures[1]", "did you mean `gaps`"),
    "figure twice": ("threads: 1}", "threads: 1, figures: [cold, cold]}", 10, "profile.figures[1]", "given twice"),
    "figures text": ("threads: 1}", "threads: 1, figures: cold}", 10, "profile.figures", "wanted a list"),
    "batch outside": ("batch: 1,", "batch: 64,", 10, "profile.batch", "outside export.onnx.dynamic_batch"),
    "metric": ("size_mb", "size_mib", 13, "goals.size_mib", "did you mean `size_mb`"),
    "goal number": ("{max: 0.5}", "0.5", 13, "goals.size_mb", "`size_mb: {max: NUMBER}`"),
    "goal wrong side": ("{max: 0.5}", "{min: 0.5}", 13, "goals.size_mb", "got `min`, wanted `max` alone"),
    "goal both sides": ("{max: 0.5}", "{min: 0.1, max: 0.5}", 13, "goals.size_mb", "got `min` and `max`"),
    "goal no side": ("{max: 0.5}", "{}", 13, "goals.size_mb", "got no bound"),
    "goal text": ("{max: 1.0,", '{max: "1.0",', 12, "goals.latency_p50_ms.max", 'got "1.0" (text), wanted a number'),
    "goal range": ("{max: 0.5}", "{max: 0}", 13, "goals.size_mb.max", "wanted more than 0"),
    "goal on": ("on: ort-cpu", "on: ort-cuda", 12, "goals.latency_p50_ms.on", "add it to profile.runtimes"),
    "goal on needless": ("{max: 0.5}", "{max: 0.5, on: ort-cpu}", 13, "goals.size_mb.on", "leave `on` out"),
    "goal key": ("{max: 0.5}", "{maxx: 0.5}", 13, "goals.size_mb.maxx", "did you mean `max`"),
    "goals list": ("goals:\n", "goals: []\nx:\n", 11, "goals", "wanted a mapping"),
    "duplicate key": ("seed: 3", "seed: 3\nseed: 4", 3, "seed", "given twice (first in line 2)"),
    "tag": ("seed: 3", "seed: !!python/name:os.system x", 2, "seed", "is not allowed"),
    "key list": ("seed: 3", "[a, b]: 3", 2, "", "a key must be a plain word"),
    "escape": ("fashion-mnist", '"a\\0b"', 4, "data.source", "cannot be shown"),
    "yaml": ("seed: 3", "seed: [3", 3, "", "not YAML"),
    "tab": ("  - quantize", "\t- quantize", 8, "", "indent with spaces"),
    "second colon": ("seed: 3", "seed: 3: 4", 2, "", "put quotes around text that holds a colon"),
    "second document": ("seed: 3", "seed: 3\n---\na: 1", 3, "", "second document"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_each_break_is_placed_and_remedied(case: str, write: Write) -> None:
    """A fault names the file, the line where it is, the key's path, and what to write instead."""
    old, new, line, key, words = BREAKS[case]
    text = GOOD
    if case == "int8 unquantized":
        text = GOOD.replace("rtx}", "rtx, precision: int8}")
    path = write(text, old, new)
    caught = faults_of(path)
    found = [fault for fault in caught.faults if words in fault.message]
    assert [(fault.line, fault.key) for fault in found] == [(line, key)], str(caught)
    assert f"{path}:{line}:{found[0].column}:" in str(caught)
    assert caught.exit_code == 2


def test_all_faults_come_at_once_in_order(write: Write) -> None:
    """Faults in different sections, of shape and of sense, are all in one message, by line."""
    text = GOOD.replace("seed: 3", "sed: 3").replace("ratio: 0.5", "ratio: 2").replace("steps: 10", "setps: 10")
    text = text.replace("fashion-mnist", "fashion").replace("threads: 1", "threads: x").replace("size_mb", "size")
    caught = faults_of(write(text))
    assert [fault.line for fault in caught.faults] == [2, 4, 6, 7, 10, 13], str(caught)
    assert str(caught).splitlines()[0].endswith(f"{len(caught.faults)} faults")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"- 1\n", "got a list"),
        (b"hello\n", "got a lone value"),
        (b"shipworthy: 1\nmodel: \xff\n", ":2:8: not UTF-8 (byte 0xff)"),
        (b"shipworthy: 1\nmodel: \x07\n", ":2:8: not YAML: a character"),
        (b"a: " + b"[" * 60 + b"]" * 60, "nested deeper than 20"),
        (b"a: " + b"[" * 5000, "nested deeper than 20"),
        (b"a: &a [*a]", "an alias inside itself"),
        (b"x" * 70_000, "larger than 64 KiB"),
        (
            b"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
            b"d: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]",
            "more than 5000 values",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content: bytes, words: str, write: Write) -> None:
    """Whatever the bytes are, the answer is one message with exit code 2."""
    with pytest.raises(BadInput, match=r"recipe\.yaml") as caught:
        read_recipe(write(content))
    assert words in str(caught.value)


def test_a_flood_of_faults_is_cut(write: Write) -> None:
    """Fifty faults are shown and the rest counted; the error itself holds all."""
    caught = faults_of(write("shipworthy: 1\n" + "a: 1\n" * 62))
    assert len(caught.faults) == 61
    assert str(caught).endswith("and 11 more")


def test_a_missing_file_and_a_folder_say_so(tmp_path: Path) -> None:
    """A path that is no file is named with what to give instead."""
    with pytest.raises(BadInput, match="no such recipe; check the path"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="is a folder, wanted a recipe file"):
        read_recipe(tmp_path)


def test_paths_start_at_the_recipe(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative files and folders are found beside the recipe, wherever the program runs."""
    (tmp_path / "net.py").write_text("")
    (tmp_path / "images").mkdir()
    (tmp_path / "w.pt").write_text("")
    path = write("shipworthy: 1\nmodel: {source: 'net.py:make', weights: w.pt}\ndata: {source: images, root: images}\n")
    monkeypatch.chdir("/")
    recipe = read_recipe(path)
    assert recipe.model.source == f"{tmp_path / 'net.py'}:make"
    assert recipe.model.weights == str(tmp_path / "w.pt")
    assert recipe.data is not None
    assert (recipe.data.source, recipe.data.root) == (str(tmp_path / "images"), str(tmp_path / "images"))
    assert recipe.to_dict()["model"]["source"] == "net.py:make"


def test_the_record_of_a_recipe_is_a_recipe(write: Write) -> None:
    """`to_dict` holds every default, is JSON, and read again gives the same recipe with the same hash."""
    recipe = read_recipe(write())
    again = read_recipe(write(yaml.safe_dump(json.loads(json.dumps(recipe.to_dict())))))
    assert again.to_dict() == recipe.to_dict()
    assert again.sha256 == recipe.sha256


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("seed: 3\n", "seed: 3   # a comment\n\n", True),
        ("{max: 1}", "{max: 1.0}", True),
        ("batch: 1, threads: 1", "threads: 1, batch: 1, budget_seconds: 20", True),
        ("- quantize", "- quantize: {calibration: 512}", True),
        ("seed: 3", "seed: 4", False),
        ("{max: 1}", "{max: 1.01}", False),
    ],
)
def test_the_hash_is_of_what_is_meant(old: str, new: str, same: bool, write: Write) -> None:
    """Comments, order, spelling of numbers and defaults written out keep the hash; a change of meaning does not."""
    before = read_recipe(write()).sha256
    assert (read_recipe(write(GOOD, old, new)).sha256 == before) is same


def test_a_pass_takes_the_recipes_seed_unless_it_has_its_own(write: Write) -> None:
    """One seed at the top reaches every pass."""
    recipe: Recipe = read_recipe(write(GOOD, "ratio: 0.5", "ratio: 0.5, seed: 9"))
    assert [getattr(step.settings, "seed", None) for step in recipe.compress] == [9, 3, 3]


def test_a_recipe_knows_what_the_stages_know() -> None:
    """What is checked without torch is what the stages below take: sources, data sets, opsets, runtimes."""
    from shipworthy.export.onnx_file import OPSETS
    from shipworthy.models.sources import SOURCES
    from shipworthy.profile.runners import RUNTIMES

    assert set(checks.SOURCES) == set(SOURCES)
    assert set(get_args(Runtime)) <= set(RUNTIMES)
    low, high = get_args(get_type_hints(OnnxPart, include_extras=True)["opset"])[1:]
    assert (low.ge, high.le) == (OPSETS.start, OPSETS.stop - 1)


def test_reading_imports_nothing_heavy(write: Write) -> None:
    """A faulty recipe is answered without torch, numpy, typer or rich."""
    code = (
        "import sys; from shipworthy.pipeline.recipe import *\n"
        "try: read_recipe(sys.argv[1])\n"
        "except RecipeFaults: print(sorted({m.partition('.')[0] for m in sys.modules}"
        " & {'torch', 'numpy', 'onnx', 'onnxruntime', 'typer', 'rich'}))"
    )
    path = write(GOOD, "seed: 3", "sed: 3")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_passes_that_need_examples_say_what_for(tmp_path: Path) -> None:
    """Scores on data and recovery between rounds are refused without data, before anything is loaded."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "shipworthy: 1\nmodel: {source: 'torchvision:resnet18'}\ncompress:\n"
        "  - prune: {score: activation}\n  - prune: {rounds: 2, recover: {steps: 5}}\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeFaults) as caught:
        read_recipe(path)
    assert "4:5: compress[0].prune: scores channels on training data" in str(caught.value)
    assert "5:5: compress[1].prune: recovers between rounds on training data" in str(caught.value)
    assert "or leave `recover` out" in str(caught.value)
