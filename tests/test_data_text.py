"""Tables of sentences: sides, groups, faulty rows, tokens, and a build from a table to a file of integers."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import shipworthy as sw
from shipworthy.models.errors import BadInput

pytest.importorskip("tokenizers")

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "very", "not", "one", "two", "three", "four")
Write = Callable[..., str]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tokenizer of a few words that puts [CLS] and [SEP] around a sentence."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    held = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    held.pre_tokenizer = pre_tokenizers.Whitespace()
    held.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # fmt: skip # noqa: E501
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    held.save(str(path))
    return path


def rows_of(count: int) -> list[list[str]]:
    """Return sentences that say `good` or `bad`, of several lengths, a movie for every four."""
    fills = ("film", "a film", "a very film", "a film one two three")
    return [
        [f"{'good' if i % 2 else 'bad'} {fills[i % 4]} {WORDS[10 + i // 4 % 4]}", "fresh" if i % 2 else "rotten",
         "test" if i % 4 == 3 or i % 4 == 2 else "train", f"m{i % 4 // 2}-{i // 4}"]
        for i in range(count)
    ]  # fmt: skip


HEADER = ("text", "label", "split", "movie")


def write(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER, between: str = ",") -> str:
    """Write a table; return its path."""
    with path.open("w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened, delimiter=between)
        table.writerow(header)
        table.writerows(rows)
    return str(path)


def test_sentences_become_tokens_masks_and_lengths(tmp_path: Path, tokenizer: Path) -> None:
    """A batch is as long as its longest sentence; what is behind an end is padding, and its mask 0."""
    data = sw.open_data(write(tmp_path / "t.csv", rows_of(40)), tokenizer=tokenizer, group="movie")
    assert (data.classes, data.task, len(data.train), len(data.test)) == (("fresh", "rotten"), "text-classification", 20, 20)  # fmt: skip # noqa: E501
    assert data.input_names == ("input_ids", "attention_mask")
    ids, mask = data.inputs(data.train, torch.tensor([0, 1]))
    assert ids.tolist() == [[2, 5, 6, 10, 3, 0], [2, 4, 7, 6, 10, 3]]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert data.train.labels[:2].tolist() == [1, 0]
    assert data.facts["longest_tokens"] == 9
    assert data.files == {"tokenizer.json": tokenizer}
    assert data.preprocessing.to_dict()["max_length"] == 128


def test_lengths_are_cut_or_filled(tmp_path: Path, tokenizer: Path) -> None:
    """`max_length` counts special tokens, and keeps them; `fixed_length` fills every sentence up to it."""
    source = write(tmp_path / "t.csv", rows_of(40))
    data = sw.open_data(source, tokenizer=tokenizer, max_length=6, fixed_length=True, inputs=("input_ids", "attention_mask", "token_type_ids"))  # fmt: skip # noqa: E501
    ids, mask, types = data.inputs(data.test, torch.arange(4))
    assert ids.shape == mask.shape == types.shape == (4, 6)
    assert ids[1].tolist() == [2, 4, 7, 6, 10, 3]
    assert data.facts["cut_sentences"] == 20
    assert not types.any()
    assert sw.open_data(source, tokenizer=tokenizer, max_length=7).fingerprint != data.fingerprint


def test_all_kinds_of_tables_hold_the_same(tmp_path: Path, tokenizer: Path) -> None:
    """CSV, TSV, compressed CSV and Parquet give equal tokens."""
    plain = write(tmp_path / "t.csv", rows_of(24))
    packed = tmp_path / "z.csv.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    sources = [plain, write(tmp_path / "t.tsv", rows_of(24), between="\t"), str(packed)]
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    sources.append(str(tmp_path / "t.parquet"))
    columns: dict[str, Any] = {name: [row[i] for row in rows_of(24)] for i, name in enumerate(HEADER)}
    parquet.write_table(pa.table(columns), sources[-1])
    found = [sw.open_data(source, tokenizer=tokenizer) for source in sources]
    assert len({one.fingerprint for one in found}) == 1


def test_without_a_column_of_sides_groups_decide(tmp_path: Path, tokenizer: Path) -> None:
    """About a fifth is for testing; a group is on one side, and stays there when rows are added."""

    def sides(count: int) -> tuple[set[str], set[str]]:
        rows = [[f"good film {i}", "fresh" if i % 2 else "rotten", f"movie {i // 3}"] for i in range(count)]
        source = write(tmp_path / "t.csv", rows, ("text", "label", "movie"))
        data = sw.open_data(source, tokenizer=tokenizer, group="movie")
        from shipworthy.models.class_folders import mark

        test = {row[2] for row in rows if mark(row[2]) < 0.2}
        assert len(data.test) == sum(row[2] in test for row in rows)
        return test, {row[2] for row in rows} - test

    few, more = sides(150), sides(300)
    assert few[0] < more[0]
    assert few[1] < more[1]
    assert 0.1 < len(more[0]) / 100 < 0.3


def test_faulty_rows_are_named_and_left_out(tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Up to one in a hundred; each with its line and reason."""
    rows = rows_of(400)
    rows[5][0], rows[7] = "  ", rows[7][:2]
    with caplog.at_level(logging.WARNING):
        data = sw.open_data(write(tmp_path / "t.csv", rows), tokenizer=tokenizer)
    assert data.facts["skipped"] == ["line 7: text is empty", "line 9: has 2 cells, wanted 4"]
    assert len(data.train) + len(data.test) == 398
    assert "2 of 400 rows cannot be read: line 7 (text is empty); line 9 (has 2 cells, wanted 4)" in caplog.text


def breaks() -> dict[str, tuple[Callable[[list[list[str]]], object], dict[str, Any], str]]:
    """Return what is done to good rows, options, and what the message says."""

    def many(rows: list[list[str]]) -> None:
        for row in rows[:9]:
            row[0] = ""

    def both_sides(rows: list[list[str]]) -> None:
        rows[0][3] = rows[3][3]

    def one_class(rows: list[list[str]]) -> None:
        for row in rows:
            row[1] = "fresh"

    def no_test(rows: list[list[str]]) -> None:
        for row in rows:
            row[2] = "train"

    return {
        "too many": (many, {}, "9 of 40 rows cannot be read.*repair or remove them"),
        "both sides": (both_sides, {"group": "movie"}, "1 groups are in the training and in the test set: m1-0"),
        "one class": (one_class, {}, "1 class .fresh.; classification needs at least 2"),
        "no test": (no_test, {}, "the test set is empty"),
        "column": (list, {"text": "txt"}, "has no column 'txt'; did you mean 'text'"),
        "size": (list, {"size": (3, 3)}, "takes no `size`"),
        "inputs": (list, {"inputs": ("ids",)}, "wanted input_ids and any of"),
        "length": (list, {"max_length": 1}, "max_length 1: too short"),
    }  # fmt: skip


@pytest.mark.parametrize("name", breaks())
def test_what_cannot_be_used_is_said(name: str, tmp_path: Path, tokenizer: Path) -> None:
    """One message for each fault."""
    spoil, options, said = breaks()[name]
    rows = rows_of(40)
    spoil(rows)
    with pytest.raises(BadInput, match=said):
        sw.open_data(write(tmp_path / "t.csv", rows), tokenizer=tokenizer, **options)


def test_a_tokenizer_is_needed_and_must_be_one(tmp_path: Path) -> None:
    """Its absence and its damage have messages of their own, and a table that is none."""
    source = write(tmp_path / "t.csv", rows_of(40))
    with pytest.raises(BadInput, match=r"text needs data\.tokenizer"):
        sw.open_data(source)
    with pytest.raises(BadInput, match="no such file"):
        sw.open_data(source, tokenizer=tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="cannot be read"):
        sw.open_data(source, tokenizer=tmp_path)
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(BadInput, match="no Parquet file"):
        sw.open_data(str(tmp_path / "bad.parquet"), tokenizer=tmp_path)


def test_sets_of_the_hub_are_opened_from_folders(tmp_path: Path, tokenizer: Path) -> None:
    """What `save_to_disk` wrote opens without a network, with the names of its classes; a name alone says how."""
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["rotten", "fresh"])
    parts = {
        side: datasets.Dataset.from_dict(
            {"text": [row[0] for row in rows_of(40) if row[2] == side],
             "label": [int(row[1] == "fresh") for row in rows_of(40) if row[2] == side]},
            features=datasets.Features({"text": datasets.Value("string"), "label": names}),
        )
        for side in ("train", "test")
    }  # fmt: skip
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    data = sw.open_data(f"hf:{tmp_path / 'set'}", tokenizer=tokenizer)
    same = sw.open_data(write(tmp_path / "t.csv", rows_of(40)), tokenizer=tokenizer)
    assert data.classes == same.classes
    assert torch.equal(data.inputs(data.test, torch.arange(20))[0], same.inputs(same.test, torch.arange(20))[0])
    with pytest.raises(BadInput, match="set SHIPWORTHY_ONLINE=1 to fetch it, or give a folder"):
        sw.open_data("hf:nobody/nothing", tokenizer=tokenizer)


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(14, 16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, input_ids, attention_mask):
        there = attention_mask.unsqueeze(-1).float()
        mean = (self.embed(input_ids) * there).sum(1) / there.sum(1)
        return self.head(torch.relu(self.hidden(mean)))

def net():
    torch.manual_seed(0)
    ids = torch.ones(2, 5, dtype=torch.int64)
    return Net().eval(), (ids, ids.clone()), {"input_ids": {1: "length"}, "attention_mask": {1: "length"}}
"""

RECIPE = """
shipworthy: 1
model: {source: "net.py:net"}
data: {source: t.csv, group: movie, tokenizer: TOKENIZER, max_length: 12}
compress:
  - transfer: {steps: 150, batch: 16, learning_rate: 0.02}
  - prune: {ratio: 0.5, insist: true}
  - distill: {steps: 40, batch: 16}
  - quantize: {calibration: 32, insist: true}
export: {onnx: {dynamic_batch: [1, 8]}}
profile: {runtimes: [ort-cpu], budget_seconds: 1}
goals: {accuracy: {min: 0.9}}
"""


def test_a_text_model_is_built_from_a_table(tmp_path: Path, tokenizer: Path) -> None:
    """It learns, is pruned, taught and quantized; the files take both inputs at any length, the tokenizer is there."""
    import onnxruntime as ort

    write(tmp_path / "t.csv", rows_of(200))
    (tmp_path / "net.py").write_text(NET)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("TOKENIZER", str(tokenizer)))
    record = sw.build(recipe, tmp_path / "out")
    assert record.exit_code == 0, record.goals
    assert [step.name for step in record.steps][:3] == ["baseline", "prune", "distill"]
    assert record.steps[0].settings["steps"] == 150
    assert record.data["preprocessing"]["tokenizer"] == "tokenizer.json"
    folder = tmp_path / "out"
    assert json.loads((folder / "report.json").read_text())["data"]["vocabulary"] == len(WORDS)
    assert (folder / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    session = ort.InferenceSession(str(folder / "model.onnx"))
    for length in (3, 9):
        ids = torch.full((2, length), 4).numpy()
        (scores,) = session.run(None, {"input_ids": ids, "attention_mask": torch.ones(2, length).long().numpy()})
        assert scores.argmax(1).tolist() == [0, 0]
