"""What `toc quantize --record` counted of tokens, as tables that every format shows alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toc_cli.report.counts import datasets, id_counts, place, use
from toc_cli.report.evaluation import Line, Sheet
from toc_cli.report.metrics import METRICS
from toc_cli.report.tables import Cell
from toc_cli.report.words import name as shown
from toc_cli.report.words import number

USE = ("used_codes", "dead_codes", "perplexity", "entropy_bits", "entropy")
IDS = ("distinct_ids", "largest_id", "rows_alone", "collision_rate")


def sheets(record: Mapping[str, Any]) -> Iterator[Sheet]:
    """Per dataset the use of each table, and the ids that its tokens make."""
    for dataset in datasets(record):
        title = f"Tokens of {shown(dataset['name'])}"
        rows = tuple(
            Line(place(dataset, table).replace(".", ", ") or "all", _cells(use(table), USE))
            for table in dataset["tables"]
        )
        yield Sheet(title, f"{dataset['rows']:,} rows, a table per level and head.", _head(USE), rows)
        if dataset["tuples"]:
            rows = tuple(Line(f"first {ids['length']}", _cells(id_counts(ids), IDS)) for ids in dataset["tuples"])
            yield Sheet(f"{title}, as ids", "Rows that share their first tokens collide.", _head(IDS), rows)


def _head(names: Sequence[str]) -> tuple[str, ...]:
    return ("", *(METRICS[name].label for name in names))


def _cells(own: Mapping[str, float | None], names: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(Cell(number(own[name], METRICS[name].unit)) for name in names)


def render(record: Mapping[str, Any]) -> list[RenderableType]:
    """The tables in a terminal."""
    parts: list[RenderableType] = []
    for sheet in sheets(record):
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for index, column in enumerate(sheet.head):
            table.add_column(Text(column), justify="right" if index else "left", overflow="fold")
        for line in sheet.rows:
            table.add_row(Text(line.label), *(Text(cell.text) for cell in line.cells))
        parts += [Text(f"{sheet.title}: {sheet.text}", style="dim"), Padding(table, (0, 0, 1, 0))]
    return parts
