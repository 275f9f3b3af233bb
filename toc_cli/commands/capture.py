"""`toc capture`: pictures or sound through a codec's own encoder, to features and the tokens that it chose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toc_cli.commands import flags

EXAMPLE = "toc capture model/ photos/ -o feats.h5"
SHOWN = 5


def capture(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub name of a codec of transformers or diffusers; or a file of encodec, descript-audio-codec or snac.",
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder, glob or @list of pictures or sound (folders name classes), or a file of arrays.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.h5", help="Features, tokens, row ranges of files, labels.")
    ] = Path("features.h5"),
    batch: Annotated[int, typer.Option(help="Files of one shape that run together.")] = 8,
    limit: Annotated[int | None, typer.Option(metavar="FILES", help="So many files, spread evenly.")] = None,
    resize: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Pictures: the shorter side is scaled to this.")
    ] = None,
    crop: Annotated[int | None, typer.Option(metavar="PIXELS", help="Pictures: a centred square of this side.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Sound: no more than its first seconds.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16: what the model computes in.")] = "float32",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first file that cannot be read.")] = False,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]", help="Where the model runs.")] = "auto",
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Record what reaches the quantiser of a codec, and the tokens it chooses, for a folder of pictures or sound.

    An interrupted capture goes on where it stopped.
    """
    from toc_cli.commands.output import Output
    from toc_cli.commands.tables import captured_table
    from toc_cli.io.hub import here
    from toc_cli.pipeline.capture import CaptureOptions, capture_media
    from toc_cli.pipeline.source import device_of

    sink = Output(as_json, quiet)
    options = CaptureOptions(batch, str(device_of(device)), dtype, limit, resize, crop, seconds, strict)
    done = capture_media(here(model), data, output, options, force=force, progress=sink.progress)
    for name, reason in done.skipped[:SHOWN]:
        sink.warn(f"skipped {name}: {reason}")
    if len(done.skipped) > SHOWN:
        sink.warn(f"skipped {len(done.skipped):,} files in all; --json lists them.")
    sink.result(done.as_record(), captured_table(done))
