"""The report in a real browser, from disk."""

import json

import pytest

pytestmark = pytest.mark.browser
PAGES = ("index.html", "pi.html")
WIDTHS = (400, 800, 1400)


def visit(chromium, report, page: str, width: int) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    chromium.get((report / page).as_uri())


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(chromium, report, page, width):
    """Guards against a table or figure wider than a phone, with all details open."""
    visit(chromium, report, page, width)
    chromium.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide = chromium.execute_script(
        "return [...document.querySelectorAll('body *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 0.5)"
        ".filter(e => !e.closest('.scroll > *') && !e.closest('svg > *') && !e.closest('.skip'))"
        ".map(e => e.outerHTML.slice(0, 120))"
    )
    assert wide == []
    room = chromium.execute_script(
        "const e = document.documentElement; return e.clientWidth - e.scrollWidth"
    )
    assert room >= 0


@pytest.mark.parametrize("page", PAGES)
def test_no_error_and_no_request_beyond_the_file(chromium, report, page):
    """Guards against a page that works only with a network or logs errors."""
    chromium.get_log("browser")
    chromium.get_log("performance")
    visit(chromium, report, page, 1400)
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    requested = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert (report / page).as_uri() in requested
    beyond = [u for u in requested if not u.startswith(("file:", "data:"))]
    assert beyond == []


def test_figures_are_drawn_and_text_is_readable_on_a_phone(chromium, report):
    """Guards against figures of no height, and labels shrunk below 7 px."""
    visit(chromium, report, "pi.html", 400)
    sizes = chromium.execute_script(
        "return [...document.querySelectorAll('.panel svg')].map(s => {"
        " const b = s.getBoundingClientRect();"
        " const t = Math.min(...[...s.querySelectorAll('text')]"
        "   .map(e => e.getBoundingClientRect().height));"
        " return [b.width, b.height, t]; })"
    )
    assert len(sizes) >= 6
    for width, height, text in sizes:
        assert width > 300
        assert height > 150
        assert text > 7


def test_a_claim_can_be_linked_to(chromium, report):
    """Guards against anchors that a browser does not find."""
    chromium.get((report / "pi.html").as_uri() + "#claim-theory")
    found = chromium.execute_script(
        "const e = document.querySelector(':target'); return [e.id, e.getBoundingClientRect().top]"
    )
    assert found[0] == "claim-theory"
    assert 0 <= found[1] < 900


def test_evidence_is_printed_although_folded_on_screen(chromium, report):
    """Guards against a printed page that hides what folds on screen."""
    visit(chromium, report, "pi.html", 800)
    seen = "return document.querySelector('.claim details table').checkVisibility()"
    assert not chromium.execute_script(seen)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert chromium.execute_script(seen)
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
