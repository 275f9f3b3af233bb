"""`toc inspect`: what codebooks a checkpoint holds and what can be done with them."""

from __future__ import annotations

from typing import Annotated

import typer

from toc_cli.commands import flags

EXAMPLE = "toc inspect model.safetensors"


def inspect(
    checkpoint: flags.Checkpoint,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="Read the tensors too: effective rank, mean code cosine.")
    ] = False,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE", help="Hold the reading against features, and the tokens recorded with them."
        ),
    ] = None,
    codebook: flags.Codebook = None,
    layout: flags.Layout = None,
    metric: flags.Metric = None,
    rows: flags.Rows = None,
    table: flags.Table = None,
    scale: flags.Scale = None,
    stack: flags.Stack = None,
    assume: flags.Assume = False,
    space: flags.Space = "auto",
    channel_axis: flags.ChannelAxis = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """List every codebook of a checkpoint: family, levels, heads, K, D, metric, neighbours and possible --emit modes."""
    from toc_cli.commands.output import Output
    from toc_cli.commands.tables import inspect_tables
    from toc_cli.pipeline import inspect_checkpoint

    found = inspect_checkpoint(
        checkpoint, numbers=numbers, features=features or (), space=space, channel_axis=channel_axis, codebook=codebook,
        layout=layout, metric=metric, stack=stack, rows=rows, table=table, scale=scale, assume=assume,
    )  # fmt: skip
    sink = Output(as_json, quiet)
    for book in found["codebooks"]:
        for warning in book["warnings"]:
            sink.warn(warning)
    sink.result(found, *inspect_tables(found))
