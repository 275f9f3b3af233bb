"""Every refusal that needs no feature row, before the first one is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from toc_cli.errors import InputError, UsageError
from toc_cli.io.atomic import check_target
from toc_cli.io.checkpoint import open_checkpoint
from toc_cli.io.checkpoint.base import Checkpoint
from toc_cli.io.families import detect, recode
from toc_cli.io.families.base import MODES, Mode
from toc_cli.io.families.offered import supported
from toc_cli.io.features import Features
from toc_cli.io.names import printable
from toc_cli.ops.codes import parse_codes
from toc_cli.ops.criterion import CRITERIA
from toc_cli.ops.selection import Size
from toc_cli.pipeline.budget import refuse_budget
from toc_cli.pipeline.census import pairs_of
from toc_cli.pipeline.choice import inexact_mean
from toc_cli.pipeline.codes import refuse_codes
from toc_cli.pipeline.curve import parse_sweep
from toc_cli.pipeline.forms import refuse_forms
from toc_cli.pipeline.memory import refuse_what_does_not_fit
from toc_cli.pipeline.options import AUTO, Options
from toc_cli.pipeline.outputs import Outputs, stem_named
from toc_cli.pipeline.source import Source, device_of
from toc_cli.pipeline.study import Study

PROBED_ROWS = 64
WEIGHTS = (".safetensors", ".pt", ".pth")
"""Files that may hold features or a model."""
ANY_SIZE = 2**31
"""More dimensions, or codes, than any codebook has."""


def refuse_unseen(options: Options, named: Path | None, *, force: bool) -> None:
    """UsageError for what no checkpoint allows, before one is downloaded: sizes, the device, the name of `-o`."""
    options.refuse_size(ANY_SIZE)
    if options.sweep:
        parse_sweep(options.sweep, ANY_SIZE)
    if options.codes is not None:
        parse_codes(options.codes, ANY_SIZE)
    device_of(options.device)
    if named is not None:
        stem_named(named)
        check_target(named, force=force)


def refuse_itself(ckpt: Checkpoint, features: Features) -> None:
    """InputError where the checkpoint lies among several files of features: a folder was named that holds both."""
    for path in features.files if len(features.files) > 1 else ():
        if any(path.exists() and file.exists() and path.samefile(file) for file in ckpt.files):
            raise InputError(
                f"{printable(path)} is the checkpoint, and among the files of features.",
                "Name the features alone: a file, a glob such as 'feats*.h5', or their own folder.",
            )


def refuse_swapped(ckpt: Checkpoint, found: Sequence[Source], features: Features) -> None:
    """UsageError where what is given as features is a checkpoint's codebook: the two arguments were swapped, most likely."""
    bare = bool(found) and all(source.book.family == "bare array" for source in found)
    for path in dict.fromkeys(features.files):
        if path.suffix.lower() not in WEIGHTS:
            continue
        try:
            books = detect(open_checkpoint(path))
        except InputError:
            continue
        sure = [book for book in books if book.family != "bare array" and (bare or book.family != "unknown")]
        tables = {key for book in sure for level in book.keys for key in level}
        given = [part.key for stream in features.datasets.values() for part in stream.parts if part.path == path]
        if meant := next((key for key in given if key in tables), None):
            other = printable(ckpt.path)
            raise UsageError(
                f"{printable(path)}, given as features, is a checkpoint: {printable(meant)} in it is a codebook.",
                f"The checkpoint comes first: toc optimize {printable(path)} --features {other}"
                if bare
                else "--features takes what reaches the quantiser (toc capture MODEL DATA -o feats.h5).",
            )


def refuse_options(source: Source, options: Options) -> None:
    """UsageError for what this codebook, whatever its features, rules out: a size, a criterion, a constant."""
    options.size(source.full.dim, len(source.full.levels))
    if options.sweep:
        parse_sweep(options.sweep, source.full.dim)
    _refuse_criterion(source, options.criterion)
    if options.codes is not None:
        refuse_codes(source, options.codes, options.emit)
    if options.fill == "mean" and (source.book.zero_fill or source.full.metric == "cosine" or source.full.unit_vectors):
        raise inexact_mean(source)


def preflight(ckpt: Checkpoint, studies: Sequence[Study], outputs: Outputs | None) -> None:
    """Refuse what features of these shapes, the asked forms, or the library of `--verify` rule out.

    Raises:
        UsageError: a form that a codebook cannot take, a verification that cannot be run, a budget that is too small.
        InputError: a criterion without its pairs; a codec that its library does not run as it came.
    """
    for study in studies:
        refuse_alone(study, study.options.criterion)
    refuse_what_does_not_fit(studies)
    if studies[0].options.codes is None:
        refuse_budget(studies)
    if outputs is None:
        return
    if outputs.vocab:
        _refuse_vocab(studies[0].options, outputs)
    if any(study.options.lean for study in studies):
        _refuse_lean(ckpt, outputs)
    if any(study.options.codes is not None for study in studies):
        _refuse_code_forms(ckpt, [study.source for study in studies], outputs.checkpoints)
    wanted = [
        Wanted(
            study.source,
            study.options.size(study.full.dim, len(study.full.levels)),
            _rotates(study),
            study.options.recuts,
        )
        for study in studies
    ]
    refuse_impossible(ckpt, wanted, outputs.checkpoints)
    for study, each in zip(studies, wanted, strict=True):
        if each.size != study.full.dim and study.options.fill != "zero":
            _refuse_folding(study.source, outputs.checkpoints)
    if outputs.verify:
        _refuse_verification(ckpt, [study.source for study in studies], outputs)


def _refuse_vocab(options: Options, outputs: Outputs) -> None:
    """UsageError where no code goes, or where no written form holds the rows."""
    if options.codes is None:
        raise UsageError("--vocab follows a cut of codes.", "Add --codes.")
    if outputs.language_model is None and "sliced" not in outputs.emit:
        raise UsageError(
            "--vocab names tables of the checkpoint itself, which only its sliced form can hold with fewer rows.",
            "Add --emit sliced, or name the language model: --vocab FILE:KEY.",
        )


def _refuse_lean(ckpt: Checkpoint, outputs: Outputs) -> None:
    """UsageError where `--lean` has nothing to leave out of."""
    if not outputs.checkpoints:
        raise UsageError(
            "--lean has nothing to leave out: only the pruned codebook is written.",
            "Add --emit masked, sliced or consumer.",
        )
    if not ckpt.can_omit:
        raise UsageError(f"--lean: nothing can be left out of a {ckpt.container} file.", "Leave --lean out.")


def _rotates(study: Study) -> bool:
    return study.options.criterion != AUTO and CRITERIA[study.options.criterion].rotates


def _refuse_criterion(source: Source, criterion: str) -> None:
    """UsageError for a criterion that compares features with codes where features never come into the space of the codes."""
    if criterion != AUTO and source.full.logits is not None and CRITERIA[criterion].need in ("features", "pairs"):
        raise UsageError(
            f"--criterion {criterion} reads features in the space of the codes, and those of {printable(source.book.shown)} "
            "only choose codes, by learned logits.",
            "Use --criterion toc or usage-toc.",
        )


def refuse_alone(study: Study, criterion: str) -> None:
    """InputError for a criterion of paired modalities where none are paired."""
    if criterion != AUTO and CRITERIA[criterion].need == "pairs" and not pairs_of(study.fits):
        raise InputError(
            f"--criterion {criterion} needs two modalities of equal shape; {len(study.fits)} given.",
            "Give paired datasets, as --features audio=a.h5 --features video=v.h5.",
        )


@dataclass(frozen=True)
class Wanted:
    """The size of a cut of one codebook, of each level where they differ; None where the features decide it."""

    source: Source
    size: Size | None
    rotated: bool
    recoded: bool = False
    """Whether codes or levels are cut as well: then a form may leave the dimensions alone."""

    @property
    def codes_alone(self) -> bool:
        """Whether the dimensions stay as they are."""
        return self.recoded and self.size == self.source.full.dim and not self.rotated


def _refuse_code_forms(ckpt: Checkpoint, sources: Sequence[Source], modes: Sequence[Mode]) -> None:
    """UsageError for a form that cannot hold fewer codes."""
    for source in sources:
        reasons = {mode: recode.refusal(ckpt, source.book, mode) for mode in MODES}
        refuse_forms(source.book, reasons, modes, "--codes")


def refuse_impossible(ckpt: Checkpoint, wanted: Sequence[Wanted], modes: Sequence[Mode]) -> None:
    """UsageError with the family's sentence for a mode that some codebook cannot take."""
    for each in (one for one in wanted if not one.codes_alone):
        offered = supported(ckpt, each.source.book, each.size, rotated=each.rotated)
        refuse_forms(each.source.book, offered, modes)
    if "sliced" in modes:
        _refuse_half_cuts(ckpt, [one for one in wanted if not one.codes_alone])


def _refuse_half_cuts(ckpt: Checkpoint, wanted: Sequence[Wanted]) -> None:
    """UsageError where codebooks that share one size in the config would be cut to several, or only some of them cut."""
    words = {each.source.book.together for each in wanted if each.source.book.together}
    members = [book.together for book in detect(ckpt)] if words else []
    for word in words:
        counts = [each.size for each in wanted if each.source.book.together == word]
        if len(set(counts)) > 1 or len(counts) < members.count(word):
            raise UsageError(
                f"--emit sliced cuts all codebooks of {printable(word)} to one size.",
                "Leave --codebook out, and use one --keep.",
            )


def _refuse_folding(source: Source, modes: Sequence[Mode]) -> None:
    """UsageError where the mean of the codes would have to go into a layer that cannot take it."""
    full = source.full
    if source.book.zero_fill or full.metric == "cosine" or full.unit_vectors or not {"sliced", "consumer"} & set(modes):
        return
    for site in source.book.sites:
        if site.role == "consumer" and not (site.folds and site.bias):
            raise UsageError(
                f"The constant of the dropped dimensions does not fold into {printable(site.key)} exactly.",
                "Use --fill zero.",
            )


def _refuse_verification(ckpt: Checkpoint, sources: Sequence[Source], outputs: Outputs) -> None:
    """UsageError where nothing could be loaded, or no library here loads it; InputError where the input itself does not run there."""
    from toc_cli.libraries import require

    if not outputs.checkpoints:
        raise UsageError(
            "--verify has nothing to load: only the pruned codebook is written, which no other library reads.",
            "Add --emit masked, sliced or consumer.",
        )
    for source in sources:
        require(source.book)
    if outputs.extension:
        raise UsageError(
            f"--verify loads folders, and {printable(ckpt.path.name)} is a lone file.",
            f"Name its folder, with the config.json of its model: {printable(ckpt.path.parent)}.",
        )
    folder = ckpt.path if ckpt.path.is_dir() else ckpt.path.parent
    for source in sources:
        _run_as_it_came(folder, source)


def _run_as_it_came(folder: Path, source: Source) -> None:
    from toc_cli.libraries import run

    rows = torch.randn(PROBED_ROWS, source.full.width, generator=torch.Generator().manual_seed(0))
    try:
        run(folder, source.book, rows)
    except InputError as error:
        raise InputError(
            f"The input does not run as it came: {error.what}", error.hint or "Leave --verify out."
        ) from error
