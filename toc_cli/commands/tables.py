"""The tables that commands print; a name out of a file is shown as plain text, never as markup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toc_cli.io.names import printable

if TYPE_CHECKING:
    from toc_cli.pipeline import Plan
    from toc_cli.pipeline.capture import Captured


def name(text: str, limit: int = 80) -> Text:
    """A name out of a file: control characters escaped, no markup, shortened."""
    return Text(printable(text, limit=limit))


def inspect_tables(found: dict[str, Any]) -> list[RenderableType]:
    """A block per codebook: what it is, what stands around it, what can be written."""
    count = len(found["codebooks"])
    head = f"{printable(found['path'])} · {found['container']} · {found['tensors']:,} tensors · {count} codebook{'s' * (count != 1)}"
    return [Text(head, style="bold"), *(part for book in found["codebooks"] for part in (Text(), _block(book)))]


def _block(book: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row(f"[{book['id']}]", name(book["key"], limit=200).append(f"  {book['family']}", style="dim"))
    table.add_row("size", _size(book))
    table.add_row("lookup", f"{book['metric']}, {book['dtype']}" + (", residual" if book["residual"] else ""))
    table.add_row("reading", _evidence(book))
    if "effective_rank" in book:
        table.add_row(
            "numbers",
            f"effective rank {_number(book['effective_rank'])}, mean code cosine {_number(book['mean_cosine'])}",
        )
    if book["projection"]:
        past = "" if book["projection"]["per_level"] else f" or, past it, {book['heads'] * book['dim']}"
        table.add_row("projection", f"features of width {book['projection']['width']}{past}")
    for title, keys in (
        ("EMA twins", book["ema_twins"]),
        ("neighbours", book["neighbours"]),
        ("copies", book["copies"]),
    ):
        if keys:
            table.add_row(title, name(_listed(keys), limit=400))
    table.add_row("--emit", _modes(book["emit"]))
    return table


def _evidence(book: dict[str, Any]) -> Text:
    """How the reading is known, and what recorded tokens showed."""
    style = {"proven": "green", "assumed": "yellow"}.get(book["evidence"], "")
    text = Text(book["evidence"], style=style)
    for dataset, proof in (book.get("proof") or {}).items():
        text.append(
            f"  {proof['least']:.1%} of the recorded tokens of {printable(dataset, 60)}, {proof['rows']:,} rows",
            style="dim",
        )
    return text


def _size(book: dict[str, Any]) -> str:
    codes = " to ".join(f"{n:,}" for n in sorted({min(book["num_codes"]), max(book["num_codes"])}))
    parts = [f"{book['levels']} levels"] * (book["levels"] > 1) + [f"{book['heads']} heads"] * (book["heads"] > 1)
    return " x ".join([*parts, f"{codes} codes", f"{book['dim']} dimensions"])


def _listed(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _modes(emit: dict[str, str]) -> Text:
    text = Text()
    refused: dict[str, list[str]] = {}
    for mode, reason in emit.items():
        if reason:
            refused.setdefault(reason, []).append(mode)
        else:
            text.append(f"✓ {mode}\n", style="green")
    for reason, modes in refused.items():
        text.append(f"✗ {', '.join(modes)}", style="red").append(f": {printable(reason, limit=300)}\n", style="dim")
    text.rstrip()
    return text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def plan_parts(plan: Plan, dry_run: bool) -> list[RenderableType]:
    """The verdict and tables of a run, then what was written (or, for a dry run, what would be)."""
    from toc_cli.report.assembly import assemble
    from toc_cli.report.reading import Run
    from toc_cli.report.terminal import render

    assert plan.outputs is not None
    parts: list[RenderableType] = [render(assemble([Run(plan.outputs.record.name, plan.record)]))]
    written = Table.grid(padding=(0, 2))
    if dry_run:
        for stream in plan.record["features"]:
            written.add_row("would read", name(stream["name"]), _stream(stream))
        for mode in ("codebook", *plan.outputs.checkpoints):
            target = plan.outputs.of(mode)
            stands = ", in place of the one that stands (--force)" if target.exists() else ""
            written.add_row("would write", name(str(target)), f"{plan.size(mode):,} bytes{stands}")
        if plan.outputs.language_model is not None:
            written.add_row("would write", name(str(plan.outputs.language_model)), "the language model's copy")
    for entry in plan.record["outputs"]:
        written.add_row("wrote", name(str(plan.outputs.stem.parent / entry["name"])), f"{entry['bytes']:,} bytes")
    return [*parts, written]


def _stream(stream: dict[str, Any]) -> str:
    """What was understood of a modality: `3 parts, 40 clips, 2,560 rows of 64`."""
    parts = f"{stream['parts']:,} part{'s' * (stream['parts'] != 1)}"
    units = [] if stream["units"] is None else [f"{stream['units']:,} {printable(stream['unit'])}"]
    return ", ".join([parts, *units, f"{stream['rows']:,} rows of {stream['width']:,}"])


def captured_table(done: Captured) -> Table:
    """What `toc capture` wrote, and the command that uses it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("wrote" if not done.reused else "stands", name(str(done.output), limit=300))
    table.add_row("model", name(f"{done.model}, {done.library}"))
    skipped = f", {len(done.skipped):,} skipped" if done.skipped else ""
    table.add_row("files", f"{done.files:,}{skipped}" + (f", {done.classes} classes" if done.classes else ""))
    table.add_row("features", f"{done.rows:,} rows of width {done.width}")
    table.add_row("tokens", f"{done.rows:,} x {' x '.join(map(str, done.tokens))}, the model's own")
    table.add_row("next", name(f"toc optimize MODEL --features {done.output} --keep 0.5", limit=300))
    return table


def tokens_table(done: dict[str, Any]) -> RenderableType:
    """What `toc quantize` wrote, per modality; below it each level and head where there are several, and the ids they make."""
    table = _files(done, "dataset", "shape", "dtype", "rows", "codes used", "perplexity")
    for row in done["datasets"]:
        used = f"{row['used_codes']:,} of {row['codes']:,}"
        shape = "x".join(map(str, row["shape"]))
        table.add_row(name(row["name"]), shape, row["dtype"], f"{row['rows']:,}", used, f"{row['perplexity']:.1f}")
    several = [row for row in done["datasets"] if len(row["tables"]) > 1]
    return Group(table, *(part for row in several for part in _levels(row)))


def _levels(row: dict[str, Any]) -> list[RenderableType]:
    levels = Table(title=name(row["name"]), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in ("level", "head", "codes used", "perplexity", "entropy", "of bits"):
        levels.add_column(column, justify="right")
    for each in row["tables"]:
        used = f"{each['used_codes']:,} of {each['codes']:,}"
        figures = (f"{each['perplexity']:.1f}", f"{each['entropy_bits']:.2f}", f"{each['bits_per_token']:.2f}")
        levels.add_row(str(each["level"]), str(each["head"]), used, *figures)
    if row["tuples"] is None:
        return [levels, Text("ids are not counted: they do not fit into --max-memory", style="dim")]
    ids = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("ids of", "distinct", "fullest", "rows alone", "collision rate"):
        ids.add_column(column, justify="right")
    for each in row["tuples"]:
        shares = (f"{each['alone']:.1%}", f"{each['collision_rate']:.1%}")
        ids.add_row(f"{each['length']} tokens", f"{each['distinct']:,}", f"{each['largest']:,}", *shares)
    return [levels, ids]


def vectors_table(done: dict[str, Any]) -> Table:
    """What `toc decode` wrote, per dataset of tokens."""
    table = _files(done, "dataset", "shape", "rows", "space")
    for row in done["datasets"]:
        shape = "x".join(map(str, row["shape"]))
        table.add_row(name(row["name"]), shape, f"{row['rows']:,}", "projected out" if row["projected"] else "codebook")
    return table


def remapped_table(done: dict[str, Any]) -> Table:
    """What `toc remap` wrote, per dataset of tokens."""
    table = _files(done, "dataset", "shape", "dtype", "rows", "rows with new ids")
    for row in done["datasets"]:
        shape = "x".join(map(str, row["shape"]))
        table.add_row(name(row["name"]), shape, row["dtype"], f"{row['rows']:,}", f"{row['rows_with_new_ids']:,}")
    return table


def _files(done: dict[str, Any], *columns: str) -> Table:
    """A table under the name of the file that was written."""
    title = Text(f"{printable(done['output'])}")
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("dataset", "shape", "dtype", "space") else "right")
    return table


def bench_tables(found: dict[str, Any]) -> list[RenderableType]:
    """One table: a row per measured thing (a single one stands upright); seconds and bytes in readable units.

    The search has a table for each shape, what only our own has below it, so that 80 columns hold it.
    """
    about = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in found.items()
        if isinstance(value, str | int) and key not in ("bench", "missing")
    ]
    title = Text(" · ".join([f"toc bench {found['bench']}", *about]))
    if any("shape" in row for row in found["rows"]):
        shapes = dict.fromkeys(row["shape"] for row in found["rows"])
        return [title, *(part for shape in shapes for part in _search_table(shape, found["rows"]))]
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    columns = list(dict.fromkeys(field for row in found["rows"] for field in row))
    if len(found["rows"]) == 1:
        table.show_header = False
        for column in columns:
            table.add_row(Text(column.replace("_", " ")), Text(_measured(column, found["rows"][0][column])))
        return [table]
    for column in columns:
        words = any(isinstance(row.get(column), str) for row in found["rows"])
        table.add_column(Text(column.replace("_", " ")), justify="left" if words else "right")
    for row in found["rows"]:
        table.add_row(*(Text(_measured(column, row.get(column))) for column in columns))
    return [table]


def _search_table(shape: str, rows: list[dict[str, Any]]) -> list[RenderableType]:
    """The searches of one shape (N x K x D) beside each other, and what our own left uncertain."""
    table = Table(title=Text(f"\n{shape}"), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in ("method", "time", "x floor", "x toc", "wrong", "memory"):
        table.add_column(column, justify="left" if column == "method" else "right")
    notes: list[RenderableType] = []
    for row in (row for row in rows if row["shape"] == shape):
        wrong = f"{row['mismatches']:,} of {row['compared']:,}" if "mismatches" in row else "–"
        times = [_measured(column, row.get(column)) for column in ("seconds", "x_floor", "x_toc")]
        table.add_row(*map(Text, (row["method"], *times, wrong, _measured("bytes", row.get("extra_bytes")))))
        if "rechecked_share" in row:
            coarse = (
                f"{row['doubtful_share']:.2%} go from the 16-bit pass to float32; " if row["doubtful_share"] else ""
            )
            taken = _measured("seconds", row["recheck_seconds"])
            checked = f"{row['rechecked_share']:.2%} of the rows are compared in float64, in {taken}."
            notes.append(Text(f"toc: {coarse}{checked}", style="dim"))
    return [table, *notes]


def _measured(column: str, value: Any) -> str:
    if value is None:
        return "–"
    if column.endswith("seconds"):
        return f"{value * 1e3:,.3g} ms" if value < 1 else f"{value:,.3g} s"
    if column.endswith("bytes"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)
