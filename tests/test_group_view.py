"""What can be pruned, and why not, is shown as a table, as data and as a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner, Result

from shipworthy.compress.channels import find_channels
from shipworthy.compress.costs import costs
from shipworthy.compress.group_table import GroupRow, GroupTable, describe_groups
from shipworthy.models.model import capture
from shipworthy.models.summary import summarize
from shipworthy.pipeline.cli import app
from shipworthy.pipeline.group_picture import MOST, draw_groups
from shipworthy.pipeline.group_view import find_removable, groups_text, share_text
from shipworthy.tests.small_nets import NETS, captured
from shipworthy.tests.wider_nets import WIDER

SVG = "{http://www.w3.org/2000/svg}"
# Two convolutions, the first with a batch norm, and two linear layers, on 8 x 8 pixels that are halved twice.
PLAIN_PARAMS = 216 + 16 + (432 + 6) + (240 + 10) + (40 + 4)
PLAIN_MACS = 216 * 64 + 432 * 16 + 240 + 40


def run(*args: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def shown(table: GroupTable) -> list[GroupRow]:
    """Return the groups of channels."""
    return [row for row in table.rows if row.kind != "no channels"]


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A model in a file: the plain net."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom shipworthy.tests.small_nets import Plain\n"
        "def make():\n    return Plain(), (torch.zeros(2, 3, 8, 8),)\n"
    )
    return f"{tmp_path / 'net.py'}:make"


# --- the groups


def test_shares_are_those_counted_by_hand() -> None:
    """A group's share is all that is in its rows and columns; frozen ones are counted alike, in the graph's order."""
    found = [
        (row.name, row.width, row.kind, round(row.params_share * PLAIN_PARAMS), round(row.macs_share * PLAIN_MACS))
        for row in shown(describe_groups(captured("plain")))
    ]
    assert found == [
        ("first.0 [inputs]", 3, "inputs", 216, 216 * 64),
        ("first.0", 8, "channels", 216 + 16 + 432, 216 * 64 + 432 * 16),
        ("second", 6, "channels", 432 + 6 + 240, 432 * 16 + 240),
        ("fc", 10, "channels", 240 + 10 + 40, 240 + 40),
        ("head", 4, "channels", 40 + 4, 40),
    ]


@pytest.mark.parametrize("name", [*NETS, *WIDER])
def test_a_share_is_what_goes_with_all_of_a_group(name: str) -> None:
    """For every free group of every net, parameters and MACs fall by its share when all its channels are gone."""
    model = captured(name) if name in NETS else capture(WIDER[name](), (torch.zeros(2, 3, 8, 8),))
    channels = find_channels(model)
    whole, held = costs(model, channels, channels.lost(())), sum(p.numel() for p in model.module.parameters())
    rows = {(row.name, row.members): row for row in describe_groups(model).rows if row.frozen is None}
    free = [group for group in channels.groups if group.frozen is None]
    assert len(rows) == len(free)
    for group in free:
        row, left = rows[group.name, group.members], costs(model, channels, channels.lost(group.channels))
        assert row.width == len(group.channels)
        assert row.params_share == pytest.approx((whole["params"] - left["params"]) / held)
        assert row.macs_share == pytest.approx((whole["macs"] - left["macs"]) / whole["macs"])


def test_frozen_groups_say_why() -> None:
    """The table has each group's reason; kernels have no row but are counted."""
    table = describe_groups(captured("unknown"))
    text = groups_text(table, ())
    reasons = {row.name: row.frozen for row in shown(table)}
    assert reasons["a.0"] == "reaches aten.renorm.default, which has no rule"
    assert reasons["c.0"] == "is what aten.softmax.int runs along"
    assert (reasons["b.0"], reasons["fc"]) == (None, "an output of the model")
    assert all(f"frozen: {reason}" in text for reason in reasons.values() if reason)
    assert "operators without a rule, which keep what reaches them: aten.renorm.default" in text
    assert "and 8 dimensions that are no channels" in text
    assert "kernel" not in text


def test_heads_and_their_size_are_rows_of_their_own() -> None:
    """Attention has a group of heads and one of what is in each; queries, keys and values are no channels."""
    table = describe_groups(capture(WIDER["attention"](), (torch.zeros(2, 3, 8, 8),)))
    rows = {row.name: (row.kind, row.width, row.frozen) for row in table.rows if row.name.startswith("mix.qkv")}
    assert rows["mix.qkv [heads]"] == ("heads", 4, None)
    assert rows["mix.qkv [head size]"] == ("head size", 6, None)
    assert rows["mix.qkv [no channels]"] == ("no channels", 3, "is taken apart, position by position")


def test_a_frozen_part_of_a_product_is_a_factor() -> None:
    """Groups that are shuffled stay, and are shown as what they are."""
    table = describe_groups(capture(WIDER["shuffled"](), (torch.zeros(2, 3, 8, 8),)))
    factors = {(row.name, row.width, row.frozen) for row in table.rows if row.kind == "factor"}
    assert factors == {("c [factor]", 4, "are groups that are shuffled")}


def test_the_largest_shares_come_first() -> None:
    """Groups are listed by the larger of both shares, and small shares are not rounded to nothing."""
    model = captured("residual")
    lines = groups_text(describe_groups(model), ()).splitlines()
    names = [line.split()[0] for line in lines[4:] if "prunable" in line or "frozen" in line]
    assert names == ["a2.0", "b1.0", "a1.0", "b2.0", "stem.0", "fc"]
    assert [share_text(share) for share in (0.0, 0.0001, 0.0005, 1.0)] == ["0.0 %", "< 0.1 %", "0.1 %", "100.0 %"]


def test_what_trim_can_remove_is_listed() -> None:
    """Blocks and layers have shares, too; where there are none, that is said."""
    model = captured("stack")
    rows = find_removable(model, summarize(model))
    assert {"a", "b", "c", "mixer"} <= {row.path for row in rows}
    assert all(0 < row.params_share < 1 and 0 < row.macs_share < 1 for row in rows)
    assert "residual block" in groups_text(describe_groups(model), rows)
    plain = captured("plain")
    assert "nothing: no residual block" in groups_text(describe_groups(plain), find_removable(plain, summarize(plain)))


# --- the command


def test_groups_are_added_to_what_inspect_shows(source: str) -> None:
    """With --groups the text begins and the data agrees with what `inspect` says without."""
    plain, groups = run("inspect", source), run("inspect", source, "--groups")
    assert groups.exit_code == 0, groups.output
    assert groups.stdout.startswith(plain.stdout.rstrip("\n"))
    assert "prunable" in groups.stdout
    assert "prunable" not in plain.stdout
    before, data = (json.loads(run("inspect", source, *more, "--json").stdout) for more in ((), ("--groups",)))
    assert set(data) - set(before) == {"groups", "unknown", "removable"}
    assert {key: data[key] for key in before} == before


def test_data_holds_every_member(source: str) -> None:
    """As JSON a group has all its members, its reason and its shares from 0 to 1."""
    data = json.loads(run("inspect", source, "--groups", "--json").stdout)
    first, fc = (next(group for group in data["groups"] if group["name"] == name) for name in ("first.0", "fc"))
    assert set(first) == {"name", "width", "kind", "members", "frozen", "params_share", "macs_share"}
    assert fc["members"] == [
        {"tensor": "fc.bias", "dim": 0},
        {"tensor": "fc.weight", "dim": 0},
        {"tensor": "head.weight", "dim": 1},
    ]
    assert (first["frozen"], data["unknown"], data["removable"]) == (None, [], [])
    assert first["params_share"] == pytest.approx(664 / PLAIN_PARAMS)


def test_the_groups_of_a_resnet() -> None:
    """A real network's streams and outputs are found, with what can be trimmed."""
    done = run("inspect", "torchvision:resnet18", "--input", "3,64,64", "--groups")
    assert done.exit_code == 0, done.output
    assert any(line.split()[:4] == ["layer4.0.conv2", "512", "channels", "17"] for line in done.stdout.splitlines())
    assert "frozen: an output of the model" in done.stdout
    assert "layer4.1        residual block" in done.stdout


# --- the picture


def drawn(table: GroupTable) -> ElementTree.Element:
    """Return the picture of a table, read again."""
    return ElementTree.fromstring(draw_groups(table, "a <net> & more"))


def bars(root: ElementTree.Element) -> list[list[ElementTree.Element]]:
    """Return the bars of each row."""
    return [group.findall(f"{SVG}rect") for group in root.iter(f"{SVG}g") if group.get("class") == "group"]


def test_the_picture_is_written(source: str, tmp_path: Path) -> None:
    """One file of well-formed XML that refers to no other, with two bars for each group; the path is told."""
    place = tmp_path / "new" / "groups.svg"
    done = run("inspect", source, "--picture", place)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"wrote   {place}\n")
    assert "prunable" not in done.stdout
    text = place.read_text(encoding="utf-8")
    assert [len(row) for row in bars(ElementTree.fromstring(text))] == [2] * 5
    rest = text.replace('"http://www.w3.org/2000/svg"', "").replace("url(#", "")
    assert not any(word in rest for word in ("http", "href", "src", "url(", "@import", "<script"))
    assert [path.name for path in place.parent.iterdir()] == ["groups.svg"]
    assert json.loads(run("inspect", source, "--picture", place, "--json").stdout)["picture"] == str(place)


def test_bars_are_as_long_as_the_shares() -> None:
    """Lengths are in proportion; what is frozen is hatched, and its reason is in the text."""
    table = describe_groups(captured("unknown"))
    root, rows = drawn(table), shown(table)
    widths = [float(bar.get("width", "")) for row in bars(root) for bar in row]
    shares = [share for row in rows for share in (row.params_share, row.macs_share)]
    assert widths == pytest.approx([share / max(shares) * max(widths) for share in shares], abs=0.06)
    styles = [{bar.get("class", "").partition("-")[2] for bar in row} for row in bars(root)]
    assert styles == [{"frozen"} if row.frozen else {"fill"} for row in rows]
    words = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert "8 channels, frozen: reaches aten.renorm.default, which has no rule" in words
    assert "Groups of channels: a <net> & more" in words


def test_members_and_reasons_are_tooltips() -> None:
    """Each row says on hovering what belongs to it; of many members the first."""
    titles = [
        title.text or "" for group in drawn(describe_groups(captured("stack"))).iter(f"{SVG}g") for title in group
    ]
    assert any("a.body.0: 8 channels, prunable\na.body.0.weight (dimension 0)" in title for title in titles)
    assert any(title.endswith("and 20 more") for title in titles)


def test_many_groups_are_capped_at_the_largest() -> None:
    """Of more groups than fit, those of the largest shares are drawn, in their order, and the others counted."""
    (row, *_) = shown(describe_groups(captured("plain")))
    rows = tuple(replace(row, name=f"{'deep.' * 20}layer{i}", params_share=i / 200, macs_share=0.0) for i in range(125))
    root = drawn(GroupTable(rows, ("aten.one.default",) * 40))
    words = [element.text or "" for element in root.iter(f"{SVG}text")]
    names = [word for word in words if word.startswith("…")]
    assert len(bars(root)) == MOST == len(names)
    assert (names[0][-6:], names[-1][-8:]) == ("layer5", "layer124")
    assert "and 5 smaller groups" in words


def test_a_model_without_groups_has_a_picture() -> None:
    """Nothing to prune is no fault."""
    root = drawn(GroupTable((), ()))
    assert bars(root) == []
    assert "none" in groups_text(GroupTable((), ()), ())


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("groups.png", "--picture: got groups.png, wanted a file name that ends in .svg"),
        ("groups", "wanted a file name that ends in .svg"),
        ("taken/groups.svg", "taken/groups.svg: cannot be written"),
        ("folder.svg", "folder.svg: cannot be written"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused(
    place: str, words: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong suffix, a file where a folder is wanted, or a folder in its place: one message, code 2, nothing left."""
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    Path("folder.svg").mkdir()
    before = _entries(tmp_path)
    done = run("inspect", source, "--picture", place)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert words in done.stderr
    assert _entries(tmp_path) == before


def _entries(folder: Path) -> list[Any]:
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
