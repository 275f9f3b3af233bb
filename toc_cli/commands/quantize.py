"""`toc quantize`: features to tokens with a pruned codebook."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toc_cli.commands import flags

EXAMPLE = "toc quantize feats.h5 --codebook model.toc.safetensors"


def quantize(
    features: Annotated[
        list[str],
        typer.Argument(metavar="FEATURES", help="Files, folders, 'globs' or @lists; name=path names a modality."),
    ],
    codebook: Annotated[
        Path,
        typer.Option(
            metavar="X.toc.safetensors", help="A pruned codebook of toc optimize, or any checkpoint (all dimensions)."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.h5", help="Default: <stem>.tokens.h5.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toc.json", help="Also write what was counted as a record, for toc report and its checks."
        ),
    ] = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Write the quantised vectors too.")] = False,
    book: Annotated[int | None, typer.Option("--id", help="Which codebook of the file. Default: the first.")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The tensor of a checkpoint to take as the codebook.")
    ] = None,
    layout: flags.Layout = None,
    metric: flags.Metric = None,
    stack: flags.Stack = None,
    rows: flags.Rows = None,
    table: flags.Table = None,
    scale: flags.Scale = None,
    modality: flags.Modality = None,
    channel_axis: flags.ChannelAxis = None,
    space: flags.Space = "auto",
    max_memory: flags.MaxMemory = "1GiB",
    device: flags.Device = "auto",
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Quantise features to tokens (and vectors on request), streamed, with the datasets' structure."""
    from toc_cli.commands.output import Output
    from toc_cli.commands.tables import tokens_table
    from toc_cli.pipeline import QuantizeOptions, quantize_features
    from toc_cli.pipeline.options import parse_bytes

    options = QuantizeOptions(
        book=book, vectors=vectors, modalities=tuple(modality or ()), channel_axis=channel_axis, space=space,
        reading={"codebook": key, "layout": layout, "metric": metric, "stack": stack, "rows": rows, "table": table, "scale": scale},
        max_memory=parse_bytes(max_memory), device=device,
    )  # fmt: skip
    sink = Output(as_json, quiet)
    done = quantize_features(features, codebook, output, options, record=record, force=force, progress=sink.progress)
    if done["elsewhere"]:
        sink.warn(done["elsewhere"])
    for warning in done["warnings"]:
        sink.warn(warning)
    sink.result(done, tokens_table(done))
