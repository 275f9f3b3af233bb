"""What `toc evaluate` found, as tables that every format shows alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toc_cli.report.metrics import Unit
from toc_cli.report.tables import Cell
from toc_cli.report.words import NONE, interval, number, plural
from toc_cli.report.words import name as shown

FULL = "full"
COLUMNS = 4
"""Figures beside each other in a terminal."""
RANKS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "median rank", "map": "mAP"}
METRICS = {"accuracy": "Accuracy", "f1": "Macro F1 of seconds"}
FORMS = (
    "slice: codes chosen by all dimensions, the kept ones read; subspace: codes chosen by the kept dimensions alone; "
    "random and worst: other selections of the same size."
)


@dataclass(frozen=True)
class Line:
    """One row: its name, its cells, and better or worse where the interval of its difference leaves out zero."""

    label: str
    cells: tuple[Cell, ...]
    good: str = ""


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    text: str
    head: tuple[str, ...]
    rows: tuple[Line, ...]


def sheets(record: Mapping[str, Any]) -> list[Sheet]:
    """The tables of a record's evaluation; none where it has no evaluation."""
    found = record.get("evaluation")
    if not found:
        return []
    ids = [variant["id"] for variant in found["variants"]]
    parts = [("Classification", "classification"), ("Localisation", "localisation"), ("Transfer", "transfer")]
    tables = [sheet for title, part in parts for sheet in _probed(title, found[part], ids)]
    return [*tables, *_retrieved(found["retrieval"], ids), *_generated(found["generation"], ids)]


def headline(record: Mapping[str, Any]) -> str:
    """One line: what was evaluated on what."""
    found = record["evaluation"]
    source, modalities = found["source"], ", ".join(shown(name, 40) for name in found["modalities"])
    about = f"{shown(source['name'])} on {shown(found['data'])} ({modalities})"
    if source["kind"] == "codebook":
        return f"Codebook of {about}"
    return f"{about}: {shown(source['profile'])} profile, {shown(source['alignment'])} alignment"


def _probed(title: str, rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Iterator[Sheet]:
    """A table per task and test split: a column per pair of modalities, their mean, and its difference to all."""
    places = dict.fromkeys((row["task"], row["train"], row["test"]) for row in rows)
    for task, train, test in places:
        own = [row for row in rows if (row["task"], row["train"], row["test"]) == (task, train, test)]
        pairs = [row for row in own if row["from"] is not None and (row["from"] != row["to"] or len(own) == 1)]
        means = [row for row in own if row["from"] is None]
        last = [*means, *pairs, *own][0]
        columns = [*pairs, *means]
        head = ("", *(pair(row) for row in columns), "difference to all")
        lines = []
        for id in ids:
            cells = [_cell(row["results"].get(id), "share") for row in columns]
            result = last["results"].get(id) or {}
            lines.append(Line(_variant(id), (*cells, _difference(result, "points")), _good(result)))
        known = [row["chance"] for row in pairs if row["chance"] is not None]
        guess = f" The most frequent class alone: {number(max(known), 'share')}." if known else ""
        text = (
            f"{METRICS[last['metric']]}; probes trained on {shown(train)}, tested on {last['clips']:,} clips of "
            f"{shown(test)}; mean over {plural(len(last['results'][FULL]['seeds']), 'seed')}.{guess}"
        )
        for row in means:
            if len(row.get("pairs", ())) > 2:
                text += f" {pair(row).capitalize()}: {', '.join(_arrow(*one) for one in row['pairs'])}."
        yield Sheet(f"{title}: {shown(task)}", text, head, tuple(lines))


def _retrieved(rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Iterator[Sheet]:
    """Per split every measure with all dimensions, then mAP by codes under every selection."""
    for split in dict.fromkeys(row["split"] for row in rows):
        own = [row for row in rows if row["split"] == split]
        relevance = own[0]["relevance"]
        right = "the same clip" if relevance == "clip" else f"every clip with the same {shown(relevance)}"
        text = f"{own[0]['clips']:,} clips of {shown(split)}; right is {right}; ties count at their middle rank."
        lines = [
            Line(
                f"{pair(row)}, {row['vectors']}",
                tuple(_cell(row["results"][FULL][key], _unit(key)) for key in RANKS),
            )
            for row in own
        ]
        yield Sheet(f"Retrieval: {shown(split)}", text, ("all dimensions", *RANKS.values()), tuple(lines))
        codes = [row for row in own if row["vectors"] == "codes"]
        if len(ids) > 1:
            lines = []
            for id in ids:
                lines.append(Line(_variant(id), tuple(_cell(row["results"][id]["map"], "share") for row in codes)))
            head = ("mAP by codes", *(pair(row) for row in codes))
            yield Sheet(f"Retrieval after selection: {shown(split)}", text, head, tuple(lines))


def _generated(rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Iterator[Sheet]:
    for row in rows:
        tasks = list(row["tasks"])
        head = ("", "error", *(shown(task) for task in tasks))
        own = [(id, row["results"][id]) for id in ids if id in row["results"]]
        lines = []
        for id, results in [*own, *row["references"].items()]:
            cells = (_cell(results.get(name), "share") for name in ("error", *tasks))
            lines.append(Line(_variant(id), tuple(cells), _good(results.get("error") or {}, less=True)))
        text = (
            f"Decoded from {row['vectors']} of {shown(row['from'])} with the mean specific part, {row['clips']:,} clips of "
            f"{shown(row['split'])}. Error: share of what naming the mean second costs. Tasks: what probes of real clips "
            "say of the generated ones."
        )
        yield Sheet(f"Generation: {pair(row)}", text, head, tuple(lines))


def pair(row: Mapping[str, Any]) -> str:
    """The pair of modalities of a row, or of which ones it is the mean."""
    if row["from"] is not None:
        return _arrow(row["from"], row["to"])
    found = [tuple(one) for one in row.get("pairs", ())]
    if len(found) == 2 and found[0] == found[1][::-1]:
        return f"mean of {shown(found[0][0], 24)} ↔ {shown(found[0][1], 24)}"
    return f"mean of {len(found)} pairs" if found else "mean of the pairs"


def _arrow(a: str, b: str) -> str:
    return f"{shown(a, 24)} → {shown(b, 24)}"


def _variant(id: str) -> str:
    return "all dimensions" if id == FULL else shown(id)


def _unit(name: str) -> Unit:
    return "number" if name == "median_rank" else "share"


def _cell(result: Mapping[str, Any] | None, unit: Unit) -> Cell:
    if result is None:
        return Cell(NONE)
    return Cell(number(result["value"], unit), interval(result["ci95"], unit))


def _difference(result: Mapping[str, Any], unit: Unit) -> Cell:
    if result.get("delta") is None:
        return Cell(NONE)
    return Cell(number(result["delta"], unit), interval(result["delta_ci95"], unit))


def _good(result: Mapping[str, Any], less: bool = False) -> str:
    """better or worse, where the interval of the difference leaves out zero; `less`: smaller is better."""
    bounds = result.get("delta_ci95")
    if not bounds or bounds[0] <= 0 <= bounds[1]:
        return ""
    return "better" if (bounds[0] > 0) != less else "worse"


MOST_VARIANTS = 14
MOST_TASKS = 4


def summary(record: Mapping[str, Any]) -> list[RenderableType]:
    """At most 25 lines of a terminal: per selection the mean over pairs of every task, beside chance; `toc report` has the rest."""
    found = record["evaluation"]
    columns = _means(found)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for title, _ in columns:
        table.add_column(Text(title), justify="right", max_width=18)
    chances = [row.get("chance") for _, row in columns]
    ids = [variant["id"] for variant in found["variants"]]
    for id in ids[:MOST_VARIANTS]:
        cells = []
        for _, row in columns:
            result = row["results"].get(id) or {}
            cell = Text(number(result.get("value"), "share"))
            cell.stylize({"better": "green", "worse": "red"}.get(_good(result), ""))
            cells.append(cell)
        table.add_row(Text(_variant(id)), *cells)
    if any(chance is not None for chance in chances):
        table.add_row(Text("chance", style="dim"), *(Text(number(chance, "share"), style="dim") for chance in chances))
    parts: list[RenderableType] = [Text(headline(record), style="bold"), Padding(table, (1, 0, 0, 0))]
    if len(ids) > MOST_VARIANTS:
        parts.append(Text(f"and {len(ids) - MOST_VARIANTS} more selections", style="dim"))
    return parts


def _means(found: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Title and row of each task's mean over pairs, with the highest chance of a pair."""
    means = []
    for part in ("classification", "localisation", "transfer"):
        for task, train, test in dict.fromkeys((row["task"], row["train"], row["test"]) for row in found[part]):
            own = [row for row in found[part] if (row["task"], row["train"], row["test"]) == (task, train, test)]
            last = next((row for row in own if row["from"] is None), own[0])
            known = [row["chance"] for row in own if row["from"] is not None and row["chance"] is not None]
            title = f"{shown(task, 20)}, {shown(test, 16)}" + (" (transfer)" if part == "transfer" else "")
            means.append((f"{title}: {pair(last)}", {**last, "chance": max(known, default=None)}))
    return means[:MOST_TASKS]


def render(record: Mapping[str, Any]) -> list[RenderableType]:
    """The evaluation in a terminal."""
    found = sheets(record)
    if not found:
        return []
    parts: list[RenderableType] = [Text(headline(record), style="bold"), Text(FORMS, style="dim")]
    for sheet in found:
        parts += [Text(f"\n{sheet.title}", style="bold"), Text(sheet.text, style="dim")]
        parts += [Padding(_table(sheet, start), (0, 0, 1, 0)) for start in range(1, len(sheet.head), COLUMNS)]
    return parts


def _table(sheet: Sheet, start: int) -> Table:
    """The columns of a sheet from `start` on, as many as a terminal has room for."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate([sheet.head[0], *sheet.head[start : start + COLUMNS]]):
        table.add_column(Text(column), justify="right" if index else "left", overflow="fold")
    for line in sheet.rows:
        cells = [Text(cell.text) + Text(f"\n{cell.spread}" if cell.spread else "", style="dim") for cell in line.cells]
        if line.good:
            cells[-1].stylize({"better": "green", "worse": "red"}[line.good])
        table.add_row(Text(line.label), *cells[start - 1 : start - 1 + COLUMNS])
    return table
