"""Panels: well-formed, described, the same bytes, nothing shared between two on one page."""

import dataclasses
import re
from xml.etree import ElementTree as ET

import pytest
from report_sample import HOSTILE

from ropewalk.report.strip import WIDTH, strips
from ropewalk.report.svg import COLOURS, MARKERS, Line, Panel, render, tick

PANEL = Panel(
    name="one",
    title="Perplexity <b>",
    description=HOSTILE,
    x_label="context",
    y_label="perplexity",
    x_scale="log",
    y_scale="log",
    x_ticks=((256, "256"), (1024, "1,024")),
    lines=(
        Line(label=HOSTILE, x=[256, 1024], y=[24.0, 46.0], low=[23.0, 44.0], high=[25.0, 48.0]),
        Line(label="bounded", x=[256], y=[7.2], beyond=[1024], style=1),
    ),
)
SVG = "{http://www.w3.org/2000/svg}"


def parsed(panel: Panel) -> ET.Element:
    # Inside HTML the xlink prefix needs no declaration; matplotlib's uses were rewritten to href.
    return ET.fromstring(render(panel))


def test_title_and_description_are_escaped_text():
    """Guards against names that break the page, and against '$' read as math."""
    root = parsed(PANEL)
    assert root.find(f"{SVG}title").text == PANEL.title
    assert root.find(f"{SVG}desc").text == HOSTILE
    texts = ["".join(t.itertext()).strip() for t in root.iter(f"{SVG}text")]
    assert HOSTILE in texts


def test_responsive_and_without_styles_of_its_own():
    root = parsed(PANEL)
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)
    assert not list(root.iter(f"{SVG}style"))


def test_same_panel_same_bytes():
    assert render(PANEL) == render(PANEL)


def test_ids_of_two_panels_never_meet():
    """Guards against one figure's clip path cutting another."""
    first, second = render(PANEL), render(dataclasses.replace(PANEL, name="two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert not ids[0] & ids[1]
    for text, own in zip((first, second), ids, strict=True):
        used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
        assert used
        assert used <= own


def test_numbers_are_drawn_where_they_belong():
    """Guards against an axis upside down or a series lost: y of 46 lies above y of 24."""
    text = render(dataclasses.replace(PANEL, lines=PANEL.lines[:1]))
    colour = COLOURS[0].lower()
    move = r"([\d.]+) ([\d.]+) \n"
    drawn = rf'd="M {move}L {move}"[^>]*{colour}; stroke-width: 1.4'
    line = re.search(drawn, text)
    assert line is not None
    x0, y0, x1, y1 = map(float, line.groups())
    assert x0 < x1
    assert y0 > y1


def test_marks_and_names_of_rows_are_written_where_they_belong():
    """Guards against a window marked elsewhere, and against presets in the wrong row."""
    strip = dataclasses.replace(
        PANEL,
        x_scale="linear",
        y_scale="linear",
        x_ticks=(),
        y_ticks=((2.0, "upper"), (1.0, "lower")),
        marks=((300.0, "300"),),
        lines=(
            Line(
                label="run",
                x=[250.0, 350.0],
                y=[2.0, 1.0],
                low=[240.0, 340.0],
                high=[260.0, 360.0],
                interval="sideways",
                draw="markers",
            ),
        ),
    )
    text = render(strip)
    places = {}
    for word in ("upper", "lower", "300"):
        found = re.search(rf"translate\(([\d.]+) ([\d.]+)\)[^>]*>{word}</text>", text)
        if found is None:  # text that is anchored in the middle
            found = re.search(rf'x="([\d.]+)" y="([\d.]+)"[^>]*>{word}</text>', text)
        assert found is not None, word
        places[word] = tuple(map(float, found.groups()))
    assert places["upper"][1] < places["lower"][1]
    bars = re.findall(
        r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n"[^>]*stroke-width: 1.1', text
    )
    level = [bar for bar in bars if bar[1] == bar[3] and bar[0] != bar[2]]
    assert len(level) == 2
    upper, lower = sorted(level, key=lambda bar: float(bar[1]))
    assert float(upper[2]) < places["300"][0] < float(lower[0])
    upright = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*stroke-dasharray', text)
    assert [float(x) for line in upright for x in line] == pytest.approx(
        [places["300"][0]] * 2, abs=1
    )


def test_a_band_is_drawn_where_there_is_an_interval():
    """Guards against an interval that is kept and never seen."""
    band = Line(
        label="run", x=[1.0, 2.0], y=[5.0, 6.0], low=[4.0, 5.0], high=[6.0, 7.0], interval="band"
    )
    quiet = dataclasses.replace(PANEL, x_scale="linear", y_scale="linear", x_ticks=())
    with_band = render(dataclasses.replace(quiet, lines=(band,)))
    without = render(dataclasses.replace(quiet, lines=(dataclasses.replace(band, low=()),)))
    assert "opacity: 0.15" in with_band
    assert "opacity: 0.15" not in without


def test_enough_distinct_looks():
    """Guards against two runs drawn alike: colour and marker repeat at different periods."""
    looks = {(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(40)}
    assert len(looks) == 40


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1000, "1,000"),
        (0.5, "0.5"),
        (1e7, "10⁷"),
        (-1e10, "\N{MINUS SIGN}10¹⁰"),
        (-2, "\N{MINUS SIGN}2"),
        (0, "0"),
    ],
)
def test_ticks_read_as_numbers(value, text):
    assert tick(value) == text


def comparison(**values) -> dict:
    return {
        "number": 2.0,
        "low": 1.0,
        "high": 3.0,
        "region_low": 1.5,
        "region_high": None,
        "unit": "nll",
        "needs": "at least 1.5",
        "standing": "undecided",
        **values,
    }


def test_a_strip_shows_the_interval_where_the_region_is():
    """Guards against a strip that shows another verdict than the words beside it."""
    root = ET.fromstring(strips([comparison()])[0])
    region = root.find("rect")
    line = root.find("line[@class='interval']")
    left, width = float(region.get("x")), float(region.get("width"))
    assert left + width == pytest.approx(WIDTH)
    assert float(line.get("x1")) < left < float(line.get("x2"))
    assert float(line.get("x1")) < float(root.find("circle").get("cx")) < float(line.get("x2"))


def test_strips_of_a_claim_share_their_scale():
    """Guards against steps of very different size drawn alike."""
    first, second = (
        ET.fromstring(text) for text in strips([comparison(), comparison(high=30.0, number=20.0)])
    )
    assert first.find("rect").get("x") == second.find("rect").get("x")
    assert float(first.find("circle").get("cx")) < float(second.find("circle").get("cx"))


def test_an_interval_without_an_end_runs_to_the_edge():
    """Guards against an unbounded ratio drawn as a finite one, or a division by zero."""
    root = ET.fromstring(strips([comparison(number=None, high=None)])[0])
    assert float(root.find("line[@class='interval']").get("x2")) == WIDTH
    assert root.find("circle") is None
    assert strips([comparison(number=0.0, low=0.0, high=0.0, region_low=0.0)])
