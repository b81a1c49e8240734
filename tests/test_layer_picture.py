"""The picture of layers: what is in it, where, and that hostile names stay text."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest

from shipworthy.pipeline.layer_picture import MOST, layer_svg
from shipworthy.pipeline.report_svg import Scale
from shipworthy.pipeline.roofline_picture import NAMED, Box, drawn
from shipworthy.profile.layer_costs import Tensor
from shipworthy.profile.layer_profile import Layer, LayerProfile
from shipworthy.profile.plan import Plan
from shipworthy.profile.roofline import MemoryLevel, Peak, Roofline

SVG = "{http://www.w3.org/2000/svg}"
ROOFS = Roofline(
    runtime="ort-cpu",
    threads=1,
    peaks=(Peak("float32", 100e9, "MatMul 512"), Peak("int8", 110e9, "MatMulInteger 512")),
    levels=(
        MemoryLevel("L2", 1 << 20, 50e9, "add"),
        MemoryLevel("L3", 1 << 24, 45e9, "add"),
        MemoryLevel("DRAM", None, 10e9, "dot"),
    ),
    dispatch_ns=300.0,
    environment={},
)


def layer(name: str, flops: int | None, size: int | None, ns: float, share: float) -> Layer:
    """Make a layer with one output."""
    outputs = (Tensor("float32", (1, 8)),)
    values: dict[str, Any] = {"facts": ("fused: Relu",), "module": name}
    return Layer(name, "Conv", "CPU", "float32", (None,), outputs, flops, size, 1, ns, int(ns), share, (), **values)


def profile(*layers: Layer) -> LayerProfile:
    """Make a profile of these layers."""
    return LayerProfile("net.onnx", "ort-cpu", None, None, Plan(), {}, layers, (10**6,), (1_200_000,), (10**6,), 1000)


def drawing(given: LayerProfile, roofline: Roofline | None = ROOFS) -> ElementTree.Element:
    """Draw and read back what was drawn."""
    return ElementTree.fromstring(layer_svg(given, roofline).encode())


def texts(svg: ElementTree.Element) -> list[str]:
    """Return all texts."""
    return ["".join(element.itertext()) for element in svg.iter(f"{SVG}text")]


MANY = profile(
    *(
        layer(f"block.{i}", 10**6 * (i + 1), 20_000 * (1 + i % 5), 40_000.0 + 9000 * i, (i + 1) / 210)
        for i in range(20)
    ),
    layer("softmax", None, 100, 900.0, 0.01),
    layer("crawling", 10, 100, 900_000.0, 0.3),
)


def test_the_longest_layers_have_a_bar_and_the_others_are_counted() -> None:
    """Bars are in order of time, their lengths in proportion to it; each says its share, time and standing."""
    svg = drawing(MANY)
    names = [text for text in texts(svg) if text in {one.title for one in MANY.layers}]
    order = [one.title for one in sorted(MANY.layers, key=lambda one: -one.median_ns)][:MOST]
    assert names[:MOST] == order
    assert "and 8 more layers, each shorter" in texts(svg)
    bars = [bar for group in svg.iter(f"{SVG}g") for bar in group.iter(f"{SVG}rect")]
    widest = max(float(bar.attrib["width"]) for bar in bars)
    assert widest == pytest.approx(float(bars[0].attrib["width"]), abs=0.1)
    assert bars[0].attrib["class"] == "overhead"
    assert f"30.0%, {900.0:.0f} us" in texts(svg)


def test_every_counted_layer_is_a_dot_with_an_area_like_its_time() -> None:
    """Dots are those that `drawn` gives; what is left out is told with its share."""
    svg = drawing(MANY)
    dots = list(svg.iter(f"{SVG}circle"))
    assert len(dots) == len(drawn(MANY.layers, ROOFS)) == 20
    radii = [float(dot.attrib["r"]) for dot in dots]
    assert radii == sorted(radii, reverse=True)
    assert (radii[0] / radii[4]) ** 2 == pytest.approx(20 / 16, rel=0.03)
    left = "; 2 layers are left out, 31.0% of the time: without counted operations, or too slow to be shown"
    assert texts(svg)[-1].endswith(left)


def test_dots_lie_under_their_roofs_where_the_axes_say() -> None:
    """A layer on the roof touches the line: its dot has the height of the peak's."""
    given = profile(layer("on", 10**7, 10_000, 10**5, 0.6), layer("below", 10**6, 10_000, 10**5, 0.4))
    svg = drawing(given)
    (height, _), *_ = (
        (float(path.attrib["d"].split()[1].split("H")[0]), path)
        for path in svg.iter(f"{SVG}path")
        if path.attrib["class"] == "roof" and "H" in path.attrib["d"] and "L" not in path.attrib["d"]
    )
    on, below = (float(dot.attrib["cy"]) for dot in svg.iter(f"{SVG}circle"))
    assert height < on < below  # the first line is the higher peak, of int8, a tenth above
    decade = below - on
    assert on - height == pytest.approx(decade * 0.0414, abs=0.2)


def test_names_of_the_largest_do_not_lie_on_each_other() -> None:
    """At most five are named beside their dots, apart from each other, inside the drawing."""
    svg = drawing(MANY)
    named = [
        one for one in svg.iter(f"{SVG}text") if one.attrib["class"] == "small halo" and "block" in (one.text or "")
    ]
    assert 0 < len(named) <= NAMED
    boxes = []
    for one in named:
        x, y, width = float(one.attrib["x"]), float(one.attrib["y"]), 6.0 * len(one.text or "")
        left = x - width if one.attrib["text-anchor"] == "end" else x
        boxes.append(Box(left, y - 11, left + width, y + 3))
    assert not any(one.meets(other) for one, other in combinations(boxes, 2))
    edge = Box(0, 0, float(svg.attrib["width"]), float(svg.attrib["height"]))
    assert all(box.within(edge) for box in boxes)


def test_layers_in_one_place_share_a_name() -> None:
    """Equal layers are one name and a count."""
    given = profile(*(layer(f"same.{i}", 10**6, 20_000, 40_000.0, 0.25) for i in range(4)))
    assert "same.0 (+3)" in texts(drawing(given))


def test_peaks_that_are_close_are_named_apart() -> None:
    """The two lines are a tenth apart, their names a line of text."""
    places = [
        float(one.attrib["y"])
        for one in drawing(MANY).iter(f"{SVG}text")
        if (one.text or "").endswith("GFLOP/s") and (one.text or "")[0] in "fi"
    ]
    assert len(places) == 2
    assert places[1] - places[0] >= 14


def test_without_a_roofline_the_bars_stand_alone() -> None:
    """There are no dots, no roofs, and no word of what bounds a layer."""
    svg = drawing(MANY, None)
    assert not list(svg.iter(f"{SVG}circle"))
    assert not [text for text in texts(svg) if "roof" in text or "ceiling" in text]
    assert {bar.attrib["class"] for group in svg.iter(f"{SVG}g") for bar in group.iter(f"{SVG}rect")} == {"plain"}


def test_hostile_names_stay_text() -> None:
    """A name with markup and control characters is escaped and cleaned; long ones keep their end."""
    name = "<script>alert(1)</script>\x00\u202e" + "x" * 80 + ".last"
    markup = layer_svg(profile(layer(name, 10**6, 20_000, 40_000.0, 1.0)), ROOFS)
    assert "<script>" not in markup
    assert "\u202e" not in markup
    svg = ElementTree.fromstring(markup.encode())
    assert [text for text in texts(svg) if text.endswith("xxx.last") and text.startswith("…")]


@pytest.mark.parametrize("roofline", [ROOFS, None])
def test_nothing_to_draw_is_drawn(roofline: Roofline | None) -> None:
    """No layers at all, or none that is counted, give a picture too; the same values give the same bytes."""
    for given in (profile(), profile(layer("a", None, None, 0.0, 0.0))):
        assert layer_svg(given, roofline) == layer_svg(given, roofline)
        assert drawing(given, roofline).tag == f"{SVG}svg"


def test_colours_follow_the_readers_scheme() -> None:
    """Every class that is used has a rule; dark mode has its own."""
    markup = layer_svg(replace(MANY, layers=MANY.layers[:3]), ROOFS)
    style = markup.partition("<style>")[2].partition("</style>")[0]
    assert "prefers-color-scheme: dark" in style
    used = {
        name for one in ElementTree.fromstring(markup.encode()).iter() for name in one.attrib.get("class", "").split()
    }
    assert {name for name in used if f".{name}" not in style} <= {"chart", "dash0"}


def test_a_box_within_another() -> None:
    """Touching edges do not meet."""
    assert not Box(0, 0, 1, 1).meets(Box(1, 0, 2, 1))
    assert Box(0, 0, 1, 1).meets(Box(0.5, 0.5, 2, 2))
    assert Box(0, 0, 1, 1).within(Box(0, 0, 1, 1))
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)
