"""The picture of mixed precision: every layer in a row, what stays in fp32 marked in words too."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shipworthy.pipeline import precision_picture
from shipworthy.pipeline.layer_choice import LayerChoice, MixedPrecision
from shipworthy.pipeline.precision_picture import MOST, WIDTH, gain_text, precision_plot
from shipworthy.pipeline.report_numbers import NONE
from shipworthy.pipeline.report_precision import precision_table

STYLES = Path(precision_picture.__file__).parent / "templates"


def some(count: int) -> MixedPrecision:
    """Return a search over so many layers, every seventh of which stays in fp32, the last costing least."""
    rows = tuple(
        LayerChoice(
            f"Conv_{i}", f"features.{i}", (count - i) * 1e-5, 9.0 - i % 12, i % 7 == 6, 4.0 - i % 12, 14.0 - i % 12
        )
        for i in range(count)
    )
    keep = tuple(one.layer for one in rows if one.kept)
    return MixedPrecision(rows, keep, 0.2, 1.4, 0.3, "accuracy", 2000, 256, 9, True)


def drawing(found: MixedPrecision) -> ElementTree.Element:
    """Return the picture as elements."""
    return ElementTree.fromstring(precision_plot(found, "Layers: quantize"))


def texts(svg: ElementTree.Element) -> list[str]:
    """Return all texts."""
    return [one.text or "" for one in svg.iter("text")]


@pytest.mark.parametrize("count", [1, 22, 100])
def test_every_layer_has_a_row(count: int) -> None:
    """In the graph's order, apart from each other, inside the drawing, with its precision in words."""
    found = some(count)
    svg = drawing(found)
    rows = [one for one in svg.iter("text") if (one.text or "").startswith("features.")]
    assert [one.text for one in rows] == [one.title for one in found.layers]
    places = [float(one.attrib["y"]) for one in rows]
    assert all(b - a >= 18 for a, b in pairwise(places))
    height = float(svg.attrib["viewBox"].split()[3])
    assert height > places[-1]
    assert texts(svg).count("fp32") == len(found.keep)
    assert texts(svg).count("int8") == count - len(found.keep)
    for one in svg.iter("rect"):
        assert float(one.attrib["x"]) >= 0
        assert float(one.attrib["x"]) + float(one.attrib["width"]) <= WIDTH


def test_many_layers_leave_out_those_that_cost_least() -> None:
    """None that stays in fp32 is left out, and what is left out is counted."""
    found = some(MOST + 80)
    svg = drawing(found)
    names = [text for text in texts(svg) if text.startswith("features.")]
    assert len(names) == MOST
    assert {one.title for one in found.layers if one.kept} <= set(names)
    assert "features.0" in names
    assert texts(svg)[-1] == "and 80 more layers in integers, each of which costs less"


def test_bars_are_as_long_as_what_they_say() -> None:
    """Half the cost is half the bar; what is slower in integers lies left of zero, what is not known is pale."""
    rows = (
        LayerChoice("a", "", 2e-3, 40.0, False, 30.0, 50.0),
        LayerChoice("b", "", 1e-3, -20.0, True, -25.0, -15.0),
        LayerChoice("c", "", 1e-3, 5.0, False, -3.0, 9.0),
    )
    svg = drawing(replace(some(1), layers=rows, keep=("b",)))
    bars = [[one for one in group.iter("rect")] for group in svg.iter("g")]
    (cost_a, gain_a), (cost_b, gain_b), (_, gain_c) = bars
    assert float(cost_a.attrib["width"]) == pytest.approx(2 * float(cost_b.attrib["width"]), abs=0.2)
    assert float(gain_a.attrib["width"]) == pytest.approx(2 * float(gain_b.attrib["width"]), abs=0.2)
    zero = float(gain_a.attrib["x"])
    assert float(gain_b.attrib["x"]) + float(gain_b.attrib["width"]) == pytest.approx(zero, abs=0.2)
    assert [one.attrib["class"] for one in (gain_a, gain_b, gain_c)] == ["whole", "float", "whole pale"]


def test_without_gains_there_is_no_axis_of_them() -> None:
    """What was not measured is not drawn, and the table says why."""
    rows = tuple(replace(one, gain_us=None, gain_low_us=None, gain_high_us=None) for one in some(5).layers)
    found = replace(some(5), layers=rows)
    assert not [text for text in texts(drawing(found)) if "gain" in text or "interval" in text]
    table = precision_table(found, "", 9)
    assert {row[3] for row in table.rows} == {NONE}
    assert "Gains were not measured: there is no device for the target here." in table.note


def test_a_missed_limit_is_said() -> None:
    """In words, above the rows."""
    found = replace(some(5), met=False)
    assert [text for text in texts(drawing(found)) if "MISSED: found no choice with integers that holds 0.3" in text]


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((33.2, 20.1, 46.4), "+33 (20 to 46)"),
        ((-4.21, -6.0, -2.0), "-4.2 (-6.0 to -2.0)"),
        ((0.01, -0.02, 0.04), "0.0 (0.0 to 0.0)"),
        ((1234.5, None, None), "+1,234"),
        ((None, None, None), ""),
    ],
)
def test_gains_in_words(gain: tuple[float | None, float | None, float | None], said: str) -> None:
    """Microseconds with their interval; no sign before what rounds to nothing."""
    assert gain_text(LayerChoice("a", "", 0.0, gain[0], False, gain[1], gain[2])) == said


def test_hostile_names_stay_text() -> None:
    """Markup and control characters are escaped; of a long name the end is shown."""
    name = "<script>alert(1)</script>\x00\u202e" + "x" * 60 + ".last"
    markup = precision_plot(replace(some(1), layers=(LayerChoice(name, "", 1.0, 1.0, True),)), name)
    assert "<script>" not in markup
    assert "\u202e" not in markup
    assert [text for text in texts(ElementTree.fromstring(markup)) if text.startswith("…") and text.endswith("x.last")]


def test_nothing_to_draw_is_drawn() -> None:
    """No layers, no costs and equal gains of zero give a picture; equal values give equal bytes."""
    flat = tuple(LayerChoice(name, "", 0.0, 0.0, False, 0.0, 0.0) for name in "ab")
    for found in (replace(some(1), layers=()), replace(some(1), layers=flat)):
        assert precision_plot(found, "a") == precision_plot(found, "a")
        assert drawing(found).tag == "svg"


def test_every_class_has_a_rule() -> None:
    """In the page's styles, which have dark colours too."""
    rules = "".join((STYLES / name).read_text() for name in ("report.css", "report_precision.css"))
    used = {name for one in drawing(some(22)).iter() for name in one.attrib.get("class", "").split()}
    assert {name for name in used if f".{name}" not in rules} == set()
    assert "prefers-color-scheme: dark" in (STYLES / "report_precision.css").read_text()
