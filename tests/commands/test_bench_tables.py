"""What `toc bench assign` draws can be read at 80 columns."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from toc_cli.bench.assign import measure
from toc_cli.bench.choose import measure_choice
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


def test_what_choosing_costs_stands_in_full_at_80_columns() -> None:
    rows = measure_choice(3000, 1, (300, 8))
    assert [row["what"].split()[0] for row in rows] == ["discriminant", "auto", "merge", "decode", "remap"]
    for row in rows:
        assert row["seconds"] > 0
        assert row.get("ratio", 1) == pytest.approx(row["seconds"] / row.get("beside_seconds", row["seconds"]))
    console = Console(width=80, file=StringIO())
    for part in bench_tables({"bench": "choose", "features": 3000, "rows": rows}):
        console.print(part)
    drawn = console.file.getvalue().splitlines()
    for row in rows:
        line = next(line for line in drawn if line.startswith(row["what"]))
        assert (row["bound"] or "–") in line
