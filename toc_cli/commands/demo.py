"""`toc demo`: the whole road on the bundled data, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toc_cli.commands import flags

EXAMPLE = "toc demo -o toc-demo"
ROAD = "\nFCID on AV-Digits: probes learn the codes of what is seen and are tested on those of what is heard, and back"


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where everything is put.")] = Path(
        "toc-demo"
    ),
    keep: Annotated[str, typer.Option(help="As in toc optimize; auto: within 1% of excess distortion.")] = "auto",
    criterion: Annotated[str, typer.Option(help="As in toc optimize.")] = "auto",
    train: Annotated[
        bool, typer.Option("--train", help="Train FCID on the bundled clips first, some minutes, and go on with that.")
    ] = False,
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """The whole road on bundled data: a VQ autoencoder of digits made smaller, then FCID's codes from sight to sound."""
    from contextlib import nullcontext

    from rich.console import RenderableType
    from rich.text import Text

    from toc_cli.commands.output import Output
    from toc_cli.commands.training_view import watching
    from toc_cli.demo import COMMANDS, run_demo
    from toc_cli.demo.choice import DemoChoice
    from toc_cli.report import evaluation
    from toc_cli.report.assembly import assemble
    from toc_cli.report.reading import Run
    from toc_cli.report.terminal import STYLE, render

    sink = Output(as_json, quiet)
    with watching(sink) if train else nullcontext() as watcher:
        records, files = run_demo(output, DemoChoice(keep, criterion, force), progress=sink.progress, watcher=watcher)
    (first, record), *more = records.items()
    parts: list[RenderableType] = [render(assemble([Run(first, record)])), Text(ROAD, style="bold")]
    for name, found in more:
        if "evaluation" in found:
            parts += evaluation.summary(found)
        else:
            report = assemble([Run(name, found)])
            parts.append(Text(f"{name}: ") + Text(report.headline, style=STYLE[report.tone]))
    sink.result(records, *parts)
    pages = [file.name for file in files if file.suffix == ".html"]
    sink.say(f"Written: {len(files)} files in {output}" + "".join(f"; {page} shows everything" for page in pages) + ".")
    sink.say("The same on your own model:")
    for command in COMMANDS:
        sink.say(f"  {command}")
