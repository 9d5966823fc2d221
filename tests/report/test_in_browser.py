"""The report in a real browser: it renders, tells what is under the pointer, asks for nothing, and fits a phone."""

from __future__ import annotations

import pytest

from bytefit.report.page import write_report
from tests.browser import CHROMIUM, Browser, open_browser
from tests.report.conftest import read

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; whether the report renders is seen in a browser alone")


@pytest.fixture(scope="module")
def run(copied):
    return copied("first")


@pytest.fixture(scope="module")
def page(run, copied, tmp_path_factory) -> Browser:
    out = run / "report.html"
    write_report(run, out, [copied("second-with-a-rather-long-name")])
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        browser.open(out)
        yield browser


def point_at(page: Browser, selector: str, across: float = 0.5) -> None:
    """Move the mouse there, as a hand would."""
    find = f"document.querySelector({selector!r})"
    page.evaluate(f"{find}.scrollIntoView({{block: 'center'}})")
    box = page.evaluate(f"(({{left, top, width, height}}) => [left, top, width, height])({find}.getBoundingClientRect())")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + across * box[2], y=box[1] + box[3] / 2)


def test_it_renders_and_asks_for_nothing(page) -> None:
    assert page.evaluate("document.querySelectorAll('svg.chart').length") == 6
    strokes = page.evaluate("[...document.querySelectorAll('polyline')].map((line) => getComputedStyle(line).stroke)")
    assert len(set(strokes)) == 2
    assert page.complaints == []
    assert page.requests == []
    with pytest.raises(RuntimeError, match="TypeError"):  # nor could it: the page's own policy forbids every connection
        page.evaluate("fetch('data:text/plain,x')")
    page.complaints.clear()


def test_a_token_tells_its_probability_and_what_was_likelier(page, run) -> None:
    tokens = read(run / "details.json")["passage"]["tokens"]
    i = next(i for i, token in enumerate(tokens) if i > 20 and token["bits"] > 4)
    point_at(page, f"#passage .token:nth-child({i + 1})")
    said = page.evaluate("document.getElementById('detail').textContent")
    assert f"{tokens[i]['bits']:.2f} bits" in said
    assert page.evaluate("document.querySelector('#detail p code').textContent") == tokens[i]["label"]
    listed = page.evaluate("[...document.querySelectorAll('#detail .bars code')].map((code) => code.textContent)")
    assert listed == [label for label, _ in tokens[i]["likeliest"]]
    assert page.evaluate("document.querySelectorAll('.token.picked').length") == 1
    page.evaluate("document.querySelectorAll('#passage .token')[3].click()")  # a tap
    assert f"{tokens[3]['bits']:.2f} bits" in page.evaluate("document.getElementById('detail').textContent")
    page.evaluate("document.getElementById('passage').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert f"{tokens[4]['bits']:.2f} bits" in page.evaluate("document.getElementById('detail').textContent")
    colours = page.evaluate("[...document.querySelectorAll('#passage .token')].map((s) => getComputedStyle(s).backgroundColor)")
    assert len(set(colours)) > 20


def test_a_chart_tells_its_values(page, run) -> None:
    scores = read(run / "score.json")["sliding"]
    point_at(page, "#curves .charts:last-of-type div svg", 0.967)
    megabytes, *values = page.evaluate("[...document.querySelectorAll('.under-pointer > *')].map((part) => Number(part.textContent))")
    assert megabytes == pytest.approx(scores["bytes"] / 1e6, rel=0.01)
    assert values == pytest.approx([scores["bits_per_byte"]] * 2, rel=0.01)


@pytest.mark.parametrize("width", [390, 1280])
def test_it_never_scrolls_sideways(page, width) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("innerWidth") == width


def test_dark_is_dark(page) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours = page.evaluate("[document.body, document.querySelector('.text')].map((part) => getComputedStyle(part).backgroundColor)")
        seen[scheme] = [sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) for colour in colours]
    assert min(seen["light"]) > 600
    assert max(seen["dark"]) < 200
