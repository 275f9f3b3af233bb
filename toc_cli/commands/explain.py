"""`toc explain`: what a metric, warning, verdict or criterion means, when to worry, and the check to write."""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from toc_cli.commands import flags
from toc_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from toc_cli.report.glossary import Entry

EXAMPLE = "toc explain excess_distortion"
NEEDS = {
    "codes": "the codes alone",
    "usage": "the codes and how often features choose them",
    "features": "the features themselves",
    "pairs": "paired features of two or more modalities",
}


def explain(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A metric, warning, verdict or criterion; all where left out."),
    ] = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Say what a metric, warning, verdict or criterion means: unit, direction, when to worry, the check to write."""
    from toc_cli.commands.output import Output

    known = _known()
    sink = Output(as_json, quiet)
    if name is None:
        sink.result([asdict(entry) for entry in known], *_list(known))
        return
    wanted = name.strip().lower().replace("-", "_")
    found = [entry for entry in known if entry.name.replace("-", "_") == wanted.rpartition(".")[2]]
    if not found:
        near = get_close_matches(wanted, [entry.name.replace("-", "_") for entry in known], n=3, cutoff=0.5)
        raise UsageError(
            f"There is nothing called {name!r}.", f"Close: {', '.join(near)}." if near else "toc explain lists all."
        )
    sink.result([asdict(entry) for entry in found], *_page(found))


def _known() -> list[Entry]:
    from toc_cli.ops.criterion import CRITERIA
    from toc_cli.report.glossary import Entry, entries

    criteria = [
        Entry(
            name,
            "criterion",
            f"{row.help[0].upper()}{row.help[1:].rstrip('.')}.",
            worry=f"It reads {NEEDS[row.need]}. toc optimize CHECKPOINT --features F --criterion {name}",
        )
        for name, row in CRITERIA.items()
    ]
    return [*entries(), *criteria]


def _list(known: list[Entry]) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for kind, title in (
        ("metric", "Metrics"),
        ("warning", "Warnings"),
        ("criterion", "Criteria"),
        ("verdict", "Verdicts"),
    ):
        table = Table(
            box=None, pad_edge=False, show_header=False, title=Text(title, style="bold"), title_justify="left"
        )
        table.add_column(no_wrap=True)
        table.add_column(style="dim")
        for entry in (entry for entry in known if entry.kind == kind):
            table.add_row(Text(entry.name), Text(entry.label or entry.definition.split(". ")[0].rstrip(".")))
        parts += [table, Text()]
    return [*parts, Text("toc explain NAME says more of each.", style="dim")]


def _page(found: list[Entry]) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for entry in found:
        parts.append(Text(entry.name, style="bold").append(f"  {entry.kind}", style="not bold dim"))
        parts.append(Text(entry.definition))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        for label, value in (
            ("unit", entry.unit),
            ("direction", entry.direction),
            ("worry" if entry.kind == "metric" else "use", entry.worry),
            ("check", f"toc report --check '{entry.check}'" if entry.check else ""),
        ):
            if value:
                table.add_row(label, Text(value))
        parts += [table, Text()]
    return parts[:-1]
