"""`toc optimize`: score every dimension, select, write the pruned codebook and the run record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from toc_cli.commands import flags
from toc_cli.errors import UsageError

if TYPE_CHECKING:
    from toc_cli.commands.output import Output
    from toc_cli.pipeline import Options, Outputs
from toc_cli.ops.criterion import CRITERIA

EXAMPLE = "toc optimize model.safetensors --features feats.h5 --keep 0.5"


def optimize(
    context: typer.Context,
    checkpoint: flags.Checkpoint,
    features: flags.Features,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Share (0.5, 50%; half by default), count (128), one a level (0.5,0.5,0.25), or auto: smallest in the bounds.",
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="In place of --keep: dimensions over all codebooks, by need, most rows a clip first."
        ),
    ] = None,
    bytes: Annotated[
        str | None,
        typer.Option(
            "--bytes",
            metavar="SIZE",
            help="In place of --keep: bytes of all codes, split by what saves most distortion.",
        ),
    ] = None,
    codes: Annotated[
        str | None,
        typer.Option(
            metavar="used|N|share",
            help="Keep fewer codes: drop those that no feature chooses (used), and merge near ones down to a count or share.",
        ),
    ] = None,
    levels: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Keep the first N levels of a residual codebook.")
    ] = None,
    refresh: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", min=1, help="Estimate the kept codes anew by so many Lloyd steps on the features."
        ),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="; ".join(f"{name}: {row.help}" for name, row in CRITERIA.items()) + "; auto: what keeps most.",
        ),
    ] = "toc",
    weights: Annotated[
        str, typer.Option(metavar="SIM,VAR", help="Weights of the similarity and the variance.")
    ] = "0.7,0.3",
    normalize: Annotated[Literal["none", "l2"], typer.Option(help="none, or l2: score unit-length codes.")] = "none",
    ratio: Annotated[
        str | None, typer.Option(metavar="MAX:MIN", help="Take part of D' from the lowest scores.")
    ] = None,
    emit: Annotated[
        list[str] | None,
        typer.Option(help="codebook, masked, sliced or consumer; repeatable, or a,b. Default: codebook."),
    ] = None,
    fill: Annotated[
        Literal["mean", "zero"] | None, typer.Option(help="Constant of the dropped dimensions: mean or zero.")
    ] = None,
    max_distortion: Annotated[
        str | None, typer.Option(metavar="SHARE", help="For --keep auto: bound of the excess distortion, 0.01 or 1%.")
    ] = None,
    min_agreement: Annotated[
        str | None, typer.Option(metavar="SHARE", help="For --keep auto: bound of the token agreement, 0.95 or 95%.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO:STEPS", help="Record the keep-ratio curve: 0.1:1.0:10, or a list 0.25,0.5."),
    ] = None,
    codebook: flags.Codebook = None,
    layout: flags.Layout = None,
    metric: flags.Metric = None,
    rows: flags.Rows = None,
    table: flags.Table = None,
    scale: flags.Scale = None,
    stack: flags.Stack = None,
    assume: flags.Assume = False,
    modality: flags.Modality = None,
    channel_axis: flags.ChannelAxis = None,
    space: flags.Space = "auto",
    limit: flags.Limit = None,
    eval_rows: Annotated[
        str, typer.Option(metavar="N|all", help="Rows per modality on which before and after are measured.")
    ] = "16384",
    max_memory: flags.MaxMemory = "1GiB",
    device: flags.Device = "auto",
    seed: flags.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="NAME.toc.safetensors", help="The artefact's name and the others' stem."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Pictures or sound: decode them before and after, in every written form."),
    ] = None,
    no_samples: Annotated[
        bool, typer.Option("--no-samples", help="Keep pictures, sound and file names of --data out of the record.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write the page of toc report (extra report).")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also load what was written in its own library and run it.")
    ] = False,
    lean: Annotated[
        bool,
        typer.Option("--lean", help="Leave optimizer state, losses, discriminators and averages out of the copies."),
    ] = False,
    vocab: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[FILE:]KEY[@ROW]",
            help="Cut these rows of a language model along with --codes: code 0 stands in ROW; repeatable; #LEVEL: of one level.",
        ),
    ] = None,
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Score every dimension of a codebook, keep the best, write the pruned codebook and a run record."""
    from toc_cli.commands.output import Output
    from toc_cli.commands.page import refuse_page, write_page
    from toc_cli.commands.settings import used
    from toc_cli.commands.tables import plan_parts
    from toc_cli.io.hub import here, hub_name
    from toc_cli.media import holds_media
    from toc_cli.pipeline import Options, Outputs, plan_optimization
    from toc_cli.pipeline.options import parse_bytes, parse_modes, parse_rows, parse_share, parse_weights
    from toc_cli.pipeline.preflight import refuse_unseen

    keep, budget, bytes = said_size(context, keep, budget, bytes)
    options = Options(
        keep=keep or "", budget=budget, bytes=None if bytes is None else parse_bytes(bytes, "--bytes", 1),
        codes=codes, levels=levels, refresh=refresh, lean=lean,
        criterion=criterion.lower(), weights=parse_weights(weights), normalize=normalize, ratio=ratio,
        codebook=tuple(codebook or ()) or None, layout=layout, metric=metric, stack=stack, rows=rows, table=table,
        scale=scale, assume=assume,
        modalities=tuple(modality or ()), channel_axis=channel_axis, space=space, max_memory=parse_bytes(max_memory),
        limit=limit, eval_rows=parse_rows(eval_rows), fill=fill, sweep=sweep,
        max_distortion=None if max_distortion is None else parse_share(max_distortion),
        min_agreement=None if min_agreement is None else parse_share(min_agreement), emit=parse_modes(emit), device=device, seed=seed,
        settings=used(context),
    )  # fmt: skip
    sink = Output(as_json, quiet)
    refuse_page(report, force=force or dry_run, inputs=[checkpoint])
    if hub_name(checkpoint) is not None:
        refuse_unseen(options, output, force=force or dry_run)
    checkpoint = here(checkpoint)
    outputs = Outputs(
        checkpoint,
        options.emit,
        output,
        force,
        planned=dry_run,
        verify=verify,
        data=data,
        samples=not no_samples,
        vocab=tuple(vocab or ()),
    )
    if media := [entry for entry in features if holds_media(entry.rpartition("=")[2] or entry)]:
        features, outputs = captured_first(checkpoint, features, media, outputs, options, sink)
    plan = plan_optimization(checkpoint, features, options, outputs, progress=sink.progress)
    for warning in plan.record["warnings"]:
        sink.warn(warning["text"])
    if note := count_or_share(options.keep, plan.record["codebooks"]):
        sink.say(note)
    if outputs.elsewhere:
        sink.warn(outputs.elsewhere)
    told = len(plan.record["warnings"])
    if plan.left_out:
        sink.say(plan.left_out)
    if not dry_run:
        plan.write()
    for warning in plan.record["warnings"][told:]:
        sink.warn(warning["text"])
    if plan.ranks.writes:
        for text in plan.token_warnings if quiet or as_json else ():  # the verdict that is drawn says it
            sink.warn(text)
        write_page(None if dry_run else report, outputs.record.name, plan.record)
        sink.result(plan.record, *plan_parts(plan, dry_run))
        for text in plan.searches:
            sink.say(text)
        for hint in plan.load_hints if "sliced" in options.emit else ():
            sink.say(f"To load the sliced file: {hint}")


def said_size(
    context: typer.Context, keep: str | None, budget: int | None, bytes: str | None
) -> tuple[str | None, int | None, str | None]:
    """What says how much is kept: a flag of the command line puts aside what the project's settings say by another."""
    from toc_cli.commands.settings import source_of
    from toc_cli.pipeline.options import BUDGET

    if keep is not None and keep.strip() in ("", BUDGET):  # what the options say where nothing was said
        raise UsageError(
            f"--keep {keep!r} is not a share or a count.", "Use a share (0.5, 50%), a count (128) or auto."
        )
    said = [name for name in ("keep", "budget", "bytes") if source_of(context, name) == "COMMANDLINE"]
    return (
        keep if not said or "keep" in said else None,
        budget if not said or "budget" in said else None,
        bytes if not said or "bytes" in said else None,
    )


def captured_first(
    checkpoint: Path, features: list[str], media: list[str], outputs: Outputs, options: Options, sink: Output
) -> tuple[list[str], Outputs]:
    """Features of pictures or sound, captured (or found captured), which then also are the data of the written forms."""
    from dataclasses import replace

    from toc_cli.libraries.media import ROADS
    from toc_cli.pipeline.capture import CaptureOptions, capture_features
    from toc_cli.pipeline.source import device_of

    chosen = CaptureOptions(device=str(device_of(options.device)))
    given, done = capture_features(
        checkpoint, features, outputs.stem, chosen, write=not outputs.planned, progress=sink.progress
    )
    for one in done:
        verb = "taken as it stands" if one.reused else "captured"
        sink.say(f"{one.output}: {verb}, {one.rows:,} rows of {one.files:,} files")
        if one.skipped:
            sink.warn(f"{len(one.skipped):,} files could not be read, the first: {one.skipped[0][1]}")
    if outputs.data is None and outputs.checkpoints and ROADS[done[0].model].decode is not None:
        outputs = replace(outputs, data=media[0].rpartition("=")[2])
    return given, outputs


def count_or_share(keep: str, codebooks: Sequence[Mapping[str, Any]]) -> str:
    """`--keep 50` of 64 dimensions is a count that may have been meant in percent: a line that says so; else empty."""
    if not (keep.strip().isdecimal() and 1 < int(keep) <= 100) or not codebooks:
        return ""
    dim = codebooks[0]["dim"]
    return f"--keep {keep} is a count: {codebooks[0]['kept_dim']} of {dim} dimensions; a share would be --keep {keep}%."
