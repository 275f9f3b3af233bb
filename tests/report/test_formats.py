"""json, junit, markdown and github byte for byte, from a record in tests/golden; `TOC_UPDATE_GOLDEN=1` rewrites them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest

from report.run_records import build_record
from toc_cli.report import Report, Run, assemble, github, html, junit, machine, markdown, read_run, schema
from toc_cli.report.checks import parse

GOLDEN = Path(__file__).parent.parent / "golden"
RECORD = GOLDEN / "model.toc.json"
UPDATE = os.environ.get("TOC_UPDATE_GOLDEN") == "1"


@pytest.fixture(scope="module")
def report() -> Report:
    """One codebook, two modalities; one check that holds, one that fails, one soft one, one against the baseline."""
    if UPDATE:
        GOLDEN.mkdir(exist_ok=True)
        built = build_record(codes=24, dim=12, rows=400)
        RECORD.write_text(json.dumps(built, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    run = read_run(RECORD)
    old = copy.deepcopy(run.record)
    old["codebooks"][0]["after"]["distortion"] *= 0.9
    checks = [
        parse("token_agreement>=0.9999"),
        parse("audio.snr_db > -100"),
        parse("stability>=99.9%", "warn"),
        parse("distortion <= baseline * 1.05"),
    ]
    return replace(assemble([run], checks, Run("old.toc.json", old)), version="0.1.0")


@pytest.mark.parametrize(
    ("name", "render"),
    [
        ("report.json", machine.render),
        ("report.junit.xml", junit.render),
        ("report.md", markdown.render),
        ("report.github.txt", github.render),
    ],
)
def test_bytes(report: Report, name: str, render: Callable[[Report], str]) -> None:
    text = render(report)
    if UPDATE:
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text.encode() == (GOLDEN / name).read_bytes()


def test_json_validates(report: Report) -> None:
    schema.validate(json.loads(machine.render(report)), "report")


def test_junit_counts_what_it_holds(report: Report) -> None:
    root = xml.fromstring(junit.render(report))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("4", "2", "0")
    assert len(root.findall(".//testcase")) == 4
    failures = [failure.get("message") for failure in root.findall(".//failure")]
    assert [message.split(" is ")[0] for message in failures if message] == ["token_agreement", "distortion"]


def many(record: dict[str, Any], codebooks: int) -> Report:
    book = record["codebooks"][0]
    record["codebooks"] = [{**book, "id": index, "key": f"book.{index}"} for index in range(codebooks)]
    return assemble([Run("many.toc.json", record)], [parse("token_agreement>=1")])


def test_markdown_stays_under_the_step_summary_limit(record: dict[str, Any]) -> None:
    text = markdown.render(many(record, 600))
    assert len(text.encode()) <= 2**20
    assert "Cut here" in text
    assert text.startswith("## ❌ Do not ship: 600 of 600 checks fail.")


def test_github_stops_at_ten_and_counts_the_rest(record: dict[str, Any]) -> None:
    lines = github.render(many(record, 30)).splitlines()
    assert lines.pop().startswith("::notice title=toc bounds::1 bound (1 from the command line), applied 30 times")
    assert len(lines) == 10
    assert all(line.startswith("::error title=toc ") for line in lines)
    assert lines[-1].startswith("::error title=toc more::")
    total = 30 + len(assemble([Run("many.toc.json", record)]).runs[0].alarms)
    assert f"::{total - 9} more findings" in lines[-1]


def test_html_is_one_small_file_without_an_address(report: Report) -> None:
    page = html.render(report)
    assert len(page.encode()) < 1_000_000
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert page == html.render(report), "the same page twice"


def test_many_codebooks_keep_their_tables_and_the_page_small(record: dict[str, Any]) -> None:
    page = html.render(many(record, 24))
    assert len(page.encode()) < 1_000_000
    assert page.count("<h2>Codebook ") == 24
    assert page.count("<h3>The codebook in pictures</h3>") == 3


def test_levels_and_modalities_are_small_multiples(deep_record: dict[str, Any]) -> None:
    page = html.render(assemble([Run("deep.toc.json", deep_record)]))
    for heading in ("Usage by level", "Spectrum by level", "Levels", "Modalities", "Across modalities"):
        assert f"<h3>{heading}</h3>" in page
    for name in ("audio · video", "audio · text", "video · text"):
        assert name in page


def test_two_runs_stand_side_by_side(record: dict[str, Any], deep_record: dict[str, Any]) -> None:
    report = assemble([Run("a.toc.json", record), Run("b.toc.json", deep_record)])
    for text in (html.render(report), markdown.render(report)):
        assert "a.toc.json" in text
        assert "b.toc.json" in text
