"""`toc remap`: old tokens under the ids of a codebook with fewer codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toc_cli.commands import flags

EXAMPLE = "toc remap feats.tokens.h5 --codebook model.toc.safetensors"


def remap(
    tokens: Annotated[
        Path, typer.Argument(metavar="TOKENS", help="The h5 that toc quantize wrote, or an npy of whole numbers.")
    ],
    codebook: Annotated[
        Path,
        typer.Option(
            metavar="X.toc.safetensors", help="What toc optimize --codes made of the codebook that chose them."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.h5", help="Default: <stem>.remapped.h5.")
    ] = None,
    book: Annotated[int, typer.Option("--id", help="Which codebook of the artefact.")] = 0,
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Rewrite existing tokens for a codebook with fewer codes: exact where codes were only dropped."""
    from toc_cli.commands.output import Output
    from toc_cli.commands.tables import remapped_table
    from toc_cli.pipeline.remap import remap_tokens

    sink = Output(as_json, quiet)
    done = remap_tokens(tokens, codebook, output, book=book, force=force, progress=sink.progress)
    if done["elsewhere"]:
        sink.warn(done["elsewhere"])
    if done["mapped_share"] < 1:
        sink.warn(
            f"Quantised anew with the codes that are left, {done['mapped_share']:.2%} of the sampled tokens are these."
        )
    if done["kept_least"] < done["dim"]:
        sink.warn(
            f"The codebook has {done['kept_dim']} of {done['dim']} dimensions as well, which changes more tokens."
        )
    sink.result(done, remapped_table(done))
