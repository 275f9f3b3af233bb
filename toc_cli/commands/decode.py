"""`toc decode`: tokens to the vectors that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from toc_cli.commands import flags

EXAMPLE = "toc decode feats.tokens.h5 --codebook model.toc.safetensors"


def decode(
    tokens: Annotated[
        Path, typer.Argument(metavar="TOKENS", help="The h5 that toc quantize wrote, or an npy of whole numbers.")
    ],
    codebook: Annotated[
        Path,
        typer.Option(metavar="X.toc.safetensors", help="The codebook that chose them: an artefact or a checkpoint."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.h5", help="Default: <stem>.vectors.h5.")
    ] = None,
    book: Annotated[int, typer.Option("--id", help="Which codebook of the file.")] = 0,
    space: Annotated[
        Literal["auto", "codebook"],
        typer.Option(help="auto: through the checkpoint's projection out, as the model goes on; codebook: before it."),
    ] = "auto",
    layout: flags.Layout = None,
    metric: flags.Metric = None,
    max_memory: flags.MaxMemory = "1GiB",
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Decode tokens to vectors of the width that the model goes on with, streamed, with the datasets' structure."""
    from toc_cli.commands.output import Output
    from toc_cli.commands.tables import vectors_table
    from toc_cli.pipeline.decode import DecodeOptions, decode_tokens
    from toc_cli.pipeline.options import parse_bytes

    reading = {"layout": layout, "metric": metric}
    options = DecodeOptions(book=book, space=space, reading=reading, max_memory=parse_bytes(max_memory))
    sink = Output(as_json, quiet)
    done = decode_tokens(tokens, codebook, output, options, force=force, progress=sink.progress)
    if done["elsewhere"]:
        sink.warn(done["elsewhere"])
    sink.result(done, vectors_table(done))
