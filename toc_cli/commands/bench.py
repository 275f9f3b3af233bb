"""`toc bench`: measure this machine against the floor and the peers that are installed."""

from __future__ import annotations

from typing import Annotated

import typer

from toc_cli.commands import flags

EXAMPLE = "toc bench criterion"


def bench(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[criterion|optimize|choose|assign|intervals|growth|features|measuring|train]",
            help="What to measure.",
        ),
    ] = "assign",
    device: flags.Device = "auto",
    rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Feature rows. Default: optimize, choose 1,000,000; features 400,000; measuring 200,000."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repetitions; the median counts.")] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="assign: count mismatches against float64 on adversarial data.")
    ] = False,
    axis: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="growth: rows, codes, dim, …; repeatable. Default: all.")
    ] = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Measure this machine: assignment, scoring, optimize, choosing, how cost grows, a training step, how often intervals hold."""
    from toc_cli.bench import run_bench
    from toc_cli.commands.output import Output
    from toc_cli.commands.tables import bench_tables

    found = run_bench(what, device=device, rows=rows, repeats=repeats, verify=verify, axes=axis or ())
    sink = Output(as_json, quiet)
    sink.result(found, *bench_tables(found))
    if found.get("missing"):
        sink.warn(found["missing"])
