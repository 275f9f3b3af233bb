"""Every format says how the reading of a codebook is known."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from report.run_records import build_record
from toc_cli.report import Report, Run, assemble, github, html, junit, machine, markdown, terminal


def drawn(report: Report) -> str:
    out = StringIO()
    Console(file=out, width=400).print(terminal.render(report))
    return out.getvalue()


@pytest.mark.parametrize("render", [machine.render, junit.render, markdown.render, github.render, html.render, drawn])
@pytest.mark.parametrize(
    ("evidence", "proof", "said"),
    [
        ("proven", {"x": {"rows": 9, "least": 0.9995, "shares": [[0.9995]]}}, "proven by the model"),
        ("stated", None, "stated by its config or class names"),
        ("by structure", None, "known by the structure of the file"),
        ("assumed", None, "assumed"),
    ],
)
def test_every_format_says_it(render: Callable[[Report], str], evidence: str, proof: object, said: str) -> None:
    record = build_record(codes=16, dim=8, rows=200)
    assert "its reading is" not in render(assemble([Run("m.toc.json", record)]))
    record["codebooks"][0] |= {"evidence": evidence, "proof": proof}
    assert said in render(assemble([Run("m.toc.json", record)]))
