"""Names that try to be markup, markdown, ANSI, XML or a workflow command come out as plain text everywhere."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
from rich.console import Console

from report.browser import Browser, chromium
from report.run_records import build_record
from toc_cli.report import Report, Run, assemble, github, html, junit, machine, markdown, terminal
from toc_cli.report.checks import parse

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"
NAMES = {
    "script": SCRIPT,
    "quote": '"\' onload=alert(1) id="x" --><svg/onload=alert(3)>',
    "markup": "[red]bold[/red] [link=http://evil]x[/link]",
    "ansi": "\x1b[31mred\x1b]0;title\x07\x00\r",
    "workflow": "a\n::error::forged\r\n::stop-commands::x",
    "markdown": "| `x` | **b** ](http://evil) <!-- @everyone #1 \n# head\n```",
    "math": r"$\frac{1}{0}$ {{ 7*7 }} {% raw %} &lt;b&gt; ]]>",
    "bidi": "abc\u202edcb\u2066\ufeff",
    "long": "x" * 10_000,
}


@pytest.fixture(scope="module", params=NAMES)
def report(request: pytest.FixtureRequest) -> Report:
    name = NAMES[request.param]
    record = build_record(codes=16, dim=8, rows=120, levels=2, modalities=(name, "video"), key=name, criterion="toc")
    book = record["codebooks"][0]
    book |= {"family": name, "dtype": name, "keys": [[name], [name]]}
    book["sweep"]["criteria"][name] = book["sweep"]["criteria"]["toc"]
    book["stability"] |= {"jaccard_mean": 0.1, "over": name}
    direction = {f"{name}->video": {"accuracy": 0.5, "ci95": [0.4, 0.6], "test_rows": 9}}
    book["probe"] = {"labels": name, "before": direction, "after": direction}
    record["options"] |= {"criterion": name, name: name, "modalities": [name]}
    record["inputs"][0] |= {"role": name, "name": name, "sha256": name}
    record["outputs"][0] |= {"mode": name, "name": name, "sha256": name}
    record["tool"] = {"name": name, "version": name}
    record["warnings"] = [{"id": name, "codebook": 0, "text": name}]
    runs = [Run(name, json.loads(json.dumps(record)))]
    checks = [parse(f"{name}.snr_db>1e9"), parse("token_agreement>0")] if "\n" not in name else [parse("snr_db>1e9")]
    return assemble(runs, checks, Run(name, runs[0].record))


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return html.render(report)


class Elements(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {value or "" for name, value in attrs if name in ("href", "src", "action")}


TAGS = """html head meta title style body div b span main section header h1 h2 h3 h4 p details summary code ul li a nav
table thead tbody tr th td figure figcaption i svg defs g path use image text clippath rect dl dt dd footer"""


def test_html(page: str) -> None:
    found = Elements()
    found.feed(page)
    assert found.tags <= set(TAGS.split())
    assert not [name for name in found.attributes if name.startswith("on")]
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in found.addresses)
    assert len(page) < 1_000_000


def test_markdown(report: Report) -> None:
    text = markdown.render(report)
    assert len(text) < 100_000
    assert set(re.findall(r"</?([a-zA-Z!]\w*)", text)) <= {"code", "details", "summary"}
    assert not re.search(r"\]\(|@everyone|```|\x1b|\*\*b\*\*|\u202e", text)
    widths = [len(re.findall(r"\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(widths) <= {3, 4, 5, 6, 7}, "no name adds a column"


def test_junit_is_xml_without_control_characters(report: Report) -> None:
    text = junit.render(report)
    xml.fromstring(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    assert len(text) < 50_000


def test_github_has_one_command_per_line(report: Report) -> None:
    lines = github.render(report).splitlines()
    assert all(re.match(r"::(error|warning|notice) title=toc [^:,]*::", line) for line in lines)
    assert "\x1b" not in "".join(lines)
    assert all(len(line) < 2000 for line in lines)


@pytest.mark.parametrize("width", [60, 200])
def test_terminal(report: Report, width: int) -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=False, width=width).print(terminal.render(report))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", out.getvalue())
    assert len(out.getvalue()) < 60_000
    assert "[red]bold[/red]" in out.getvalue().replace("\n", "") or "[red]" not in report.runs[0].run.name


def test_json_keeps_the_name_whole_and_ascii(report: Report) -> None:
    text = machine.render(report)
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text)["runs"][0]["name"] == report.runs[0].run.name


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.mark.skipif(chromium() is None, reason="no chromium here: apt-get install chromium")
def test_browser_runs_nothing(page: str, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(file, width=400, dark=False)
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    assert [url for url in browser.requests if not url.startswith("data:")] == [file.as_uri()]
    assert browser.complaints == []


def test_the_name_is_shown(report: Report, page: str) -> None:
    """The hostile name really reaches the page: its first plain letters can be read there."""
    visible = re.sub(r"<[^>]*>", " ", page)
    first = re.match(r"\W*(\w+)", report.runs[0].run.name)
    assert first is not None
    assert first[1][:50] in visible
