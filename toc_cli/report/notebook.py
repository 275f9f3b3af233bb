"""The verdict and the figures of a report as a fragment of HTML for a notebook cell: no script, no style sheet of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from toc_cli.report import tables
from toc_cli.report.assembly import Report
from toc_cli.report.words import name as shown

COLOURS = {"pass": "#17743f", "warn": "#8f5b00", "fail": "#b3261e"}


def render(report: Report) -> str:
    """A heading, what to do next, and a table per codebook."""
    parts = [f'<p style="font-weight:600;color:{COLOURS[report.tone]}">{_text(report.headline)}</p>']
    if report.advice.then:
        spoken = report.advice.then.split("`")
        parts.append(
            "<p>" + "".join(f"<code>{_text(s)}</code>" if at % 2 else _text(s) for at, s in enumerate(spoken)) + "</p>"
        )
    for run in report.runs:
        for subject in run.subjects:
            parts.append(
                f"<p>codebook {subject.codebook['id']} <code>{_text(subject.codebook['key'])}</code>: {_text(subject.summary)}</p>"
            )
            rows = [(row.metric.label, *map(str, row.cells)) for row in tables.quality(subject)]
            parts.append(_table(("", *tables.COLUMNS), rows))
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return escape(shown(text, 2000))
