"""Tables of the terminal at any width: a number is shown whole, or its column is left out."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from report.run_records import build_record
from toc_cli.report import Run, assemble, tables, terminal
from toc_cli.report.assembly import Report


@pytest.fixture(scope="module")
def report() -> Report:
    record = build_record()
    for book in record["codebooks"]:
        book["after"]["excess_distortion"] = 1234.5678
        book["ci95"]["after"]["excess_distortion"] = [1100.25, 1374.625]
    return assemble([Run("run.toc.json", record)])


@pytest.mark.parametrize("width", [70, 80, 90, 100, 110, 120, 160])
def test_no_number_is_cut(width: int, report: Report) -> None:
    (run,) = report.runs
    told = io.StringIO()
    console = Console(file=told, width=width)
    for subject in run.subjects:
        console.print(terminal.Fitted(terminal.QUALITY, tables.quality(subject)))
        console.print(terminal.Fitted(terminal.STATE, tables.state(subject)))
    assert "…" not in told.getvalue()
    assert all(len(line) <= width for line in told.getvalue().splitlines())
    assert all(name in told.getvalue() for name in ("before", "after", "95% interval", "change"))
    assert "random range" in told.getvalue() or width < 160
