"""The report in a terminal: verdict, checks, warnings, one table per codebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toc_cli.report import evaluation, tables
from toc_cli.report.assemble import Report, Subject
from toc_cli.report.checks import Outcome
from toc_cli.report.tables import Row
from toc_cli.report.words import name as shown

STYLE = {"pass": "bold green", "warn": "bold yellow", "fail": "bold red", "open": "bold"}
SIGN = {"passed": Text("✓", style="green"), "failed": Text("✗", style="red"), "skipped": Text("–", style="dim")}


def render(report: Report) -> Group:
    """Names out of files are plain text here: no markup is parsed, control characters are shown escaped."""
    parts: list[RenderableType] = [Text(report.headline, style=STYLE[report.status])]
    if report.outcomes:
        parts.append(Padding(_checks(report.outcomes), (1, 0, 0, 0)))
    for run in report.runs:
        parts.append(Text(f"\n{shown(run.run.name)}", style="bold"))
        for subject in run.subjects:
            parts += _subject(subject)
        parts += evaluation.render(run.run.record)
        for alarm in run.alarms:
            where = "" if alarm.codebook is None else f"codebook {alarm.codebook}: "
            parts.append(Text("! ", style="yellow") + Text(where + shown(alarm.text, 1000), style="not bold default"))
    return Group(*parts)


def _checks(outcomes: Sequence[Outcome]) -> Table:
    table = Table.grid(padding=(0, 1))
    for outcome in sorted(outcomes, key=lambda outcome: outcome.status != "failed"):
        where = f"codebook {outcome.codebook}" + (", warn" if outcome.check.level == "warn" else "")
        table.add_row(SIGN[outcome.status], Text(outcome.sentence()), Text(where, style="dim"))
    return table


def _subject(subject: Subject) -> list[RenderableType]:
    book = subject.codebook
    about = f"codebook {book['id']} {shown(book['key'])} ({shown(book['family'], 40)}): {subject.summary}"
    parts: list[RenderableType] = [Text(about), Text()]
    parts.append(_table(("", "before", "after", "random", "variance", "pca"), tables.quality(subject)))
    parts.append(_table(("", "before", "after", "change"), tables.state(subject)))
    if rows := tables.compared(subject):
        parts.append(_table(("", "baseline", "this run", "change"), rows))
    return parts


def _table(head: Iterable[str], rows: Iterable[Row]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(head):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        style = {"better": "green", "worse": "red"}.get(row.good, "")
        cells = [Text(cell.text) + Text(f"\n{cell.spread}" if cell.spread else "", style="dim") for cell in row.cells]
        if row.good:
            cells[-1].stylize(style)
        table.add_row(Text(row.metric.label), *cells)
    return Padding(table, (0, 0, 1, 0))
