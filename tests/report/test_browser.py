"""The page in a real browser: quiet, offline, verdict first, every picture drawn, light and dark, phone and desk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.browser import Browser, chromium
from toc_cli.report import Run, assemble, html
from toc_cli.report.checks import parse

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium here: apt-get install chromium")

DRAWN = """[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const data = ['after', 'before', 'random', 'dropped'].map(name => `[style*="--${name})"]`).join() + ',image';
  const marks = [...svg.querySelectorAll(data)].filter(mark => {
    const size = mark.getBoundingClientRect();
    return size.width + size.height > 0;
  });
  return {width: box.width, height: box.height, marks: marks.length};
})"""
VERDICT = """(() => { const title = document.getElementById('verdict'); const box = title.getBoundingClientRect();
  return {text: title.textContent, top: box.top, bottom: box.bottom, height: innerHeight, visible: title.checkVisibility()}; })()"""
CONTRAST = """(() => { const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255; };
  return {paper: light(getComputedStyle(document.body).backgroundColor), ink: light(getComputedStyle(document.body).color),
    tick: light(getComputedStyle(document.querySelector('figure svg text')).fill)}; })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Any], deep_record: dict[str, Any]) -> Path:
    runs = [Run("one.toc.json", built), Run("deep.toc.json", deep_record)]
    report = assemble(runs, [parse("token_agreement>=0.999"), parse("snr_db>=-100")])
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.render(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_page(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(page, width=width, dark=dark)

    verdict = browser.evaluate(VERDICT)
    assert verdict["text"].startswith("Do not ship: ")
    assert verdict["visible"]
    assert 0 <= verdict["top"] < verdict["bottom"] < verdict["height"], "the verdict is on the first screen"

    pictures = browser.evaluate(DRAWN)
    assert len(pictures) > 25
    assert [p for p in pictures if p["width"] < 100 or p["height"] < 60 or p["marks"] < 1] == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"

    shade = browser.evaluate(CONTRAST)
    assert (shade["paper"] < 0.2) == dark
    for text in ("ink", "tick"):
        assert abs(shade[text] - shade["paper"]) > 0.4, f"{text} can be read"

    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.complaints == []


def test_definitions_open_without_script(browser: Browser, page: Path) -> None:
    browser.open(page, width=1400, dark=False)
    assert browser.evaluate("document.scripts.length") == 0
    browser.evaluate("document.querySelector('details.def summary').click()")
    text = browser.evaluate("document.querySelector('details.def[open] p').innerText")
    assert re.match(r"Share of features whose nearest code stays the same", text)


def test_print_is_dark_on_white_and_spells_the_definitions_out(browser: Browser, page: Path) -> None:
    browser.open(page, width=1000, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    shade = browser.evaluate(CONTRAST)
    assert shade["paper"] > 0.999
    assert shade["ink"] < 0.2
    height = browser.evaluate("document.querySelector('details.def p').getBoundingClientRect().height")
    assert height > 10
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
