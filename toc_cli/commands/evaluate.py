"""`toc evaluate`: cross-modal classification, localisation, transfer, retrieval and generation, with and without TOC."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toc_cli.commands import flags

if TYPE_CHECKING:
    from toc_cli.ops.quantiser import Quantiser

EXAMPLE = "toc evaluate run avdigits.h5 --keep 0.25,0.5 -o run/evaluation.toc.json"


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of toc train-fcid; or an artefact or checkpoint, with features."),
    ],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="HDF5 of paired features, one group per split, labels.")],
    keep: Annotated[str, typer.Option(help="Shares or counts of dimensions, 0.25,0.5; none: all dimensions only.")] = (
        "0.25,0.5"
    ),
    criterion: Annotated[str, typer.Option(help="Criteria of toc optimize, toc,xcov; random and worst come along.")] = (
        "toc,xcov"
    ),
    weights: Annotated[
        str, typer.Option(metavar="SIM,VAR", help="Weights of the similarity and the variance.")
    ] = "0.7,0.3",
    artefact: Annotated[
        list[Path] | None,
        typer.Option(metavar="X.toc.safetensors", help="Also test these pruned codebooks; repeatable."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL[=TRAIN:VAL:TEST]", help="Default: all labels with train and test splits; repeatable."
        ),
    ] = None,
    transfer: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT|FILE[=SPLIT]", help="Test the probes there too; repeatable."),
    ] = None,
    modality: flags.Modality = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="classification, localisation, transfer, retrieval, generation; repeatable. Default: all."),
    ] = None,
    scoring_split: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="Unlabelled clips for scores. Default: the run's training split."),
    ] = None,
    retrieval_split: Annotated[
        list[str] | None, typer.Option(metavar="SPLIT", help="Where to search. Default: the test splits; repeatable.")
    ] = None,
    relevance: Annotated[
        str, typer.Option(help="What counts as found: the same clip, caption, or a LABEL of clips; auto.")
    ] = "auto",
    seeds: Annotated[int, typer.Option(help="Probes per figure, each with its own seed.")] = 3,
    probe_width: Annotated[int, typer.Option(help="Between a probe's two layers, where no read-out is wider.")] = 128,
    probe_epochs: Annotated[int, typer.Option(help="Passes of a probe over its training clips.")] = 60,
    save_features: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.h5", help="Write the run's features for toc optimize --features, and evaluate nothing."
        ),
    ] = None,
    level: Annotated[str, typer.Option(help="--save-features: those of the fine or the coarse codebook.")] = "fine",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="NAME.toc.json", help="Record. Default: RUN/evaluation-N.toc.json."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write the page of toc report (extra report).")
    ] = None,
    device: flags.Device = "auto",
    seed: flags.Seed = 0,
    force: flags.Force = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Test what codes carry across modalities: learn on one, test on the other, before and after TOC.

    Every figure has its interval over test clips, its paired difference to all dimensions, and next to each criterion
    random and worst selections of the same size.
    """
    from toc_cli.commands.output import Output
    from toc_cli.commands.page import refuse_page, write_page
    from toc_cli.fcid.evaluation import EvaluateOptions
    from toc_cli.fcid.evaluation import evaluate as evaluated
    from toc_cli.fcid.evaluation.export import save_features as save
    from toc_cli.fcid.evaluation.options import PARTS
    from toc_cli.io.artefact import read_artefact, write_record
    from toc_cli.io.atomic import check_target
    from toc_cli.pipeline.artefacts import quantisers_by_key
    from toc_cli.pipeline.options import parse_weights
    from toc_cli.report.evaluation import summary

    sink = Output(as_json, quiet)
    refuse_page(report, force=force, inputs=[run, data])
    if save_features is not None:
        shapes = save(run, data, save_features, level=level, split=scoring_split, device=device, force=force)
        sink.result({"output": str(save_features), "shapes": {name: list(shape) for name, shape in shapes.items()}})
        sink.say(f"Written: {save_features}")
        return
    options = EvaluateOptions(
        keep=() if keep == "none" else listed(keep), criteria=listed(criterion), weights=parse_weights(weights),
        tasks=tuple(task or ()), transfer=tuple(transfer or ()), modalities=tuple(modality or ()),
        parts=tuple(part or PARTS), scoring_split=scoring_split, retrieval_splits=tuple(retrieval_split or ()),
        relevance=relevance, probe_seeds=seeds, probe_epochs=probe_epochs, probe_width=probe_width, seed=seed, device=device,
    )  # fmt: skip
    if output is None:
        output = numbered(run)
    check_target(output, force=force, inputs=[data])
    pruned = {path: quantisers_by_key(read_artefact(path)) for path in artefact or ()}
    found = evaluated(run, data, options, codebook=lone_codebook(run), artefacts=pruned, progress=sink.progress)
    for warning in found["warnings"]:
        sink.warn(warning["text"])
    write_record(output, found)
    write_page(report, output.name, found)
    sink.result(found, *summary(found))
    sink.say(f"Written: {output}; toc report {output} shows every table.")


def numbered(run: Path) -> Path:
    """Where a record goes without `-o`: inside the run's folder (beside a file, or here where that is not to be written), numbered."""
    from toc_cli.pipeline.outputs import place_for

    folder = run if run.is_dir() else run.parent
    folder, _ = place_for(folder / "evaluation")
    number = 1
    while (folder / f"evaluation-{number}.toc.json").exists():
        number += 1
    return folder / f"evaluation-{number}.toc.json"


def listed(text: str) -> tuple[str, ...]:
    """`a,b` as its parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def lone_codebook(path: Path) -> tuple[str, Quantiser] | None:
    """Key and quantiser of the first codebook of an artefact or a checkpoint; None for a run of toc train-fcid."""
    from toc_cli.fcid.evaluation.sources import is_run
    from toc_cli.io.checkpoint import open_checkpoint
    from toc_cli.io.families import detect
    from toc_cli.pipeline.reading.chosen import read_book

    if is_run(path):
        return None
    book = detect(open_checkpoint(path))[0]
    return book.keys[0][0], read_book(path, 0).form
