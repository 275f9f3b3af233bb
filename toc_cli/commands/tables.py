"""The tables that commands print; a name out of a file is shown as plain text, never as markup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from toc_cli.io.names import printable

if TYPE_CHECKING:
    from toc_cli.pipeline import Plan


def name(text: str, limit: int = 80) -> Text:
    """A name out of a file: control characters escaped, no markup, shortened."""
    return Text(printable(text, limit=limit))


def inspect_tables(found: dict[str, Any]) -> list[Table]:
    """One table of the codebooks, and for each what stands around it."""
    head = f"{printable(found['path'], limit=80)} · {found['container']} · {found['tensors']} tensors"
    table = Table(title=Text(head), title_justify="left", header_style="bold", box=None, pad_edge=False)
    numbers = any("effective_rank" in book for book in found["codebooks"])
    for column in ("id", "codebook", "family", "L", "H", "K", "D", "dtype", "metric"):
        table.add_column(column, justify="right" if column in "LHKD" else "left", overflow="fold")
    if numbers:
        table.add_column("eff. rank", justify="right")
        table.add_column("mean cosine", justify="right")
    for book in found["codebooks"]:
        cells = [
            Text(str(book["id"])), name(book["key"]), name(book["family"]), str(book["levels"]), str(book["heads"]),
            " ".join(map(str, sorted(set(book["num_codes"])))), str(book["dim"]), book["dtype"], book["metric"],
        ]  # fmt: skip
        if numbers:
            cells += [_number(book["effective_rank"]), _number(book["mean_cosine"])]
        table.add_row(*cells)
    return [table, *(_around(book) for book in found["codebooks"])]


def _around(book: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("", "")
    table.add_row(Text(f"[{book['id']}] emit", style="bold"), _modes(book["emit"]))
    if book["projection"]:
        table.add_row(
            "projection", Text(f"features of width {book['projection']['width']} -> {book['heads'] * book['dim']}")
        )
    for title, keys in (("EMA twins", book["ema_twins"]), ("neighbours", book["neighbours"])):
        if keys:
            table.add_row(title, name(", ".join(keys), limit=400))
    return table


def _modes(emit: dict[str, str]) -> Text:
    text = Text()
    for mode, reason in emit.items():
        if reason:
            text.append(f"✗ {mode}", style="red").append(f": {printable(reason, limit=300)}\n", style="dim")
        else:
            text.append(f"✓ {mode}\n", style="green")
    text.rstrip()
    return text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def plan_parts(plan: Plan, dry_run: bool) -> list[RenderableType]:
    """The verdict and tables of a run, then what was written (or, for a dry run, what would be)."""
    from toc_cli.report.assemble import assemble
    from toc_cli.report.reading import Run
    from toc_cli.report.terminal import render

    assert plan.outputs is not None
    parts: list[RenderableType] = [render(assemble([Run(plan.outputs.record.name, plan.record)]))]
    written = Table.grid(padding=(0, 2))
    if dry_run:
        for mode in ("codebook", *plan.outputs.checkpoints):
            written.add_row("would write", name(str(plan.outputs.of(mode))), f"{plan.size(mode):,} bytes")
    for entry in plan.record["outputs"]:
        written.add_row("wrote", name(str(plan.outputs.stem.parent / entry["name"])), f"{entry['bytes']:,} bytes")
    return [*parts, written]


def tokens_table(done: dict[str, Any]) -> Table:
    """What `toc quantize` wrote, per modality."""
    table = Table(
        title=Text(f"{printable(done['output'])}"), title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    for column in ("dataset", "shape", "dtype", "rows", "codes used", "perplexity"):
        table.add_column(column, justify="left" if column in ("dataset", "shape", "dtype") else "right")
    for row in done["datasets"]:
        used = f"{row['used_codes']:,} of {row['codes']:,}"
        shape = "x".join(map(str, row["shape"]))
        table.add_row(name(row["name"]), shape, row["dtype"], f"{row['rows']:,}", used, f"{row['perplexity']:.1f}")
    return table


def bench_tables(found: dict[str, Any]) -> list[Table]:
    """One table: a row per measured shape, a column per figure; seconds and bytes in readable units."""
    table = Table(title=Text(f"toc bench {found['bench']}"), title_justify="left", header_style="bold", box=None, pad_edge=False)
    columns = list(dict.fromkeys(field for row in found["rows"] for field in row))
    for column in columns:
        table.add_column(Text(column.replace("_", " ")), justify="right")
    for row in found["rows"]:
        table.add_row(*(Text(_measured(column, row.get(column))) for column in columns))
    return [table]


def _measured(column: str, value: Any) -> str:
    if value is None:
        return "–"
    if column.endswith("seconds"):
        return f"{value * 1e3:,.3g} ms" if value < 1 else f"{value:,.3g} s"
    if column.endswith("bytes"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)
