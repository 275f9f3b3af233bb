"""`toc train-fcid`: train FCID, or its uniform-alignment baseline, on paired features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toc_cli.commands import flags

EXAMPLE = "toc train-fcid avdigits.h5 -o run --set model.width=64 --set model.codebook.size=128 --epochs 60"


def train_fcid(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="HDF5 of paired features, one group per split.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Folder of the run.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in TOML or YAML; RUN/config.toml shows all.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="corrected (default); published: the formulas of the published code; plain: the InfoNCE terms alone."
        ),
    ] = None,
    alignment: Annotated[
        str | None, typer.Option(help="fine-coarse (default), or uniform: the baseline that aligns all by the second.")
    ] = None,
    codebooks: Annotated[
        int | None, typer.Option(metavar="1|2", help="Codebooks that are trained and read; the profile says how many.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips per process and step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the main optimiser.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and every draw.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 (default), float64, or bf16 on CUDA.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read ahead.")] = None,
    checkpoint_minutes: Annotated[float | None, typer.Option(help="Minutes between two saves of the state.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting, model.width=64; repeatable.")
    ] = None,
    device: flags.Device = "auto",
    init: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Start from the weights of this run (or its model.safetensors).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in RUN, bit for bit.")] = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Train FCID (fine audio-visual alignment, then coarse alignment with text) on paired features.

    RUN then holds model.safetensors (the best epoch, ready for toc optimize and toc evaluate), config.toml, log.jsonl and
    resume.ckpt. Several processes: torchrun --nproc-per-node 2 -m toc_cli train-fcid DATA -o RUN.
    """
    from toc_cli.commands.output import Output
    from toc_cli.commands.training_view import summary_table, watching
    from toc_cli.fcid.run import train
    from toc_cli.fcid.settings import assignment, merge

    model = {"profile": profile, "alignment": alignment}
    options = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "precision": precision, "workers": workers,
        "checkpoint_minutes": checkpoint_minutes,
    }  # fmt: skip
    overrides: dict[str, Any] = {"model": given(model), "train": given(options)}
    for text in setting or []:
        overrides = merge(overrides, assignment(text))
    sink = Output(as_json, quiet)
    with watching(sink) as watcher:
        summary = train(
            data,
            output,
            config=config,
            overrides=overrides,
            codebooks=codebooks,
            init=init,
            resume=resume,
            device=device,
            watcher=watcher,
        )
    if summary.writes:
        sink.result(summary.record(output), summary_table(summary, output))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in options.items() if value is not None}
