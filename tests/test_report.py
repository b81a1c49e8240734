"""The reports: every goal in every format, nothing from a record acts as markup, equal records give equal bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from shipworthy.models.errors import BadInput
from shipworthy.pipeline.cli_build import verdict_text
from shipworthy.pipeline.plots import goal_plot, latency_plot
from shipworthy.pipeline.record import ComparisonRow, Figure, GoalRow, RunRecord
from shipworthy.pipeline.report import html_text, junit_text, markdown_text, write_reports
from shipworthy.pipeline.report_numbers import (
    count,
    decimals_of,
    duration,
    figure_text,
    percentile_name,
    ratio_text,
    significant,
    size,
)
from shipworthy.pipeline.report_svg import even_ticks, log_ticks
from shipworthy.pipeline.report_text import (
    accuracy_phrase,
    bounds_of,
    goal_lines,
    margin_text,
    measured,
    speed_phrase,
    verdict_line,
)

VOID = {"meta", "link", "br", "img", "hr", "input"}


def _load_sample() -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("report_sample", Path(__file__).with_name("report_sample.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLES = _load_sample()
NAMES = ("sample", "missed_and_unclear", "bare", "hostile", "long_names")


def record_of(name: str) -> RunRecord:
    """Return an invented record by its name."""
    record = getattr(SAMPLES, name)()
    assert isinstance(record, RunRecord)
    return record


class Page(HTMLParser):
    """Reads a page: its tags, attributes and texts, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an opened element."""
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that closes itself, as shapes do."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Check that what closes is what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the texts."""
        self.texts.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_four_files_are_written(name: str, tmp_path: Path) -> None:
    """Any record gives four readable files, and nothing else is left in the folder."""
    paths = write_reports(record_of(name), tmp_path / "out")
    assert set(paths) == {"report.html", "report.md", "report.json", "junit.xml"}
    assert sorted(paths.values()) == sorted((tmp_path / "out").iterdir())
    assert json.loads(paths["report.json"].read_text())["schema"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_same_record_same_bytes(name: str) -> None:
    """Two equal records give equal bytes in every format."""
    for write in (html_text, markdown_text, junit_text):
        assert write(record_of(name)) == write(record_of(name))


@pytest.mark.parametrize("name", ["sample", "missed_and_unclear"])
def test_every_goal_is_in_every_format(name: str) -> None:
    """Each goal's name, figure, outcome and reason can be read in HTML, Markdown and the terminal's lines."""
    record = record_of(name)
    page = " ".join("".join(Page(html_text(record)).texts).split())
    markdown = markdown_text(record)
    for line in goal_lines(record):
        for cell in line:
            assert cell in page
            assert cell in markdown


@pytest.mark.parametrize("name", NAMES)
def test_page_is_whole_and_alone(name: str) -> None:
    """The page's elements nest, it loads nothing, runs nothing, and says its verdict in words."""
    text = html_text(record_of(name))
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "foreignobject", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert "url(" not in text
    assert "@import" not in text
    assert record_of(name).outcome.upper() in "".join(page.texts)


def test_hostile_texts_stay_texts() -> None:
    """Markup, quotes and control characters in a record are shown as they are, or replaced, and never act."""
    record = record_of("hostile")
    html, markdown = html_text(record), markdown_text(record)
    assert "<script" not in html + markdown
    assert "&lt;script&gt;" in html
    assert not re.search("[\x00\x1b\u202e\ud800]", html + markdown + junit_text(record))
    assert "@everyone" not in markdown
    assert "http://" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert set(bars) == {7, 5, 8}
    assert not [line for line in markdown.splitlines()[1:] if line.startswith("#")]


@pytest.mark.parametrize("name", NAMES)
def test_markdown_fits_a_comment(name: str) -> None:
    """A usual report stays below 4,000 characters, and any below what GitHub takes."""
    assert len(markdown_text(record_of(name))) < (4_000 if name in ("sample", "missed_and_unclear", "bare") else 65_536)


def test_junit_never_passes_what_is_not_met() -> None:
    """Met goals pass, a missed one is a failure, and an unclear one an error, and the totals agree."""
    record = record_of("missed_and_unclear")
    suites = ElementTree.fromstring(junit_text(record))
    cases = suites.findall("./testsuite/testcase")
    kinds = {"met": "system-out", "missed": "failure", "unclear": "error"}
    assert [case[0].tag for case in cases] == [kinds[goal.outcome] for goal in record.goals]
    assert {case.get("classname") for case in cases} == {"shipworthy.goals"}
    assert [case[0].get("message") for case in cases if case[0].tag != "system-out"] == [
        goal.reason for goal in record.goals if goal.outcome != "met"
    ]
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("6", "1", "2")
    assert float(suites.get("time", "")) == pytest.approx(sum(record.seconds.values()))


@pytest.mark.parametrize("name", NAMES)
def test_junit_is_xml(name: str) -> None:
    """Any record gives well-formed XML with a test case for each goal, or one for the verdict."""
    record = record_of(name)
    assert len(ElementTree.fromstring(junit_text(record)).findall(".//testcase")) == max(1, len(record.goals))


def test_a_run_without_goals_is_no_success() -> None:
    """Without goals the verdict itself is the test case, and an unclear one is an error."""
    assert ElementTree.fromstring(junit_text(record_of("bare"))).find(".//error") is not None


def test_verdict_in_one_sentence() -> None:
    """A met verdict starts with what was gained; any other with the goals that are not met."""
    assert verdict_line(record_of("sample")) == (
        "MET: 7.6\u00d7 faster (7.4\u20137.8) on ort-cpu, 12.1\u00d7 smaller, "
        "0.3 points of accuracy lost (0.1\u20130.6); 5 of 5 goals met."
    )
    assert verdict_line(record_of("missed_and_unclear")).startswith(
        "MISSED: 1 of 6 goals missed (speedup on ort-cpu); 2 of 6 goals unclear "
        "(accuracy_drop, latency_p99_ms on tensorrt); 3 of 6 goals met; 7.6"
    )
    assert verdict_line(record_of("bare")) == "UNCLEAR: no goals set."


def test_what_disturbed_the_times_stands_beside_the_verdict() -> None:
    """A figure from a busy machine is never shown without its caution, in any report or on the terminal."""
    good = SAMPLES.sample()
    caution = "9 disturbed windows were kept"
    record = replace(good, latency=[replace(row, notes=[caution]) for row in good.latency])
    head = html_text(record).partition("</header>")[0]
    for text in (head, markdown_text(record).partition("| Outcome")[0], verdict_text(record, Path("out"))):
        assert text.count(caution) == len({row.runtime for row in good.latency})
    assert caution not in verdict_text(good, Path("out"))


def test_losses_are_called_losses() -> None:
    """A slower artifact is slower by the inverse, a negative drop is a gain, and an unclear ratio claims nothing."""
    row = ComparisonRow("baseline", "a", "ort-cpu", Figure(0.5, 0.4, 0.625), "slower", "")
    assert speed_phrase(row) == "2.0\u00d7 slower (1.6\u20132.5) on ort-cpu"
    assert speed_phrase(replace(row, speedup=Figure(1.0, 0.8, 1.2), outcome="unclear")).startswith("speed-up unclear")
    assert accuracy_phrase(Figure(-0.2, -0.5, 0.1)) == "0.2 points of accuracy gained (-0.1 to 0.5)"


@pytest.mark.parametrize(
    ("figure", "bound"),
    [
        (Figure(0.5, 0.2, 1.004), "at most 1"),
        (Figure(0.5, 0.2, 0.9996), "at most 1"),
        (Figure(3.2, 2.9999, 3.4), "at least 3"),
        (Figure(7.0, 6.0, 8.0), "at least 6 and at most 7.999"),
    ],
)
def test_rounding_never_contradicts_a_verdict(figure: Figure, bound: str) -> None:
    """No end of a printed interval equals the bound unless it really does."""
    goal = GoalRow("metric", bound, None, "unclear", figure, "ms", 1e-7, "")
    bounds = [number for number in bounds_of(goal) if number is not None]
    assert bounds
    digits = decimals_of(figure, bounds)
    for edge in (figure.low, figure.high):
        assert edge is not None
        assert f"{edge:.{digits}f}" in measured(goal)
        assert all((round(edge, digits) == number) == (edge == number) for number in bounds)
    assert re.search("[1-9]", margin_text(goal))


def test_numbers_have_sensible_digits() -> None:
    """Counts and sizes take SI prefixes and three digits, and times read as times."""
    assert [count(n) for n in (0, 12, 999, 999_600, 1_084_000, 163.7e6)] == [
        "0",
        "12",
        "999",
        "1.00 M",
        "1.08 M",
        "164 M",
    ]
    assert [size(n) for n in (0, 361_208, 4_362_112)] == ["0 B", "361 kB", "4.36 MB"]
    assert [significant(n) for n in (0.0312, 2.3149, 1234.5)] == ["0.0312", "2.31", "1,234"]
    assert [duration(s) for s in (0.042, 8.14, 59.7, 252, 3900)] == [
        "0.042 s",
        "8.1 s",
        "1 min 00 s",
        "4 min 12 s",
        "1 h 05 min",
    ]
    assert [percentile_name(q) for q in (0.5, 0.99, 0.999, 99.9)] == ["p50", "p99", "p99.9", "p99.9"]
    assert [ratio_text(*pair) for pair in ((4, 1), (1, 1), (10, 12), (0, 5))] == [
        "÷ 4.00",
        "=",
        "\u00d7 1.20",
        "\u2013",
    ]


def test_figures_without_whole_intervals() -> None:
    """An exact figure has no brackets, a one-sided one names its end, and none at all is a dash."""
    assert figure_text(Figure(12.0), "MB") == "12.0 MB"
    assert figure_text(Figure(12.0, None, 13.0), "ms") == "12.0 ms (at most 13.0)"
    assert figure_text(None) == "\u2013"


def test_classes_are_in_the_reports() -> None:
    """Every class has a row with its changes, every cell a title, and Markdown the pairs confused most."""
    page, markdown = html_text(record_of("sample")), markdown_text(record_of("sample"))
    texts = "".join(Page(page).texts)
    for words in ("class 0", "rare", "mean of all 3", "class 1 taken for class 0: 11 of 100 (11.0 %)", "3.1"):
        assert words in texts
    assert page.count('class="wrong"') == 6
    assert "Most confused: rare taken for class 1 (12 of 100), class 1 taken for class 0 (11 of 100)" in markdown
    assert "| rare | 0 (0\u20134) |" in markdown


def test_many_classes_are_listed_not_drawn() -> None:
    """Of more than twenty classes those that lost most have rows, the pairs confused most a table; none is drawn."""
    good = record_of("sample")
    found = SAMPLES.class_scores(40)
    ship = next(row for row in good.artifacts if row.ships)
    record = replace(good, artifacts=[replace(row, classes=found) if row == ship else row for row in good.artifacts])
    page = html_text(record)
    assert 'class="wrong"' not in page
    assert "20 more are in report.json" in page
    assert f"<h2>Most confused: {ship.file}</h2>" in page
    assert [page.count(f"<td>class {k}</td>") for k in (19, 20, 38)] == [1, 0, 2]
    assert len(markdown_text(record)) < 4_000


def test_every_sample_is_in_the_latency_plot() -> None:
    """The single slowest sample has its own mark; rows without samples draw nothing."""
    row = replace(SAMPLES.latency_row("baseline", 2.0), samples_ns=[2_000_000] * 50 + [80_000_000])
    svg = ElementTree.fromstring(latency_plot([row], {"baseline"}, 600))
    rug = next(path for path in svg.iter("path") if path.get("class") == "base-rug")
    assert (rug.get("d") or "").count("M") == 2
    assert latency_plot([replace(row, samples_ns=[])], set(), 600) == ""


def test_goal_plot_needs_a_bound_and_a_figure() -> None:
    """A goal about an absent device and one whose bound is not a number have no plot."""
    goal = record_of("sample").goals[0]
    assert goal_plot(goal)
    assert goal_plot(replace(goal, figure=None)) == ""
    assert goal_plot(replace(goal, bound="soon")) == ""


@pytest.mark.parametrize(("low", "high"), [(0.28, 9.4), (2.0, 2.1), (0.001, 1000.0), (0.9, 1.3)])
def test_ticks_lie_on_the_axis(low: float, high: float) -> None:
    """An axis of any length has at least two ticks, all within it, and not more than fit."""
    for ticks in (even_ticks(low, high), log_ticks(low, high, 8)):
        assert 2 <= len(ticks) <= 10
        assert all(low <= tick <= high for tick in ticks)


def test_numbers_json_has_not_are_refused_before_writing(tmp_path: Path) -> None:
    """A record with NaN raises, and nothing is written."""
    record = replace(record_of("sample"), seconds={"total": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_reports(record, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_bad_input(tmp_path: Path) -> None:
    """A folder that cannot be made is the user's to mend, and the message names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        write_reports(record_of("bare"), tmp_path / "file")


@pytest.mark.parametrize(("when", "shown"), [("2026-01-31T12:00:00+00:00", "2026-01-31 12:00 UTC"), ("2026-01-31T01:30:00+02:00", "2026-01-30 23:30 UTC")])  # fmt: skip # noqa: E501
def test_reports_say_when_the_run_ended(when: str, shown: str) -> None:
    """The page and the comment carry the time, in UTC; a record without one still gives both."""
    record = replace(record_of("sample"), finished_at=when)
    for text in (html_text(record), markdown_text(record)):
        assert shown in text
    without = replace(record, finished_at="")
    for text in (html_text(without), markdown_text(without)):
        assert "UTC" not in text
