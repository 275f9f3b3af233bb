"""What `toc bench assign` draws can be read at 80 columns."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from toc_cli.bench.assign import measure
from toc_cli.commands.tables import bench_tables


def test_every_search_stands_in_full_at_80_columns() -> None:
    found = measure(
        "cpu", [(300, 40, 8), (200, 30, 16)], repeats=1, peers=["torch addmm+argmin", "vector-quantize-pytorch"]
    )
    console = Console(width=80, file=StringIO())
    for part in bench_tables(found):
        console.print(part)
    drawn = console.file.getvalue()
    assert "300x40x8" in drawn
    assert "200x30x16" in drawn
    for row in found["rows"]:
        assert any(line.startswith(row["method"]) for line in drawn.splitlines())
    assert "0 of 300" in drawn
    assert " ".join(drawn.split()).count("of the rows are compared in float64") == 2
