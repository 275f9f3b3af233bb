"""`toc report`: render run records, compare with a baseline, and gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from toc_cli.commands import flags
from toc_cli.report.formats import FORMATS

EXAMPLE = "toc report model.toc.json --check 'token_agreement>=0.95' --format html:report.html,junit:checks.xml"


def report(
    records: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN.toc.json]…", help="Run records. Default: the newest *.toc.json here."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="KIND[:FILE],…",
            help=", ".join(FORMATS) + "; to stdout without a FILE.",
        ),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPR", help="'token_agreement>=95%', 'bytes<=baseline*1.05'; repeatable. Shares as 0.95 or 95%."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="File with [tool.toc.checks]. Default: toc.toml or pyproject.toml here."),
    ] = None,
    baseline: Annotated[Path | None, typer.Option(metavar="OLD.toc.json", help="The run to compare with.")] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Copy this record over --baseline where no check fails.")
    ] = False,
    baseline_any: Annotated[
        bool, typer.Option("--baseline-any", help="Compare also with a baseline of other features or another schema.")
    ] = False,
    fail_on: Annotated[
        Literal["error", "warn"], typer.Option(help="From which level a failed check counts.")
    ] = "error",
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 even where a check fails.")] = False,
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Render run records, compare them with a baseline, and exit 1 where a check fails."""
    from toc_cli.commands.output import Output
    from toc_cli.report import machine, report_runs, terminal

    done = report_runs(
        records or (), formats=[*(formats or ()), *(["json"] if as_json else ())], expressions=check or (), config=config,
        baseline=baseline, update_baseline=update_baseline, baseline_any=baseline_any, fail_on=fail_on, force=force,
    )  # fmt: skip
    sink = Output(as_json, quiet)
    if done.text is not None:
        sink.text(done.text)
    else:
        sink.result(machine.data(done.report), terminal.render(done.report))
    for note in done.notes:
        sink.say(note)
    if not exit_zero:
        done.report.raise_failed()
