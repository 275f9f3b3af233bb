"""`toc demo`: the whole road on the bundled data, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toc_cli.commands import flags

EXAMPLE = "toc demo -o toc-demo"


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where everything is put.")] = Path(
        "toc-demo"
    ),
    keep: Annotated[str, typer.Option(help="As in toc optimize; auto: within 1% of excess distortion.")] = "auto",
    criterion: Annotated[str, typer.Option(help="As in toc optimize.")] = "auto",
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Optimise, quantise and report on the bundled digits: a VQ autoencoder of handwritten digits and its features."""
    from toc_cli.commands.output import Output
    from toc_cli.demo import COMMANDS, run_demo
    from toc_cli.report.assembly import assemble
    from toc_cli.report.reading import Run
    from toc_cli.report.terminal import render

    sink = Output(as_json, quiet)
    record, files = run_demo(output, keep=keep, criterion=criterion, force=force, progress=sink.progress)
    sink.result(record, render(assemble([Run("digits_vq.toc.json", record)])))
    sink.say("Written: " + ", ".join(str(file) for file in files))
    sink.say("The same on your own model:")
    for command in COMMANDS:
        sink.say(f"  {command}")
