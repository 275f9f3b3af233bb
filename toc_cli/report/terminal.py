"""The report in a terminal: verdict, checks, warnings, one table per codebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toc_cli.report import counted, evaluation, outcome, tables
from toc_cli.report.assembly import Report, Subject
from toc_cli.report.checks import Outcome
from toc_cli.report.tables import Row
from toc_cli.report.words import name as shown

STYLE = {"pass": "bold green", "warn": "bold yellow", "fail": "bold red"}
SIGN = {"passed": Text("✓", style="green"), "failed": Text("✗", style="red"), "skipped": Text("–", style="dim")}


def render(report: Report) -> Group:
    """Names out of files are plain text here: no markup is parsed, control characters are shown escaped."""
    parts: list[RenderableType] = [Text(report.headline, style=STYLE[report.tone])]
    advice = "" if report.status == "open" else report.advice.text
    if said := f"{advice} {report.advice.then}".strip():
        parts.append(Text(said.replace("`", "")))
    parts += [Text(line, style="dim") for line in report.provenance]
    if report.outcomes:
        parts.append(Padding(_checks(report.outcomes), (1, 0, 0, 0)))
    for run in report.runs:
        parts.append(Text(f"\n{shown(run.run.name)}", style="bold"))
        for subject in run.subjects:
            parts += _subject(subject)
        parts += outcome.render(run.run.record)
        parts += counted.render(run.run.record)
        parts += evaluation.render(run.run.record)
        for alarm in run.alarms:
            said = f"{run.where(alarm, named=False)}: {shown(alarm.text, 1000)}"
            parts.append(Text("! ", style="yellow") + Text(said, style="not bold default"))
    return Group(*parts)


def _checks(outcomes: Sequence[Outcome]) -> Group:
    """The checks of each codebook below its record and name, those with a failure first."""
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(one.where, []).append(one)
    parts: list[RenderableType] = []
    for where, own in sorted(groups.items(), key=lambda group: all(o.status != "failed" for o in group[1])):
        table = Table.grid(padding=(0, 1))
        for one in sorted(own, key=lambda one: one.status != "failed"):
            level = "warn" if one.check.level == "warn" else ""
            table.add_row(SIGN[one.status], Text(one.sentence()), Text(level, style="dim"))
        parts += [Text(where, style="dim"), table]
    return Group(*parts)


def _subject(subject: Subject) -> list[RenderableType]:
    book = subject.codebook
    about = f"codebook {book['id']} {shown(book['key'])} ({shown(book['family'], 40)}): {subject.summary}"
    parts: list[RenderableType] = [Text(about), Text()]
    parts.append(Fitted(QUALITY, tables.quality(subject)))
    parts.append(Fitted(STATE, tables.state(subject)))
    if rows := tables.compared(subject):
        parts.append(Fitted(COMPARED, rows))
    return parts


QUALITY = ("before", "after", "95% interval", "random", "pca", "variance", "random range")
STATE = ("before", "after", "change", "95% interval")
COMPARED = ("baseline", "this run", "change")
"""The columns of each table, the dearest first: in a narrow terminal the last ones are left out."""
GAP = 2
LEAST = 3
"""Columns that are drawn however narrow the terminal is."""


class Fitted:
    """A table of one line per metric: columns that do not fit into the terminal whole are left to the other formats."""

    def __init__(self, head: Sequence[str], rows: Sequence[Row]) -> None:
        self.head, self.rows = head, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        columns = self._fitting(options.max_width)
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
        table.add_column("", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            cells = [_cell(row, name, self.head) for name in columns]
            if row.good:
                cells[columns.index("change")].stylize({"better": "green", "worse": "red"}[row.good])
            table.add_row(Text(row.metric.label), *cells)
        yield Padding(table, (0, 0, 1, 0))

    def _fitting(self, room: int) -> list[str]:
        """The first columns that fit side by side, none of them cut."""
        left = room - max((len(row.metric.label) for row in self.rows), default=0) - GAP
        found: list[str] = []
        for name in self.head:
            wide = max(len(name), *(_cell(row, name, self.head).cell_len for row in self.rows)) if self.rows else 0
            left -= wide + GAP
            if left < 0 and len(found) >= LEAST:
                break
            found.append(name)
        return found


def _cell(row: Row, column: str, head: Sequence[str]) -> Text:
    """A row's text under a column; intervals and ranges have their own."""
    of = {"95% interval": "after", "random range": "random"}.get(column)
    if of is not None:
        return Text(row.cells[_place(of, head)].spread, style="dim")
    return Text(row.cells[_place(column, head)].text)


def _place(column: str, head: Sequence[str]) -> int:
    """Where a row holds a column's cell: rows hold before, after, random, variance, pca, whatever order they are shown in."""
    return (tables.COLUMNS if head is QUALITY else head).index(column)
