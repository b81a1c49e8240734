"""The figures beside the warm latency in a build: recipe, stage, record and reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from shipworthy.pipeline.build import build
from shipworthy.pipeline.cli_sections import SECTIONS
from shipworthy.pipeline.figure_rows import RAW, TITLES, read_layers, read_row, row_of, without_raw
from shipworthy.pipeline.figure_stage import layers_within, take_figures
from shipworthy.pipeline.layer_picture import layer_plot
from shipworthy.pipeline.progress import Silent
from shipworthy.pipeline.recipe import read_recipe
from shipworthy.pipeline.recipe_metrics import FigureName
from shipworthy.pipeline.record import Figure, FigureRow, RunRecord, ValueRow
from shipworthy.pipeline.report import html_text, markdown_text
from shipworthy.pipeline.report_numbers import figure_text
from shipworthy.pipeline.store import open_store
from shipworthy.pipeline.taking import TAKERS, Layers, Request, Taken, take_layers
from shipworthy.profile import roofline
from shipworthy.profile.errors import RuntimeAbsent
from shipworthy.profile.plan import Plan
from shipworthy.tests.test_layer_picture import MANY, ROOFS
from shipworthy.tests.test_report import Page, record_of
from shipworthy.tests.tiny_project import Recorder, write_project, write_recipe

NAMES = ["layers", "cold", "throughput"]
SMALL: dict[str, Any] = {"compress": None, "goals": None, "export": {"onnx": {"dynamic_batch": [1, 32]}}}


def profile(*figures: str, **changes: Any) -> dict[str, Any]:
    """Return a recipe's section for so many figures, each within a second."""
    return {"runtimes": ["ort-cpu"], "budget_seconds": 1, "figures": list(figures)} | changes


def make(project: Path, **changes: Any) -> tuple[RunRecord, Recorder]:
    """Build a project without passes."""
    progress = Recorder()
    return build(write_recipe(project, **(SMALL | changes)), project / "out", progress), progress


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the project of the builds."""
    folder = tmp_path_factory.mktemp("figures")
    write_project(folder)
    return folder


@pytest.fixture(scope="module")
def built(project: Path) -> RunRecord:
    """Give the record of a build with three figures."""
    record, progress = make(project, profile=profile(*NAMES))
    assert progress.made[-2:] == ["measure-ort-cpu", "figures-ort-cpu"]
    return record


def keys(value: Any) -> Iterator[str]:
    """Yield the keys of plain data at any depth."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(item)
    yield from value if isinstance(value, dict) else ()


def test_each_name_is_known_everywhere() -> None:
    """What a recipe can name can be taken, has a title, and is an option of `profile`."""
    assert list(get_args(FigureName)) == list(TAKERS) == list(TITLES)
    assert set(TAKERS) < set(SECTIONS)


def test_a_recipe_without_figures_keeps_its_hash(tmp_path: Path) -> None:
    """An empty list says what no list says, and some figures say more; what is written reads back."""
    write_project(tmp_path)
    none, empty, some = (
        read_recipe(write_recipe(tmp_path, profile=section))
        for section in ({"budget_seconds": 1}, {"budget_seconds": 1, "figures": []}, profile("gaps", "cold"))
    )
    assert none.sha256 == empty.sha256 != some.sha256
    assert "figures" not in none.to_dict()["profile"]
    assert some.to_dict()["profile"]["figures"] == ["gaps", "cold"]
    assert some.profile.figures == ("gaps", "cold")


def test_figures_are_of_the_file_that_ships_on_real_inputs(built: RunRecord) -> None:
    """Each has numbers, lines and data of that file, in one order whatever the recipe's."""
    assert [(row.name, row.runtime, row.absent) for row in built.figures] == [
        (name, "ort-cpu", None) for name in ("cold", "throughput", "layers")
    ]
    shipped = next(row for row in built.artifacts if row.ships)
    for row in built.figures:
        assert row.data["sha256"] == shipped.sha256
        assert row.lines
        assert any(value.figure and value.figure.value > 0 for value in row.values)
    cold, batches, layers = built.figures
    assert (cold.data["inputs"], batches.data["inputs"]) == ("given", "given")
    assert [value.name for value in batches.values] == [f"throughput, batch {n}" for n in (1, 2, 4, 8, 16, 32)]
    rate = batches.values[0].figure
    assert rate
    assert rate.value == pytest.approx(batches.data["rows"][0]["examples_per_s"]["value"])
    assert {"Conv", "Gemm"} <= {one["operator"] for one in layers.data["layers"]}


def test_raw_samples_are_in_the_stage_alone(project: Path, built: RunRecord) -> None:
    """report.json has medians and rows; the stage's folder has what they come from."""
    report = json.loads((project / "out" / "report.json").read_text())
    assert report["schema"] == 1
    assert [read_row(row) for row in report["figures"]] == built.figures
    assert not set(keys([row["data"] for row in report["figures"]])) & RAW
    (stage,) = (project / "out" / "stages").glob("figures-ort-cpu-*")
    raw = json.loads((stage / "throughput.json").read_text())
    assert len(raw["rows"][0]["samples_ns"]) > 10


def test_the_second_build_takes_no_figure_again(project: Path, built: RunRecord) -> None:
    """Another order is the same work; without figures the stage and every trace in the reports are gone."""
    record, progress = make(project, profile=profile(*reversed(NAMES)))
    assert (progress.made, progress.kept[-1]) == ([], "figures-ort-cpu")
    assert record.figures == built.figures
    record, progress = make(project, profile=profile())
    assert progress.kept[-1] == "measure-ort-cpu"
    assert record.figures == []
    assert "figures" not in json.loads((project / "out" / "report.json").read_text())
    assert html_text(replace(built, figures=[])) != html_text(built)
    assert "Other latencies" not in html_text(record) + markdown_text(record)
    assert ".layers" not in html_text(record)


def test_what_cannot_be_taken_is_a_line(project: Path) -> None:
    """A file of three examples an inference runs no other batch: the figure says so, and the build goes on."""
    fixed = {"onnx": {"dynamic_batch": None}}
    record, _ = make(project, export=fixed, profile=profile("throughput", batch=3, budget_seconds=0.3))
    (row,) = record.figures
    assert row.absent
    assert "none of the batches 1, 2, 4, 8, 16, 32 runs" in row.absent
    assert record.latency
    for text in (html_text(record), markdown_text(record)):
        assert "throughput, ort-cpu" in text
        assert "not measured" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="the runtime is here")
def test_an_absent_runtime_leaves_no_finished_stage(project: Path, tmp_path: Path) -> None:
    """Every figure says why, and the next run looks again."""
    request = Request(project / "out" / "model.onnx", "ort-cuda", Plan(budget_s=0.1), None, lambda share, text: None)
    with open_store(tmp_path, Silent()) as store:
        rows = take_figures(store, "ort-cuda", ["layers", "gaps"], request, {"file": "a"})
    assert [row.name for row in rows] == ["gaps", "layers"]
    assert all(row.absent and "ort-cuda" in row.absent for row in rows)
    assert not list((tmp_path / "stages").iterdir())


def test_reports_show_every_number(built: RunRecord) -> None:
    """Both reports have each value with its interval and the slowest layers; the page draws them, whole and alone."""
    html, markdown = html_text(built), markdown_text(built)
    page = Page(html)
    texts = " ".join("".join(page.texts).split())
    for row in built.figures:
        for value in row.values:
            shown = (f"{value.name}, ort-cpu", figure_text(value.figure, value.unit))
            assert all(text in markdown and text in texts for text in shown)
            assert value.what in texts
        assert all(f"{TITLES[row.name]}: {note}" in texts for note in row.data["notes"])
    for text in (markdown, texts):
        assert "Other latencies" in text
        assert "Slowest layers, ort-cpu" in text
        assert "conv2" in text
    assert page.open == []
    assert ("class", "chart layers") in page.attributes
    assert page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert "url(" not in html


def test_the_picture_needs_no_samples() -> None:
    """Drawn from the record's data, through JSON, it is what is drawn from the profile itself."""
    for ceilings in (ROOFS, None):
        row = row_of("layers", "ort-cpu", Taken(Layers(MANY, ceilings), ("a line",)))
        profile_read, ceilings_read = read_layers(json.loads(json.dumps(row.data)))
        assert layer_plot(profile_read, ceilings_read) == layer_plot(MANY, ceilings)


def test_layers_keep_to_the_budget() -> None:
    """As many runs as fit, with the profiler and without; one at the least, and never more than asked for."""
    request = Request("a.onnx", "ort-cpu", Plan(budget_s=10.0), None, lambda share, text: None)
    fast, slow, slowest = (layers_within(request, ms) for ms in (0.1, 100.0, 60_000.0))
    assert (fast.runs, slow.runs, slowest.runs) == (50, 12, 1)
    assert fast.try_s == 0.2
    brief = layers_within(replace(request, plan=Plan(budget_s=1.0)), 0.1)
    assert brief.try_s == pytest.approx(0.025)


def test_layers_stand_without_ceilings(project: Path, built: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no ceiling can be measured the layers are there all the same, and the reason is said."""

    def absent(*_: Any, **__: Any) -> None:
        raise RuntimeAbsent("no torch on this GPU")

    monkeypatch.setattr(roofline, "measure_roofline", absent)
    plan = Plan(batch=3, warmup_s=0.1)
    request = Request(project / "out" / "model.onnx", "ort-cpu", plan, None, lambda share, text: None, runs=3)
    taken = take_layers(request)
    assert taken.lines[-1] == "no ceilings: no torch on this GPU"
    row = row_of("layers", "ort-cpu", taken)
    assert "no torch on this GPU" in row.values[0].what
    assert row.data["roofline"] is None
    record = replace(built, figures=[row])
    assert "| Layer | Operator | Time | Share |\n" in markdown_text(record)
    assert "chart layers" in html_text(record)


def test_data_hold_what_json_has() -> None:
    """Infinities become null, and raw keys go at any depth."""
    given = {"a": float("inf"), "rows": ({"samples_ns": (1, 2), "p50": 1.5},), "windows": [1], "environment": {}}
    assert without_raw(given) == {"a": None, "rows": [{"p50": 1.5}]}


def test_hostile_figures_stay_texts() -> None:
    """Texts of figures act in no report."""
    evil = "<script>alert(1)</script>|`x`\n# **bold** [a](http://evil.example/) @everyone \x00"
    rows = [
        FigureRow("gaps", evil, [ValueRow(evil, Figure(1.0, 0.5, 2.0), evil, evil)], [evil]),
        FigureRow(evil, evil, absent=evil),
    ]
    record = replace(record_of("sample"), figures=rows)
    html, markdown = html_text(record), markdown_text(record)
    assert "<script" not in html + markdown
    assert "@everyone" not in markdown
    assert "http://" not in markdown
    assert Page(html).open == []
